"""The contract of harness/contract/recognizer.py, asked of every method of the registry; a new method gets it unasked.

The papers' ablations are methods too.

Small size, random weights, noise for videos: nothing here is about accuracy.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.contract.components import Call, Form, components
from harness.contract.declarations import EMPTY, OperatingPoint, Stage, below
from harness.contract.exits import NEVER, exit_scores
from harness.contract.frames import as_frames
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card, method_cards, recognizer_class
from harness.contract.segments import join, keep
from harness.contract.trace import Trace
from harness.contract.values import plain
from harness.engine.forms import engaged
from harness.engine.rows import RowTable
from harness.engine.stream import Rebatching, whole_trace
from harness.measure.cost_table import CostTable, metered, whole_check
from harness.measure.launches import FULLY_COMPILED
from harness.plan.building import build_recognizer, constructor_settings, full_settings, setting_defaults
from harness.plan.suites import cells, suite
from harness.plan.units import read_stage
from harness.work.optimization import build_optimizer

from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample

METHODS = sorted({*method_cards(), *cells(suite("ablation"))["glyphs"]})
VIDEOS, CLASSES, SIDE = 4, 5, 64
BUDGETS = (0.3, 0.6)

pytestmark = pytest.mark.parametrize("method", METHODS)


def settings_of(method: str, size: str = "tiny", resolution: int = SIDE) -> dict[str, Any]:
    base = full_settings(method, size, resolution, {})
    return {**base, "num_classes": CLASSES, "resolution": resolution}


def build(method: str, *, resolution: int = SIDE, seed: int = 0) -> EfficientRecognizer:
    """A recognizer whose random weights are large enough that its decisions differ between videos."""
    recognizer = build_recognizer(method, settings_of(method, resolution=resolution), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in recognizer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=2 * module.in_features**-0.5, generator=generator)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return recognizer.eval()


@cache
def shared(method: str) -> EfficientRecognizer:
    """One recognizer for all tests that only look, whichever asks first."""
    with torch.inference_mode(False):
        return build(method)


def clips_for(
    recognizer: EfficientRecognizer, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Blotchy noise, another brightness in each frame, for every request."""
    clips: dict[str, Tensor] = {}
    for request in recognizer.clip_requests(point, stage=stage):
        if request.subset_of is not None:
            clips[request.name] = clips[request.subset_of][:, request.group // 2 :: request.group]
            continue
        side = request.resolution or recognizer.resolution
        rng = np.random.default_rng([seed, request.frames])
        size = (VIDEOS, request.frames)
        blotches = torch.from_numpy(rng.uniform(0, 255, (*size, 3, 8, 8)) * rng.uniform(0, 1, (*size, 1, 1, 1)))
        image = nn.functional.interpolate(blotches.flatten(0, 1), size=(side, side), mode="bilinear")
        clips[request.name] = image.unflatten(0, size).to(torch.uint8)
    return clips


def samples() -> list[ActionDataSample]:
    out = []
    for index in range(VIDEOS):
        sample = ActionDataSample()
        sample.set_gt_label(index % CLASSES)
        out.append(sample)
    return out


@torch.inference_mode()
def infer(
    recognizer: EfficientRecognizer, clips: Mapping[str, Tensor], point: Mapping[str, Any] = EMPTY, **kwargs: Any
) -> tuple[Tensor, Trace]:
    trace = Trace(len(next(iter(clips.values()))), details=True)
    return recognizer.infer(clips, point, trace=trace, **kwargs), trace


def points_of(recognizer: EfficientRecognizer) -> list[OperatingPoint]:
    """The operating points, with thresholds calibrated on other noise (on the same, scores would equal thresholds)."""
    points = []
    for point in recognizer.operating_points(BUDGETS):
        if point.budget is not None:
            with torch.inference_mode():
                logits = recognizer.infer_exits(clips_for(recognizer, seed=1), trace=Trace(VIDEOS)).numpy()
            costs = np.arange(1.0, recognizer.exits + 1)
            settings = {**point.settings, **recognizer.calibrate(logits, costs, point.budget)}
            point = OperatingPoint(point.name, settings, point.knob, point.value)
        points.append(point)
    return points


def own_stages(recognizer: EfficientRecognizer, size: str = "tiny") -> list[Stage]:
    return [stage for stage in recognizer.recipe(size) if stage.method is None]


def losses_of(recognizer: EfficientRecognizer, stage: Stage) -> Tensor:
    losses = recognizer.loss(clips_for(recognizer, stage=stage), samples())
    assert all(torch.isfinite(value).all() for value in losses.values()), losses
    return sum((value.mean() for name, value in losses.items() if "loss" in name), torch.zeros(()))


# -- what a method says of itself ----------------------------------------------------------------


def test_card_matches_class(method: str) -> None:
    card, cls = method_card(method), recognizer_class(method)
    assert issubclass(cls, EfficientRecognizer) and MODELS.get(card.cls) is cls
    assert cls.__doc__ and cls.__doc__ != EfficientRecognizer.__doc__
    accepted = constructor_settings(cls)
    assert set(card.settings) <= accepted
    assert {name for name, acts in card.knobs.items() if acts == "train"} <= accepted
    assert set(card.knobs.values()) <= {"train", "test"}


def another(value: Any, hint: Any) -> Any:
    """A value of a setting that is not this one."""
    choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
    if choices:
        return next(choice for choice in choices if choice != value)
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else [*value[:-1], 3]


def test_settings_that_act_at_test_time_train_nothing(method: str) -> None:
    """Initial weights, stages, their clips and their losses are those of every other value."""
    cls = recognizer_class(method)
    hints = {p.name: p.annotation for c in cls.__mro__ for p in inspect.signature(c.__init__).parameters.values()}
    plain = build_recognizer(method, settings_of(method))
    for name in cls.test_settings:
        usual = settings_of(method)
        value = {**setting_defaults(cls), **usual}[name]
        changed = build_recognizer(method, {**usual, name: another(value, hints[name])})
        drawn = build_recognizer(method, usual).state_dict()
        torch.testing.assert_close(dict(changed.state_dict()), dict(drawn), rtol=0, atol=0)
        plain.load_state_dict(drawn)
        for size in method_card(method).sizes:
            assert list(changed.recipe(size)) == list(plain.recipe(size)), name
        for stage in own_stages(plain):
            assert changed.clip_requests(stage=stage) == plain.clip_requests(stage=stage), name
            found = []
            for recognizer in (plain, changed):
                recognizer.train()
                recognizer.set_stage(stage)
                torch.manual_seed(0)
                found.append(losses_of(recognizer, stage).item())
            assert found[0] == found[1], (name, stage.name)


def test_operating_points(method: str) -> None:
    points = shared(method).operating_points(BUDGETS)
    assert points[0].name == "full" and not points[0].settings and points[0].budget is None
    assert len({p.name for p in points}) == len(points)
    drawn = {p.knob for p in points if p.knob}
    assert drawn <= {name for name, acts in method_card(method).knobs.items() if acts == "test"}
    assert all(p.value is not None for p in points if p.knob)
    json.dumps([plain(p) for p in points_of(shared(method))], allow_nan=False)


def test_every_point_has_its_clips(method: str) -> None:
    """Request names are unique and a subset draws from a list that is long enough."""
    recognizer = shared(method)
    for point in (*(p.settings for p in points_of(recognizer)), EMPTY):
        requests: Sequence[Any] = recognizer.clip_requests(point)
        frames = {request.name: request.frames for request in requests}
        assert len(frames) == len(requests)
        for request in requests:
            if request.subset_of is not None:
                assert frames[request.subset_of] == request.frames * request.group


def test_settings_are_json_and_rebuild(method: str) -> None:
    settings = settings_of(method)
    assert json.loads(json.dumps(settings)) == plain(settings)
    again = build_recognizer(method, json.loads(json.dumps(settings)))
    shapes = {name: value.shape for name, value in shared(method).state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_recipe(method: str, size: str) -> None:
    resolution = SIDE if size == "tiny" else 224
    with torch.device("meta"):
        recognizer = build_recognizer(method, settings_of(method, size, resolution))
    stages = list(recognizer.recipe(size))
    assert len({s.name for s in stages}) == len(stages) and stages[-1].method is None
    earlier: set[str] = set()
    for stage in stages:
        assert read_stage(json.loads(json.dumps(plain(stage)))) == read_stage(plain(stage))
        for init in stage.init:
            kind, _, name = init.source.partition(":")
            assert kind == "pretrained" or (name in earlier if kind == "stage" else name in METHODS), init
            assert not init.into or any(key.startswith(init.into + ".") for key in recognizer.state_dict()), init
        if stage.method is None:
            recognizer.set_stage(stage)
            assert build_optimizer(recognizer, stage).param_groups
        earlier.add(stage.name)


# -- training ------------------------------------------------------------------------------------


def test_training_step(method: str) -> None:
    """The loss is finite, reaches all that is trained, and a step moves only that, buffers included."""
    recognizer = build(method)
    for stage in own_stages(recognizer):
        recognizer.set_stage(stage)
        recognizer.set_progress(0, stage.epochs)
        recognizer.train()
        optimizer = build_optimizer(recognizer, stage)
        before = {name: value.clone() for name, value in recognizer.state_dict().items()}
        losses_of(recognizer, stage).backward()
        parameters = dict(recognizer.named_parameters())
        lost = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
        assert not lost, f"stage {stage.name}: no gradient reaches {lost[:5]}"
        assert all(torch.isfinite(p.grad).all() for p in parameters.values() if p.grad is not None)
        optimizer.step()
        moved = {name for name, value in recognizer.state_dict().items() if not torch.equal(value, before[name])}
        assert moved & {name for name, p in parameters.items() if p.requires_grad}
        frozen = {name for name in before if not any(below(name, prefix) for prefix in stage.trained)}
        assert not moved & frozen, f"stage {stage.name} moved {sorted(moved & frozen)[:5]}"
        optimizer.zero_grad(set_to_none=True)


def test_trains_in_bfloat16(method: str) -> None:
    recognizer = build(method)
    for stage in own_stages(recognizer):
        recognizer.set_stage(stage)
        recognizer.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = losses_of(recognizer, stage)
        loss.backward()
        assert torch.isfinite(loss)


def test_mmaction_interface(method: str) -> None:
    recognizer = shared(method)
    clips = clips_for(recognizer)
    with torch.inference_mode():
        predicted = recognizer(clips, samples(), mode="predict")
        logits = recognizer(clips, mode="tensor")
    scores = torch.stack([sample.pred_score for sample in predicted])
    torch.testing.assert_close(scores, logits.softmax(-1))
    assert [int(sample.pred_label) for sample in predicted] == logits.argmax(1).tolist()


# -- evaluation ----------------------------------------------------------------------------------


def test_infer(method: str) -> None:
    """Shape, finite values, repeatable to the last digit; boxes and decisions are within bounds."""
    recognizer = shared(method)
    for point in points_of(recognizer):
        clips = clips_for(recognizer, point.settings)
        logits, trace = infer(recognizer, clips, point.settings)
        assert logits.shape == (VIDEOS, CLASSES) and torch.isfinite(logits).all()
        assert torch.equal(logits, infer(recognizer, clips, point.settings)[0])
        length = max(clip.shape[1] for clip in clips.values())
        for video, step, _, top, left, height, width in trace.boxes:
            assert 0 <= video < VIDEOS and 0 <= step < length
            assert min(top, left) >= -1e-4 and max(top + height, left + width) <= 1 + 1e-4
        assert all(table.shape[0] == VIDEOS for table in trace.decisions.values())
        if trace.frames_used is not None:
            assert np.all((trace.frames_used >= 0) & (trace.frames_used <= length))


def test_videos_do_not_influence_each_other(method: str) -> None:
    """A video gets the logits and the cost in a batch that it gets alone."""
    recognizer = shared(method)
    for point in points_of(recognizer):
        clips = clips_for(recognizer, point.settings)
        together, trace = infer(recognizer, clips, point.settings)
        for video in range(VIDEOS):
            alone, single = infer(recognizer, {n: c[video : video + 1] for n, c in clips.items()}, point.settings)
            torch.testing.assert_close(alone[0], together[video], rtol=1e-3, atol=1e-3)
            costs = {key: counts[video] for key, counts in trace.counts.items() if counts[video]}
            assert {key: counts[0] for key, counts in single.counts.items() if counts[0]} == costs


def test_trace_tells_of_all_work(method: str) -> None:
    """All multiply-accumulates run inside components, and each kind of work costs a constant per row."""
    recognizer = shared(method)
    runs = [metered(recognizer, clips_for(recognizer, p.settings), p.settings) for p in points_of(recognizer)]
    for trace, total in runs:
        inside = sum(macs for measured in trace.macs.values() for macs, _ in measured)
        assert inside == pytest.approx(total, rel=1e-6) and total > 0
    whole_check(CostTable.of(trace for trace, _ in runs), runs, method)


def test_sampled_mode_is_seeded(method: str) -> None:
    recognizer = shared(method)
    clips = clips_for(recognizer)
    first, again = (infer(recognizer, clips, generator=torch.Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(first, again) and torch.isfinite(first).all()


def test_other_resolution(method: str) -> None:
    """The small size also fits ordinary videos at 112 pixels."""
    recognizer = build(method, resolution=112)
    assert infer(recognizer, clips_for(recognizer))[0].shape == (VIDEOS, CLASSES)


def test_save_and_load(method: str) -> None:
    recognizer, other = shared(method), build(method, seed=1)
    clips = clips_for(recognizer)
    expected = infer(recognizer, clips)[0]
    assert not torch.allclose(infer(other, clips)[0], expected)
    other.load_state_dict(load(save({k: v.contiguous() for k, v in recognizer.state_dict().items()})))
    assert torch.equal(infer(other, clips)[0], expected)


# -- components ----------------------------------------------------------------------------------


def test_evaluation_is_the_harness_s(method: str) -> None:
    """A method says what its components and segments are; trace and loop over exits are no concern of its own."""
    own = [cls for cls in type(shared(method)).__mro__ if issubclass(cls, EfficientRecognizer)][:-1]
    assert not {"infer", "infer_exits"} & {name for cls in own for name in vars(cls)}


class Watched(dict[Call, Form]):
    """Forms that run components as they are and keep each call."""

    def __init__(self, recognizer: EfficientRecognizer) -> None:
        super().__init__()
        self.parts, self.model = components(type(recognizer)), recognizer
        self.seen: list[tuple[Call, tuple[Tensor | None, ...]]] = []

    def get(self, call: Call, default: Any = None) -> Form:
        def run(*args: Tensor | None) -> Any:
            self.seen.append((call, args))
            return self.again(call, args)

        return run

    def again(self, call: Call, args: Sequence[Tensor | None]) -> Any:
        return self.parts[call.attribute].function(self.model, *args, **dict(call.keywords))


@torch.inference_mode()
def test_rows_of_a_component_do_not_depend_on_each_other(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms may cut a call into several, or fill it up: every output row is the input row's alone."""
    recognizer = shared(method)
    watched = Watched(recognizer)
    monkeypatch.setattr(recognizer, "forms", watched)
    for point in points_of(recognizer):
        infer(recognizer, clips_for(recognizer, point.settings), point.settings)
    calls = {(call, tuple(arg is None for arg in args)): args for call, args in watched.seen if len(args[0]) > 1}
    assert calls
    for (call, _), args in calls.items():
        rows = torch.tensor([len(args[0]) - 1, 0])
        some = watched.again(call, [None if arg is None else arg[rows] for arg in args])
        for got, whole in zip(tree_leaves(some), tree_leaves(watched.again(call, args)), strict=True):
            assert len(whole) == len(args[0]), f"{call.attribute} gives other rows than it takes"
            torch.testing.assert_close(got, whole[rows], rtol=1e-3, atol=1e-3, msg=lambda m, c=call: f"{c}: {m}")


@torch.inference_mode()
def test_divided_calls_say_the_same(method: str) -> None:
    """Calls of three rows at most, the last one filled up, change nothing but rounding."""
    recognizer = shared(method)
    for point in points_of(recognizer):
        clips = clips_for(recognizer, point.settings)
        whole, told = infer(recognizer, clips, point.settings)
        with engaged(recognizer, context={}) as forms:
            with forms.learning():
                infer(recognizer, clips, point.settings)
            table = RowTable({1: 1.0, 2: 1.1, 3: 1.2}, exact=True)
            forms.ways = {kind: replace(way, rows=table) for kind, way in forms.ways.items()}
            logits, trace = infer(recognizer, clips, point.settings)
        torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-3)
        assert {key: counts.tolist() for key, counts in trace.counts.items()} == {
            key: counts.tolist() for key, counts in told.counts.items()
        }


@torch.inference_mode()
def test_components_can_be_compiled_whole(method: str) -> None:
    """Whatever is worth a form is one graph to torch, where nothing depends on values; it is nearly all the work."""
    if method not in method_cards() or method_card(method).variant_of is not None:
        pytest.skip("its class is asked as another method")
    recognizer = shared(method)
    watched = Watched(recognizer)
    recognizer.forms = watched
    try:
        infer(recognizer, clips_for(recognizer))
    finally:
        recognizer.forms = {}
    with torch._dynamo.config.patch(allow_rnn=True):
        for call, args in {call.attribute: (call, args) for call, args in watched.seen}.values():
            function = watched.parts[call.attribute].function
            compiled = torch.compile(function, backend="eager", fullgraph=True)(
                recognizer, *args, **dict(call.keywords)
            )
            for got, expected in zip(tree_leaves(compiled), tree_leaves(watched.again(call, args)), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()
    trace, total = metered(recognizer, clips_for(recognizer))
    fast = {part.name for part in watched.parts.values() if part.fast}
    inside = sum(macs for key, events in trace.macs.items() if key.component in fast for macs, _ in events)
    assert inside >= FULLY_COMPILED * total


@torch.inference_mode()
def test_states_of_other_batches_can_be_joined(method: str) -> None:
    """Videos that stay may wait for others: behind every exit, halves of a batch go on as one."""
    recognizer = shared(method)
    if not recognizer.exits:
        pytest.skip(f"{method} has no exits")
    clips, last = clips_for(recognizer), recognizer.exits - 1
    whole = recognizer.infer_exits(clips, trace=Trace(VIDEOS))[:, last]
    for exit in range(last):
        halves = []
        for rows in ([3, 1], [0, 2]):
            frames = as_frames({name: clip[rows] for name, clip in clips.items()})
            state, _ = recognizer.segment(recognizer.begin(frames), 0, exit)
            kept = np.array([1, 0])
            halves.append(keep(state, kept, torch.from_numpy(kept)))
        _, logits = recognizer.segment(join(halves), exit + 1, last)
        torch.testing.assert_close(logits, whole[[1, 3, 2, 0]], rtol=1e-3, atol=1e-3)


def test_a_stream_does_and_says_what_the_plain_loop_does_and_says(method: str) -> None:
    recognizer = shared(method)
    if not recognizer.exits:
        pytest.skip(f"{method} has no exits")
    clips = clips_for(recognizer)
    trace = Trace(VIDEOS)
    with torch.inference_mode():
        scores = exit_scores(recognizer.infer_exits(clips, trace=Trace(VIDEOS)), recognizer.exit_score)
        point = {"thresholds": [*scores.quantile(0.5, dim=0).tolist()[:-1], -NEVER]}  # between two videos
        logits = recognizer.infer(clips, point, trace=trace)
    single = ({name: clip[i : i + 1] for name, clip in clips.items()} for i in range(VIDEOS))
    results = list(Rebatching(recognizer, point, batch=3).results(single))
    torch.testing.assert_close(torch.stack([r.logits for r in results]), logits, rtol=1e-3, atol=1e-3)
    found = whole_trace(results)
    assert trace.exit_step is not None and found.exit_step is not None
    assert found.exit_step.tolist() == trace.exit_step.tolist()
    assert {key: rows.tolist() for key, rows in found.counts.items()} == {
        key: rows.tolist() for key, rows in trace.counts.items()
    }


# -- exits and online work -----------------------------------------------------------------------


def test_exits(method: str) -> None:
    """Stopping later costs more, gives what `infer_exits` says, and the last exit is the full forward."""
    recognizer = shared(method)
    if not recognizer.exits:
        pytest.skip(f"{method} has no exits")
    clips = clips_for(recognizer)
    with torch.inference_mode():
        all_exits = recognizer.infer_exits(clips, trace=Trace(VIDEOS))
    assert all_exits.shape == (VIDEOS, recognizer.exits, CLASSES)
    costs = []
    for step in range(recognizer.exits):
        point = recognizer.exit_settings(step)
        logits, trace = infer(recognizer, clips, point)
        torch.testing.assert_close(logits, all_exits[:, step], rtol=1e-3, atol=1e-3)
        assert trace.exit_step is not None and list(trace.exit_step) == [step] * VIDEOS
        costs.append(metered(recognizer, clips, point)[1])
    assert all(later > sooner for sooner, later in pairwise(costs))
    torch.testing.assert_close(all_exits[:, -1], infer(recognizer, clips)[0], rtol=1e-3, atol=1e-3)


def test_calibrated_exits_stop(method: str) -> None:
    """With thresholds, each video leaves where it did on its own, and its later work is not executed."""
    recognizer = shared(method)
    if not recognizer.exits:
        pytest.skip(f"{method} has no exits")
    clips = clips_for(recognizer)
    full = metered(recognizer, clips)[1]
    for point in points_of(recognizer):
        if point.knob != "exit":
            continue
        logits, trace = infer(recognizer, clips, point.settings)
        assert trace.exit_step is not None
        with torch.inference_mode():
            all_exits = recognizer.infer_exits(clips, trace=Trace(VIDEOS))
        torch.testing.assert_close(logits, all_exits[range(VIDEOS), trace.exit_step], rtol=1e-3, atol=1e-3)
        if max(trace.exit_step) < recognizer.exits - 1:
            assert metered(recognizer, clips, point.settings)[1] < full


def test_an_exit_waits_for_the_device_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the decision who leaves is fetched from the device, once for each exit but the last."""
    recognizer = shared(method)
    if not recognizer.exits:
        pytest.skip(f"{method} has no exits")
    waits: list[str] = []

    def watched(name: str, original: Any) -> Any:
        return lambda self, *args: waits.append(name) or original(self, *args)

    for name in ("cpu", "nonzero", "tolist", "item"):
        monkeypatch.setattr(Tensor, name, watched(name, getattr(Tensor, name)))
    with torch.inference_mode():  # thresholds that nobody reaches, yet somebody could
        recognizer.infer(clips_for(recognizer), {"thresholds": [1e7] * recognizer.exits}, trace=Trace(VIDEOS))
    assert waits == ["cpu"] * (recognizer.exits - 1)


def test_online(method: str) -> None:
    recognizer = shared(method)
    if not recognizer.online:
        pytest.skip(f"{method} does not work online")
    clip = next(iter(clips_for(recognizer).values()))
    state: Any = None
    for frame in clip.unbind(1):
        with torch.inference_mode():
            logits, state = recognizer.step(frame, state)
        assert logits.shape == (VIDEOS, CLASSES) and torch.isfinite(logits).all()
