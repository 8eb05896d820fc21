"""Uni-AdaFocus on TSM and on X3D: who learns from what, one box per video, the exit, published costs and recipes.

Gradient routing: docs/methods/uni-adafocus.md#on-tsm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafocus.uni_clip import TINY_DEPARTURES, UniClip
from adafocus.uni_tsm import UniAdaFocusTSM
from adafocus.uni_x3d import HEAD_DEPARTURE, UniAdaFocusX3D
from harness.authors.official import convert
from harness.contract.exits import NEVER
from harness.contract.registry import authors_module, method_card, method_cards
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.layers.backbones import imagenet_state
from harness.layers.crop import deformable_crop
from harness.layers.frame_sampling import sample_frames
from harness.measure.counter import MacMeter
from harness.plan.recipes import paper_recipe
from harness.store.artifacts import load_into
from harness.work.optimization import build_optimizer

METHODS = [UniAdaFocusTSM, UniAdaFocusX3D]
VIDEOS = 3
PAIRS = Path(__file__).parents[1] / "authors" / "data"

both = pytest.mark.parametrize("cls", METHODS)


def name_of(cls: type[UniClip]) -> str:
    return next(name for name, card in method_cards().items() if card.cls == cls.__name__)


def build(cls: type[UniClip], **settings: Any) -> UniClip:
    """A model whose decisions differ between videos: large weights, batch norms that have seen the clips."""
    torch.manual_seed(0)
    model = cls(5, resolution=64, **{**cls.settings_for("tiny", 64), **settings})
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=2 * module.in_features**-0.5)
        if isinstance(module, nn.Conv3d | nn.Conv2d) and "policy" in name:
            nn.init.normal_(module.weight, std=2 * (module.weight[0].numel()) ** -0.5)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        losses(model)
    return model.eval()


def clips(model: UniClip) -> dict[str, Tensor]:
    """Blotches, so that the small glance frames differ."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for request in model.clip_requests():
        coarse = torch.rand(VIDEOS * request.frames, 3, 4, 4, generator=generator)
        clip = nn.functional.interpolate(255 * coarse, size=(64, 64), mode="bilinear")
        found[request.name] = clip.to(torch.uint8).unflatten(0, (VIDEOS, request.frames))
    return found


def losses(model: UniClip, places: Tensor | None = None) -> dict[str, Tensor]:
    model.train()
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(VIDEOS, model.focus_frames, generator=generator)
    if places is None:
        places = torch.rand(VIDEOS, 2, generator=generator)
    return model.losses(clips(model), torch.arange(VIDEOS), noise, places)


def learners(model: nn.Module, loss: Tensor) -> set[str]:
    """Parts that a loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {n.split(".")[0] if "spatial" in n or "temporal" in n else ".".join(n.split(".")[:2]) for n in reached}


@both
def test_who_learns_from_what(cls: type[UniClip]) -> None:
    model = build(cls, size_weight=0.5)
    expected = {
        "loss_glance": {"glance.backbone", "glance.aux_head"},
        "loss_temporal": {"temporal_policy"},
        "loss_spatial": {"spatial_policy", "spatial_head"},
        "loss_size": {"spatial_policy"},
        "loss_learned": {"glance.head", "focus.head"},
        "loss_random": {"glance.head", "focus.head"},
        "loss_focus_learned": {"focus.backbone", "focus.aux_head"},
        "loss_focus_random": {"focus.backbone", "focus.aux_head"},
    }
    assert {name: learners(model, loss) for name, loss in losses(model).items()} == expected


@both
def test_switches_take_parts_away(cls: type[UniClip]) -> None:
    assert "loss_random" not in losses(build(cls, random_pass=False))
    model = build(cls, spatial="centre", temporal="uniform")
    assert set(losses(model)) == {"loss_glance", "loss_centre", "loss_focus_centre"}
    assert {name for name, _ in model.named_children()} & {"spatial_policy", "temporal_policy", "spatial_head"} == set()
    assert "loss_size" not in losses(build(cls, deformable=False))
    assert build(cls, sample_wise=False).exits == 0


@both
def test_passes_are_averaged(cls: type[UniClip]) -> None:
    """A fixed box in both passes gives in each half of what a single pass gives."""
    model = build(cls, deformable=False, temporal="uniform", dropout=0.0)
    last: Any = model.spatial_policy.encoder[-1]
    nn.init.zeros_(last.weight)
    found = losses(model, torch.full((VIDEOS, 2), 0.5))
    torch.testing.assert_close(found["loss_learned"], found["loss_random"])
    single = build(cls, spatial="centre", temporal="uniform", dropout=0.0)
    single.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("spatial")})
    alone = losses(single)
    torch.testing.assert_close(2 * found["loss_learned"], alone["loss_centre"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(2 * found["loss_focus_learned"], alone["loss_focus_centre"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["loss_glance"], alone["loss_glance"])


@pytest.mark.parametrize(
    ("cls", "settings", "batches"),
    [
        (UniAdaFocusTSM, {}, [2 * VIDEOS * 8]),
        (UniAdaFocusX3D, {}, [2 * VIDEOS * 8]),
        (UniAdaFocusTSM, {"random_pass": False}, [VIDEOS * 8]),
        (UniAdaFocusX3D, {"random_pass": False}, [VIDEOS * 8]),
    ],
)
def test_calls_of_the_focus_network(cls: type[UniClip], settings: dict[str, Any], batches: list[int]) -> None:
    """Batch norm sees learned and random patches together (docs/methods/uni-adafocus.md#on-tsm)."""
    model = build(cls, **settings)
    seen: list[int] = []
    first = next(module for module in model.focus.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    first.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    losses(model)
    assert seen == batches


@both
def test_the_sum_of_both_networks_decides(cls: type[UniClip]) -> None:
    """Step by step: frames by the weights, one box for all of them, both heads' logits added."""
    model = build(cls)
    given = clips(model)
    trace = Trace(VIDEOS, details=True)
    with torch.inference_mode():
        x = {name: model.normalise(clip) for name, clip in given.items()}
        maps = model.glance.maps(nn.functional.avg_pool2d(x["glance"].flatten(0, 1), 4), 8)
        vectors = maps.mean((2, 3))
        weights = model.temporal_policy(vectors.unflatten(0, (VIDEOS, 8)))
        indices = sample_frames(weights, 8, 24)
        boxes = model.spatial_policy(maps.unflatten(0, (VIDEOS, 8)))
        assert boxes.shape == (VIDEOS, 1, 4) and boxes[:, 0].std(0).max() > 1e-3 and len(indices.unique(dim=0)) > 1
        expected = model.glance.logits(vectors, 8)
        for video in range(VIDEOS):
            frames = x["candidates"][video, indices[video]]
            patches = deformable_crop(frames, boxes[video].expand(8, 4), 40, (32 / 40, 1.6))
            own = model.focus.backbone.features(patches, 8).mean((2, 3))
            expected[video] += model.focus.logits(own, 8)[0]
        torch.testing.assert_close(model.infer(given, trace=trace), expected, rtol=1e-3, atol=1e-3)
    seen = [[step for row, step, *_ in trace.boxes if row == video] for video in range(VIDEOS)]
    assert seen == indices.tolist()
    assert len({(video, *box) for video, _, _, *box in trace.boxes}) == VIDEOS
    assert trace.frames_used is not None and trace.frames_used.tolist() == [16.0] * VIDEOS


@both
@pytest.mark.parametrize("head", ["aux", "main"])
def test_who_leaves_costs_no_more(cls: type[UniClip], head: str) -> None:
    """A threshold between the scores lets one video go: policies and focus network run for the others alone."""
    model = build(cls, exit_head=head, exit_score="logit")
    given = clips(model)
    with torch.inference_mode():
        exits = model.infer_exits(given, trace=Trace(VIDEOS))
        scores = exits[:, 0].amax(1).sort().values
        threshold = float(scores[-2:].mean())
        trace = Trace(VIDEOS)
        logits = model.infer(given, {"thresholds": [threshold, -NEVER]}, trace=trace)
    leaves = exits[:, 0].amax(1) >= threshold
    assert int(leaves.sum()) == 1 and trace.exit_step is not None
    assert trace.exit_step.tolist() == [0 if gone else 1 for gone in leaves.tolist()]
    torch.testing.assert_close(logits, torch.where(leaves[:, None], exits[:, 0], exits[:, 1]), rtol=1e-3, atol=1e-3)
    done: dict[str, list[float]] = {}
    for key, counts in trace.counts.items():
        done[key.component] = [a + b for a, b in zip(done.get(key.component, [0.0] * VIDEOS), counts, strict=True)]
    for part in ("spatial policy", "temporal policy", "focus", "focus head"):
        assert [count == 0 for count in done[part]] == leaves.tolist(), part
    assert all(done["glance"])


@both
def test_settings_are_checked(cls: type[UniClip]) -> None:
    with pytest.raises(UsageError, match="did you mean 'learned'"):
        build(cls, spatial="lerned")
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        build(cls, temporal="unifrm")
    with pytest.raises(UsageError, match="did you mean 'main'"):
        build(cls, exit_head="mian")
    with pytest.raises(UsageError, match="larger than the frames"):
        build(cls, patch_size=65)


@both
def test_clips(cls: type[UniClip]) -> None:
    """The candidates are three per focus frame; the authors crop both lists on their own in training."""
    requests = {r.name: r for r in build(cls, align_crops=False).clip_requests()}
    assert (requests["glance"].frames, requests["candidates"].frames) == (8, 24)
    assert {r.sampler for r in requests.values()} == {"uniform"}
    assert (requests["glance"].crop, requests["candidates"].crop) == ("shared", "own")
    assert {r.crop for r in build(cls, align_crops=True).clip_requests()} == {"shared"}


@both
def test_a_few_steps_reduce_the_loss(cls: type[UniClip]) -> None:
    model = build(cls, dropout=0.0).train()
    given = clips(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        noise, places = torch.rand(VIDEOS, 8, generator=generator), torch.rand(VIDEOS, 2, generator=generator)
        loss = sum(model.losses(given, torch.arange(VIDEOS), noise, places).values(), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize(("name", "cls"), [("uni_tsm_p128", UniAdaFocusTSM), ("uni_x3d", UniAdaFocusX3D)])
def test_official_files_leave_nothing_over(name: str, cls: type[UniClip]) -> None:
    """Every tensor of the file finds its place, every place its tensor; the other methods' readers decline."""
    shapes = json.loads((PAIRS / f"{name}.json").read_text())["tensors"]
    file = {"state_dict": {f"module.{key}": torch.zeros(shape) for key, shape in shapes.items()}}
    converted = convert(file, focus_frames=16)
    assert (converted.method, converted.unused, converted.unplaced) == (name_of(cls), (), ())
    assert converted.settings["focus_frames"] == 16
    with torch.device("meta"):
        expected = cls(**converted.settings).state_dict()
    assert {k: v.shape for k, v in converted.state.items()} == {k: v.shape for k, v in expected.items()}
    others = [authors_module(method_card(name_of(other))) for other in METHODS if other is not cls]
    assert all(other.from_official(file) is None for other in others)


# -- published costs -------------------------------------------------------------------------------


def full_size(cls: type[UniClip], classes: int, **settings: Any) -> UniClip:
    with torch.device("meta"):
        return cls(classes, **{**cls.settings_for("paper", 224), **settings}).eval()


def macs(model: UniClip, point: Mapping[str, Any], *, everything: bool = False) -> dict[str, float]:
    """Multiply-accumulates per component."""
    given = {r.name: torch.zeros(1, r.frames, 3, 224, 224, dtype=torch.uint8, device="meta")
             for r in model.clip_requests()}  # fmt: skip
    found: dict[str, float] = {}
    with torch.inference_mode(), MacMeter() as meter:
        trace = Trace(1, meter=meter, training_parts=everything)
        model.infer(given, point, trace=trace)
    for key, events in trace.macs.items():
        found[key.component] = found.get(key.component, 0.0) + sum(count for count, _ in events)
    assert meter.total == sum(found.values())
    return found


@pytest.mark.parametrize(
    ("patch", "frames", "published"), [(96, 8, 8.824), (96, 12, 11.83), (128, 12, 18.837), (128, 16, 24.178)]
)
def test_published_cost_on_tsm(patch: int, frames: int, published: float) -> None:
    """docs/measurement.md#gflops; both heads of both networks are in the published constants."""
    model = full_size(UniAdaFocusTSM, 174, patch_size=patch, focus_frames=frames)
    found = macs(model, {}, everything=True)
    assert found["glance"] == 8 * 299_494_272 and found["glance head"] == 8 * 445_440
    assert found["focus"] == frames * {96: 750_698_496, 128: 1_334_575_104}[patch]
    assert (found["spatial policy"], found["temporal policy"]) == (411_242_496, 2_064_896)
    assert sum(found.values()) / 1e9 == pytest.approx(published, rel=0.005)


def test_published_exit_cost_on_tsm() -> None:
    found = macs(full_size(UniAdaFocusTSM, 174), {"exit_at": 0}, everything=True)
    assert sum(found.values()) / 1e9 == pytest.approx(8 * 0.299956768, rel=0.005)


def test_published_cost_on_x3d() -> None:
    """Exact but for batch norms: each network with X3D's own head once, and the policies."""
    model = full_size(UniAdaFocusX3D, 400, exit_head="main")
    assert sum(macs(model, {"exit_at": 0}).values()) == 2_415_437_312
    found = macs(model, {"exit_at": 1})
    assert (found["spatial policy"], found["temporal policy"]) == (376_217_600, 1_524_736)
    assert found["focus"] + found["focus head"] == 5_984_488_160
    assert sum(found.values()) / 1e9 == pytest.approx(8.7777, rel=0.005)
    assert macs(full_size(UniAdaFocusX3D, 400), {}) == found


def test_the_live_head_costs_one_percent_more_at_x3ds_exit() -> None:
    """16 frames through `aux_head` instead of one clip through `head`."""
    found = macs(full_size(UniAdaFocusX3D, 400), {"exit_at": 0})
    assert sum(found.values()) == 2_415_437_312 + 15 * (432 * 2048 + 2048 * 400)


# -- the paper's recipes ---------------------------------------------------------------------------


COMMON = {"group": 3, "patch_size": 128, "smallest_box": 96, "dropout": 0.5, "align_crops": False}
COMMON |= {"exit_score": "logit"}
TSM = {**COMMON, "frames": 8, "focus_frames": 12, "glance": "mobilenet_v2", "focus": "resnet50"}
X3D = {**COMMON, "frames": 16, "focus_frames": 32, "glance": "x3d_s", "focus": "x3d_l"}
DROPOUTS = {"uni-adafocus-tsm": ["dropout"], "uni-adafocus-x3d": ["head.2", "aux_head.2"]}
X3D |= {"glance_side": 160, "glance_resize": "bilinear"}


@pytest.mark.parametrize(
    ("method", "dataset", "classes", "lr", "decay", "size", "policies", "settings"),
    [
        ("uni-adafocus-tsm", "sthv1", 174, 0.02, 1e-3, 0.5, 0.2, TSM),
        ("uni-adafocus-tsm", "sthv2", 174, 0.02, 5e-4, 0.5, 0.2, TSM),
        ("uni-adafocus-tsm", "jester", 27, 0.02, 1e-3, 0.25, 0.2, TSM),
        ("uni-adafocus-x3d", "kinetics400", 400, 0.005, 5e-5, 0.5, 0.4, X3D),
    ],
)
def test_paper_recipes(
    method: str,
    dataset: str,
    classes: int,
    lr: float,
    decay: float,
    size: float,
    policies: float,
    settings: dict[str, Any],
) -> None:
    """docs/methods/uni-adafocus.md#on-tsm, #on-x3d; the model is built with the recipe's settings."""
    recipe = paper_recipe(method, dataset, "paper")
    assert recipe is not None
    assert recipe.settings == {**settings, "size_weight": size}
    (stage,) = recipe.stages
    assert (stage.batch_size, stage.epochs, stage.lr, stage.weight_decay) == (64, 50, lr, decay)
    assert (stage.optimizer, stage.momentum, stage.schedule, stage.clip_grad) == ("SGD", 0.9, "cosine", 20.0)
    rates = {module: group.lr_mult for group in stage.groups for module in group.modules}
    assert rates == {"spatial_policy": policies, "temporal_policy": policies, "glance": 0.5, "spatial_head": 0.5}
    assert sum("batch norm sees the whole batch" in departure for departure in stage.departures) == 1
    cls = UniAdaFocusTSM if method.endswith("tsm") else UniAdaFocusX3D
    with torch.device("meta"):
        model = cls(classes, resolution=224, **{**cls.settings_for("paper", 224), **recipe.settings})
    model.set_stage(stage)
    assert build_optimizer(model, stage).param_groups
    assert model.stretch == pytest.approx((96 / 128, 224 / 128))
    dropouts = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {name: p for name, p in dropouts.items() if p} == dict.fromkeys(
        (f"{net}.{place}" for net in ("glance", "focus") for place in DROPOUTS[method]), 0.5
    )
    assert (model.candidates, model.exit_score) == (3 * settings["focus_frames"], "logit")
    (own,) = model.recipe("paper")
    names = [name for name, _ in model.named_modules()]
    assert all(init.into in names for init in own.init)


def test_x3ds_heads_start_as_the_published_classifier() -> None:
    """All four of them; the tensors of the files fit (docs/methods/uni-adafocus.md#on-x3d)."""
    model = full_size(UniAdaFocusX3D, 400)
    for net in (model.glance, model.focus):
        for head in (net.head, net.aux_head):
            head.to_empty(device="cpu")
    (stage,) = model.recipe("paper")
    found = {init.into: init.source for init in stage.init}
    assert found == {
        f"{net}.{part}": f"pretrained:{name}" + ("" if part == "backbone" else "-head")
        for net, name in (("glance", "x3d_s"), ("focus", "x3d_l"))
        for part in ("backbone", "head", "aux_head")
    }
    for into, source in found.items():
        if into.endswith("head"):
            theirs = {
                "head.lin_5.weight": torch.randn(2048, 432, 1, 1, 1),
                "head.projection.weight": torch.randn(400, 2048),
                "head.projection.bias": torch.randn(400),
            }
            load_into(model.get_submodule(into), imagenet_state(source.removeprefix("pretrained:"), theirs))
            state = model.get_submodule(into).state_dict()
            assert torch.equal(state["0.weight"], theirs["head.lin_5.weight"].flatten(1))
            assert torch.equal(state["3.weight"], theirs["head.projection.weight"])
            assert torch.equal(state["3.bias"], theirs["head.projection.bias"])


@pytest.mark.parametrize(
    ("classes", "settings"),
    [(174, {}), (400, {"head_hidden": 512}), (400, {"glance": "mbtiny3d"}), (400, {"focus": "restiny3d"})],
)
def test_other_heads_start_at_random_and_say_so(classes: int, settings: dict[str, Any]) -> None:
    (other,) = full_size(UniAdaFocusX3D, classes, **settings).recipe("paper")
    assert {init.into for init in other.init} == {"glance.backbone", "focus.backbone"}
    assert HEAD_DEPARTURE in other.departures
    (published,) = full_size(UniAdaFocusX3D, 400).recipe("paper")
    assert HEAD_DEPARTURE not in published.departures
    (tiny,) = build(UniAdaFocusX3D).recipe("tiny")
    assert HEAD_DEPARTURE in tiny.departures and set(TINY_DEPARTURES) < set(tiny.departures)
