"""AdaFocus V2: who learns from what, exits that stop, and the order of frames.

Gradient routing: docs/methods/adafocus-v2.md#losses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafocus.order import frame_order
from adafocus.policy import PatchPolicy, scattered
from adafocus.v2 import AdaFocusV2
from harness.contract.declarations import EMPTY
from harness.contract.exits import NEVER
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.measure.counter import MacMeter

from mmaction.structures import ActionDataSample

PARTS = ("glance", "focus", "policy", "classifier", "glance_head", "focus_head")


def build(**settings: Any) -> AdaFocusV2:
    torch.manual_seed(0)
    model = AdaFocusV2(5, resolution=64, **{**AdaFocusV2.settings_for("tiny", 64), **settings})
    if model.patch_policy == "learned":
        nn.init.normal_(model.policy.fc.weight, std=0.5)  # far from the centre, and different for every frame
    return model.eval()


def clip(videos: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"frames": torch.randint(0, 256, (videos, 8, 3, 64, 64), dtype=torch.uint8, generator=generator)}


def labelled(videos: int) -> list[ActionDataSample]:
    return [ActionDataSample().set_gt_label(i % 5) for i in range(videos)]


def losses(model: AdaFocusV2) -> dict[str, Tensor]:
    model.train()
    frames = model.normalise(clip()["frames"][:, model.order])
    generator = torch.Generator().manual_seed(1)
    return model.losses(frames, torch.arange(4), torch.rand(4, 8, 2, generator=generator))


def learners(model: AdaFocusV2, loss: Tensor) -> set[str]:
    """Parts that a loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    parameters = ((name.split(".")[0], p) for name, p in model.named_parameters())
    return {part for part, p in parameters if p.grad is not None and p.grad.abs().sum() > 0}


def test_who_learns_from_what() -> None:
    model = build()
    found = losses(model)
    expected = {
        "loss_glance": {"glance", "glance_head"},
        "loss_learned": {"glance", "focus", "classifier", "policy"},
        "loss_random": {"glance", "focus", "classifier"},
        "loss_focus_learned": {"focus", "focus_head", "policy"},
        "loss_focus_random": {"focus", "focus_head"},
    }
    assert {name: learners(model, loss) for name, loss in found.items()} == expected


def test_policy_does_not_train_the_glance_network() -> None:
    """Only through the policy could the focus head's loss reach it."""
    model = build(stop_gradient=False)
    assert "glance" in learners(model, losses(model)["loss_focus_learned"])
    model = build(stop_gradient=True)
    assert "glance" not in learners(model, losses(model)["loss_focus_learned"])


def test_one_pass_without_random_patches() -> None:
    assert set(losses(build(random_pass=False))) == {"loss_glance", "loss_learned", "loss_focus_learned"}
    assert set(losses(build(patch_policy="centre"))) == {"loss_glance", "loss_centre", "loss_focus_centre"}


def test_without_auxiliary_losses_there_are_no_auxiliary_heads() -> None:
    model = build(aux_losses=False)
    found = losses(model)
    assert {name: learners(model, loss) for name, loss in found.items()} == {
        "loss_learned": {"glance", "focus", "classifier", "policy"},
        "loss_random": {"glance", "focus", "classifier"},
    }
    assert not [name for name, _ in model.named_parameters() if "head." in name]
    (stage,) = model.recipe("paper")
    model.set_stage(stage)
    assert [group.modules for group in stage.groups] == [("glance",), ("classifier",), ("policy",)]
    with torch.inference_mode():
        trace = Trace(4, training_parts=True)
        assert model.eval().infer(clip(), trace=trace).shape == (4, 5)
    assert {key.component for key in trace.counts} == {"glance", "policy", "focus", "classifier", "head"}


def test_passes_are_averaged() -> None:
    """The glance loss counts once, the two passes half each: with equal patches they are equal."""
    torch.manual_seed(0)
    model = build(patch_policy="learned", dropout=0.0, head_dropout=0.0).train()
    nn.init.zeros_(model.policy.fc.weight)
    nn.init.zeros_(model.policy.fc.bias)
    frames = model.normalise(clip()["frames"][:, model.order])
    found = model.losses(frames, torch.arange(4), torch.full((4, 8, 2), 0.5))
    torch.testing.assert_close(found["loss_learned"], found["loss_random"])
    single = build(patch_policy="centre", dropout=0.0, head_dropout=0.0).train()
    single.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("policy")})
    alone = single.losses(frames, torch.arange(4), torch.full((4, 8, 2), 0.5))
    torch.testing.assert_close(found["loss_learned"] + found["loss_random"], alone["loss_centre"])
    torch.testing.assert_close(found["loss_glance"], alone["loss_glance"])


def policy_gradient_norms(clipped: bool) -> Tensor:
    model = build(patch_grad_clip=clipped)
    seen: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        output[0].register_hook(lambda gradient: seen.append(gradient.flatten(0, 1).norm(dim=1)))

    model.policy.register_forward_hook(watch)
    sum(losses(model).values()).backward()
    return seen[0]


def test_patch_gradients_are_clipped_on_request() -> None:
    free, clipped = policy_gradient_norms(False), policy_gradient_norms(True)
    assert free.max() > 1.5 * free.median()
    torch.testing.assert_close(clipped, free.clamp_max(free.median()))


@pytest.mark.parametrize("settings", [{}, {"classifier_hidden": 32, "classifier_shared": False}, {"exit_every": 3}])
def test_forced_exits_give_the_logits_of_all_exits(settings: dict[str, Any]) -> None:
    model = build(**settings)
    with torch.inference_mode():
        expected = model.infer_exits(clip(), trace=Trace(4))
        assert expected.shape == (4, model.exits, 5)
        for k in range(model.exits):
            trace = Trace(4)
            logits = model.infer(clip(), model.exit_settings(k), trace=trace)
            torch.testing.assert_close(logits, expected[:, k], atol=1e-4, rtol=1e-4)
            assert trace.exit_step.tolist() == [k] * 4
            assert trace.frames_used.tolist() == [model.exit_frames[k]] * 4


def test_all_frames_at_once_equals_step_by_step() -> None:
    model = build()
    with torch.inference_mode():
        at_once = model.infer(clip(), trace=Trace(4))
        stepwise = model.infer(clip(), {"thresholds": [NEVER] * 8}, trace=Trace(4))
    torch.testing.assert_close(at_once, stepwise, atol=1e-4, rtol=1e-4)


def test_exits_really_stop() -> None:
    """Thresholds that let one video out after steps 1, 2 and 4: these are the only segments."""
    model = build(exit_score="logit")
    with torch.inference_mode():
        exits = model.infer_exits(clip(), trace=Trace(4))
    scores = exits.amax(-1)
    there, thresholds, leaves = [0, 1, 2, 3], [NEVER] * 8, [7] * 4
    for step in (0, 1, 3):
        surest = max(there, key=lambda v: scores[v, step])
        others = [scores[v, step] for v in there if v != surest]
        thresholds[step] = float((scores[surest, step] + max(others)) / 2)
        leaves[surest] = step
        there.remove(surest)
    batches: list[int] = []
    model.focus.register_forward_hook(lambda _m, args, _o: batches.append(len(args[0])))
    trace = Trace(4)
    with torch.inference_mode():
        logits = model.infer(clip(), {"thresholds": thresholds}, trace=trace)
    assert batches == [4, 3, 2 * 2, 1 * 4]  # nobody leaves between: one segment
    assert trace.exit_step.tolist() == leaves
    torch.testing.assert_close(logits, exits[torch.arange(4), torch.tensor(leaves)], atol=1e-4, rtol=1e-4)
    focus = next(counts for key, counts in trace.counts.items() if key.component == "focus")
    assert focus.tolist() == [k + 1 for k in leaves]


def test_everybody_leaves_at_once() -> None:
    model = build()
    trace = Trace(4)
    with torch.inference_mode():
        model.infer(clip(), {"thresholds": [0.0] * 8}, trace=trace)
    assert trace.exit_step.tolist() == [0] * 4
    assert sum(counts.sum() for key, counts in trace.counts.items() if key.component == "glance") == 4


def test_exit_every_frames() -> None:
    model = build(exit_every=3)
    assert model.exit_frames == [3, 6, 8]
    batches: list[int] = []
    model.focus.register_forward_hook(lambda _m, args, _o: batches.append(len(args[0])))
    with torch.inference_mode():
        model.infer_exits(clip(), trace=Trace(4))
        model.infer(clip(), {"thresholds": [NEVER, 2.0, NEVER]}, trace=Trace(4))
    assert batches == [12, 12, 8, 24, 8]


def test_calibration_speaks_the_models_score() -> None:
    model = build(exit_score="logit")
    logits = 30 * torch.randn(50, 8, 5, generator=torch.Generator().manual_seed(0)).numpy()
    thresholds = model.calibrate(logits, list(range(1, 9)), 0.5)["thresholds"]
    assert max(t for t in thresholds if t < NEVER) > 1  # no probability


def test_wrong_points_are_refused() -> None:
    model = build()
    with pytest.raises(UsageError, match="3 thresholds for 8 exits"):
        model.infer(clip(), {"thresholds": [0.0] * 3}, trace=Trace(4))
    with pytest.raises(UsageError, match="0 to 7"):
        model.infer(clip(), {"exit_at": 8}, trace=Trace(4))
    assert build(patch_policy="random", exit_every=0).operating_points((0.5,))[0].settings == EMPTY


def test_frame_orders() -> None:
    assert frame_order("middle-first", 16) == [7, 0, 15, 3, 11, 1, 5, 9, 13, 2, 4, 6, 8, 10, 12, 14]
    assert frame_order("coarse-to-fine", 8) == [4, 1, 6, 2, 0, 3, 5, 7]
    assert frame_order("temporal", 3) == [0, 1, 2]
    assert frame_order([2, 0, 1], 3) == [2, 0, 1]
    for frames in range(1, 40):
        assert sorted(frame_order("middle-first", frames)) == list(range(frames))
    with pytest.raises(UsageError, match="did you mean 'temporal'"):
        frame_order("temporl", 8)
    with pytest.raises(UsageError, match="permutation"):
        frame_order([0, 0, 1], 3)


def test_frames_are_processed_in_order() -> None:
    """The first exit of the coarse-to-fine order rests on frame 4 only."""
    model = build()
    changed = clip()
    changed["frames"][:, [0, 1, 2, 3, 5, 6, 7]] = 0
    with torch.inference_mode():
        before, after = (model.infer(c, {"exit_at": 0}, trace=Trace(4)) for c in (clip(), changed))
    assert torch.equal(before, after)


def test_policy_starts_at_the_centre() -> None:
    policy = PatchPolicy(8, 4, 4, 16, centred=True).eval()
    actions, _ = policy(torch.randn(2, 3, 8, 4, 4))
    assert (actions - 0.5).abs().max() < 0.05


def test_scattered_places_follow_the_frame_alone_and_fill_the_square() -> None:
    x = torch.randint(0, 256, (40, 8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = scattered(x)
    assert torch.equal(places[3:5], scattered(x[3:5]))
    assert places.min() >= 0
    assert places.max() <= 1
    torch.testing.assert_close(places.mean((0, 1)), torch.tensor([0.5, 0.5]), atol=0.06, rtol=0)
    torch.testing.assert_close(places.std((0, 1)), torch.tensor([12.0, 12.0]) ** -0.5, atol=0.04, rtol=0)
    assert torch.corrcoef(places.flatten(0, 1).T)[0, 1].abs() < 0.15


def test_random_patches_can_be_drawn() -> None:
    model = build(patch_policy="random", exit_every=0)

    def run(generator: torch.Generator | None) -> Tensor:
        return model.infer(clip(), trace=Trace(4), generator=generator)

    with torch.inference_mode():
        drawn = [run(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert torch.equal(run(None), run(None))


def test_training_parts_are_counted_apart() -> None:
    model = build(classifier_hidden=32, classifier_shared=False)
    with torch.inference_mode(), MacMeter() as meter:
        plain, whole = Trace(4, meter=meter), Trace(4, meter=meter, training_parts=True)
        model.infer(clip(), trace=plain)
        model.infer(clip(), trace=whole)
    assert not any(key.training_only for key in plain.counts)
    extra = {key.component: float(counts[0]) for key, counts in whole.counts.items() if key.training_only}
    assert extra == {"glance head": 8, "focus head": 8, "head": 7}


def test_tiny_networks_cost_a_third_of_the_full_frames() -> None:
    """docs/embedded-sets.md#networks: 21.2 MMAC per video against 68.0 of TSN at full resolution."""
    model = build()
    with torch.inference_mode(), MacMeter() as meter:
        model.infer(clip(1), trace=Trace(1))
    assert meter.total / 1e6 == pytest.approx(21.2, abs=0.3)


PER_FRAME = {  # docs/measurement.md#gflops, multiply-accumulates without batch norms
    "glance": 299_494_272,
    "policy": 4_014_080 + 6_422_528 + 25_165_824 + 4_096,
    "classifier": 13_631_488,
    "head": 819_200,
    "glance head": 256_000,
    "focus head": 409_600,
}
FOCUS = {96: 750_698_496, 128: 1_334_575_104, 160: 2_085_273_600}


@pytest.mark.parametrize(("patch", "published"), [(96, 17.6), (128, 27.0), (160, 39.0)])
def test_published_cost(patch: int, published: float) -> None:
    """Component by component, and GFLOPs per video as printed (the auxiliary heads included)."""
    with torch.device("meta"):
        model = AdaFocusV2(200, **{**AdaFocusV2.settings_for("paper", 224), "patch_size": patch}).eval()
        frames = torch.zeros(1, 16, 3, 224, 224, dtype=torch.uint8)
    with torch.inference_mode(), MacMeter() as meter:
        trace = Trace(1, meter=meter, training_parts=True)
        model.infer({"frames": frames}, trace=trace)
    measured: dict[str, float] = {}
    for key, events in trace.macs.items():
        measured[key.component] = measured.get(key.component, 0.0) + sum(macs for macs, _ in events)
    assert measured == {name: 16 * macs for name, macs in {**PER_FRAME, "focus": FOCUS[patch]}.items()}
    assert meter.total == sum(measured.values())
    assert meter.total / 1e9 == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(("patch", "published"), [(96, 24.8), (128, 34.1), (160, 46.1)])
def test_published_cost_with_resnet_glance(patch: int, published: float) -> None:
    changes = {"patch_size": patch, "glance": "resnet50", "glance_side": 96}
    with torch.device("meta"):
        model = AdaFocusV2(200, **{**AdaFocusV2.settings_for("paper", 224), **changes}).eval()
        frames = torch.zeros(1, 16, 3, 224, 224, dtype=torch.uint8)
    with torch.inference_mode(), MacMeter() as meter:
        model.infer({"frames": frames}, trace=Trace(1, training_parts=True))
    policy = 2048 * 64 * 9 + 576 * 2048 + 25_165_824 + 4_096
    classifier = 4096 * 4096 + 819_200 + 2 * 409_600
    assert meter.total == 16 * (FOCUS[96] + FOCUS[patch] + policy + classifier)
    assert meter.total / 1e9 == pytest.approx(published, rel=0.005)


def test_patches_keep_their_place_in_half_precision() -> None:
    model = build().train()
    seen: list[Tensor] = []
    model.policy.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    with torch.autocast("cpu", torch.bfloat16):
        found = model.loss(clip(), labelled(4))
    assert seen[0].dtype == torch.float32
    assert all(torch.isfinite(value) for value in found.values())
    sum(found.values()).backward()


def test_boxes_lie_at_the_frames_they_were_cut_from() -> None:
    model = build()
    trace = Trace(2, details=True)
    with torch.inference_mode():
        model.infer(clip(2), {"exit_at": 2}, trace=trace)
    assert [(video, step) for video, step, *_ in trace.boxes] == [(v, s) for v in (0, 1) for s in (4, 1, 6)]
    assert all(0 <= top <= 0.5 and 0 <= left <= 0.5 and (h, w) == (0.5, 0.5) for *_, top, left, h, w in trace.boxes)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'random'"):
        build(patch_policy="rndom")
    with pytest.raises(UsageError, match="larger than the frames"):
        build(patch_size=65)


def test_a_few_steps_reduce_the_loss() -> None:
    model = build(dropout=0.0, head_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        loss = sum(model.loss(clip(), labelled(4)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]
