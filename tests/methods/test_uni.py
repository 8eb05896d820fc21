"""Uni-AdaFocus: who learns from what, which frames and boxes are looked at, exits that stop, published costs.

Gradient routing: docs/methods/uni-adafocus.md#spatial-policy, #losses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafocus.uni import UniAdaFocus
from harness.contract.exits import NEVER
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.measure.counter import MacMeter
from harness.plan.recipes import recipes
from harness.work.optimization import build_optimizer

from mmaction.structures import ActionDataSample

CLASSIFIERS = {"classifier", "glance_classifier"}


def build(**settings: Any) -> UniAdaFocus:
    torch.manual_seed(0)
    base = {**UniAdaFocus.settings_for("tiny", 64), "policies_centred": False, "size_weight": 1.0}
    model = UniAdaFocus(5, resolution=64, **{**base, **settings})
    if model.policies.temporal == "learned":
        nn.init.normal_(model.temporal_policy.Tconv[6].weight, std=2.0)
    if model.policies.spatial == "learned":
        nn.init.normal_(model.spatial_policy.encoder[9].weight, std=0.5)
    return model.eval()


def clip(model: UniAdaFocus, videos: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (videos, model.candidates, 3, 64, 64)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return dict(model.as_clips(frames))


def losses(model: UniAdaFocus) -> dict[str, Tensor]:
    model.train()
    generator = torch.Generator().manual_seed(1)
    return model.losses(clip(model), torch.arange(4), torch.rand(4, 8, 3, generator=generator))


def learners(model: UniAdaFocus, loss: Tensor) -> set[str]:
    """Parts that a loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    parameters = ((name.split(".")[0], p) for name, p in model.named_parameters())
    return {part for part, p in parameters if p.grad is not None and p.grad.abs().sum() > 0}


def test_who_learns_from_what() -> None:
    model = build(pixel_gradient=False)
    expected = {
        "loss_glance": {"glance", "glance_head"},
        "loss_temporal": {"glance", "glance_head", "temporal_policy"},
        "loss_spatial": {"spatial_policy", "spatial_head"},
        "loss_size": {"spatial_policy"},
        "loss_learned": {"glance", "glance_classifier", "focus", "classifier"},
        "loss_random": {"glance", "glance_classifier", "focus", "classifier"},
        "loss_focus_learned": {"focus", "focus_head"},
        "loss_focus_random": {"focus", "focus_head"},
    }
    assert {name: learners(model, loss) for name, loss in losses(model).items()} == expected


def test_temporal_policy_can_learn_alone() -> None:
    model = build(stop_gradient=True)
    assert learners(model, losses(model)["loss_temporal"]) == {"temporal_policy"}


def test_pixels_can_train_the_spatial_policy() -> None:
    model = build(pixel_gradient=True)
    assert learners(model, losses(model)["loss_focus_learned"]) == {"focus", "focus_head", "spatial_policy"}


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"temporal": "uniform"}, {"loss_temporal"}),
        ({"deformable": False}, {"loss_size"}),
        ({"random_pass": False}, {"loss_random", "loss_focus_random"}),
        ({"aux_losses": False}, {"loss_glance", "loss_focus_learned", "loss_focus_random"}),
        ({"spatial": "random"}, {"loss_learned", "loss_focus_learned", "loss_spatial", "loss_size"}),
    ],
)
def test_switches(settings: dict[str, Any], gone: set[str]) -> None:
    """Each switch takes its losses away, every parameter still learns, and it can be evaluated."""
    model = build(**settings)
    found = losses(model)
    assert set(losses(build())) - set(found) == gone
    sum(found.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.inference_mode():
        assert model.eval().infer(clip(model), trace=Trace(4)).shape == (4, 5)


def test_weights_of_the_losses() -> None:
    """Glance and focus steps share each pass's mean (docs/methods/uni-adafocus.md#losses); both passes count half."""
    model = build(dropout=0.0, head_dropout=0.0, deformable=False, temporal="uniform", frames=4)
    nn.init.zeros_(model.spatial_policy.encoder[9].weight)
    noise = torch.full((4, 4, 3), 0.5)  # random patches in the middle, as the learned ones
    found = model.train().losses(clip(model), torch.arange(4), noise)
    torch.testing.assert_close(found["loss_learned"], found["loss_random"])
    for classifier in (model.classifier, model.glance_classifier):
        for head in classifier.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    flat = model.losses(clip(model), torch.arange(4), noise)
    chance = torch.tensor(5.0).log()
    torch.testing.assert_close(flat["loss_learned"] + flat["loss_random"], chance)


def test_statistics_move_as_often_as_in_the_code() -> None:
    """Per step: twice in the glance classifier's MLP and the spatial policy, once in the temporal policy."""
    model = build(classifier_hidden=16)
    losses(model)
    moved = {name: int(n) for name, n in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert moved["glance_classifier.embed.1.num_batches_tracked"] == 2
    assert moved["classifier.embed.1.num_batches_tracked"] == 2
    assert moved["spatial_policy.encoder.1.num_batches_tracked"] == 2
    assert moved["temporal_policy.Tconv.1.num_batches_tracked"] == 1


def test_focus_network_runs_once_for_both_passes() -> None:
    """So that learned and random patches share batch statistics."""
    model = build()
    batches: list[int] = []
    model.focus.register_forward_hook(lambda _m, args, _o: batches.append(len(args[0])))
    losses(model)
    assert batches == [2 * 4 * 8]


def test_uniform_weights_look_at_the_glance_frames() -> None:
    model = build(temporal="uniform", order="temporal")
    trace = Trace(2, details=True)
    with torch.inference_mode():
        model.infer(clip(model, 2), trace=trace)
    assert [box[1] for box in trace.boxes] == 2 * list(range(1, 24, 3))


def test_focus_frames_follow_the_weights() -> None:
    """All weight on glance frame 2: frames 6, 7, 8 and those after them."""
    model = build(order="temporal")
    peak = torch.eye(8)[2]
    model.temporal_policy.register_forward_hook(lambda _module, _inputs, weights: peak.expand_as(weights))
    trace = Trace(2, details=True)
    with torch.inference_mode():
        model.infer(clip(model, 2), trace=trace)
    assert [box[1] for box in trace.boxes] == 2 * list(range(6, 14))


def test_boxes_stay_in_the_frame_and_differ() -> None:
    model = build()
    model.spatial_policy.train()  # batch statistics: untrained features would all be about the same
    trace = Trace(4, details=True)
    with torch.inference_mode():
        model.infer(clip(model), trace=trace)
    sizes = torch.tensor([box[5:] for box in trace.boxes])
    assert len(trace.boxes) == 4 * 8
    assert 0.5 - 1e-4 <= sizes.min() < sizes.max() <= 1
    assert (sizes[:, 0] - sizes[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("settings", [{}, {"classifier_hidden": 32, "classifier_shared": False}, {"exit_every": 3}])
def test_forced_exits_give_the_logits_of_all_exits(settings: dict[str, Any]) -> None:
    model = build(**settings)
    with torch.inference_mode():
        expected = model.infer_exits(clip(model), trace=Trace(4))
        assert expected.shape == (4, model.exits, 5)
        for k in range(model.exits):
            trace = Trace(4)
            logits = model.infer(clip(model), model.exit_settings(k), trace=trace)
            torch.testing.assert_close(logits, expected[:, k], atol=1e-4, rtol=1e-4)
            assert trace.exit_step.tolist() == [k] * 4
            assert trace.frames_used.tolist() == [model.exit_frames[k]] * 4


def test_exit_frames() -> None:
    assert build().exit_frames == list(range(8, 17))
    assert build(exit_every=3).exit_frames == [8, 11, 14, 16]
    assert build(exit_every=0).exits == 0


def test_exits_really_stop() -> None:
    """One video leaves after the glance, one after two boxes: neither policy nor focus network sees them again.

    Exits where nobody leaves are no segments of their own.
    """
    model = build(exit_score="logit")
    with torch.inference_mode():
        scores = model.infer_exits(clip(model), trace=Trace(4)).amax(-1)
    thresholds, leaves, there = [NEVER] * 9, [8] * 4, [0, 1, 2, 3]
    for step in (0, 2):
        surest = max(there, key=lambda v: scores[v, step])
        others = max(float(scores[v, step]) for v in there if v != surest)
        thresholds[step] = (float(scores[surest, step]) + others) / 2
        leaves[surest] = step
        there.remove(surest)
    seen: dict[str, list[int]] = {name: [] for name in ("focus", "spatial_policy", "temporal_policy")}
    for name, batches in seen.items():
        part = model.get_submodule(name)
        part.register_forward_hook(lambda _m, args, _o, batches=batches: batches.append(len(args[0])))
    trace = Trace(4)
    with torch.inference_mode():
        model.infer(clip(model), {"thresholds": thresholds}, trace=trace)
    assert trace.exit_step.tolist() == leaves
    assert seen == {"focus": [3 * 2, 2 * 6], "spatial_policy": [3], "temporal_policy": [3]}
    counts = {key.component: values.tolist() for key, values in trace.counts.items()}
    assert counts["focus"] == leaves
    assert counts["glance"] == [8] * 4
    assert counts["spatial policy"] == [float(step > 0) for step in leaves]


def test_everybody_leaves_after_the_glance() -> None:
    model = build()
    trace = Trace(4)
    with torch.inference_mode():
        model.infer(clip(model), {"thresholds": [0.0] * 9}, trace=trace)
    assert trace.exit_step.tolist() == [0] * 4
    assert {key.component for key in trace.counts} == {"glance", "classifier", "head"}


def test_training_parts_are_counted_apart() -> None:
    model = build(classifier_hidden=32, classifier_shared=False)
    with torch.inference_mode():
        plain, whole, leaving = Trace(4), Trace(4, training_parts=True), Trace(4, training_parts=True)
        model.infer(clip(model), trace=plain)
        model.infer(clip(model), trace=whole)
        model.infer(clip(model), {"exit_at": 0}, trace=leaving)
    assert not any(key.training_only for key in plain.counts)
    extra = [(*key[:3], float(n[0])) for key, n in whole.counts.items() if key.training_only]
    assert sorted(extra) == [
        ("focus head", "", (96,), 8),
        ("glance head", "", (64,), 8),
        ("head", "focus", (32,), 7),
        ("head", "glance", (32,), 8),
        ("spatial head", "", (8, 64, 4, 4), 1),
    ]
    heads = {key.training_only: float(n[0]) for key, n in leaving.counts.items() if key.component == "head"}
    assert heads == {True: 7, False: 1}


def test_training_parts_without_exits() -> None:
    """No exit runs the last glance step's head, so it is counted with the others."""
    model = build(classifier_hidden=32, classifier_shared=False, exit_every=0)
    trace = Trace(4, training_parts=True)
    with torch.inference_mode():
        model.infer(clip(model), trace=trace)
    (rows,) = (n for key, n in trace.counts.items() if key[:2] == ("head", "glance"))
    assert rows.tolist() == [8] * 4


def test_official_tensor_input() -> None:
    """mmaction2's tools hand over one tensor of candidates."""
    model = build()
    frames = clip(model)["candidates"]
    with torch.inference_mode():
        assert torch.equal(model.extract_feat(frames), model.infer(clip(model), trace=Trace(4)))
    with pytest.raises(UsageError, match=r"expected clips \(B, 24, 3, H, W\)"):
        model.extract_feat(frames[:, :8])


def test_random_boxes_can_be_drawn() -> None:
    model = build(spatial="random")

    def run(seed: int | None, point: dict[str, Any]) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model.infer(clip(model), point, trace=Trace(4), generator=generator)

    with torch.inference_mode():
        drawn = [run(seed, {}) for seed in (0, 0, 1, None, None)]
        exiting = run(0, {"thresholds": [NEVER] * 9})
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[3], drawn[4])
    assert not torch.equal(drawn[0], drawn[2])
    torch.testing.assert_close(exiting, drawn[0], atol=1e-4, rtol=1e-4)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'uniform'"):
        build(temporal="unifrm")
    with pytest.raises(UsageError, match="cannot be taken out of 8 x 1"):
        build(frames=9, group=1)
    with pytest.raises(UsageError, match="larger than the frames"):
        build(patch_size=65)
    with pytest.raises(UsageError, match="3 thresholds for 9 exits"):
        build().infer(clip(build()), {"thresholds": [0.0] * 3}, trace=Trace(4))


def test_a_few_steps_reduce_the_loss() -> None:
    model = build(dropout=0.0, head_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    samples = [ActionDataSample().set_gt_label(i % 5) for i in range(4)]
    history = []
    for _ in range(12):
        loss = sum(value for name, value in model.loss(clip(model), samples).items() if "loss" in name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


CONSTANTS = {  # docs/measurement.md#gflops, multiply-accumulates of a video without batch norms, 200 classes
    "glance": 16 * 299_494_272,
    "spatial policy": 822_484_992,
    "temporal policy": 4_129_792,
    "classifier": 16 * (1280 + 2048) * 4096,
    "head": 16 * (819_200 + 1_638_400),
}
FOCUS = {96: 750_698_496, 128: 1_334_575_104, 160: 2_085_273_600}


def paper(patch: int, device: str = "meta") -> tuple[UniAdaFocus, dict[str, Tensor]]:
    with torch.device(device):
        model = UniAdaFocus(200, **{**UniAdaFocus.settings_for("paper", 224), "patch_size": patch}).eval()
        return model, dict(model.as_clips(torch.zeros(1, 48, 3, 224, 224, dtype=torch.uint8)))


@pytest.mark.parametrize(("patch", "published"), [(96, 17.89), (128, 27.23), (160, 39.24)])
def test_published_cost(patch: int, published: float) -> None:
    """Part by part; the published figures include all steps' heads but not those of single frames."""
    model, frames = paper(patch)
    with torch.inference_mode(), MacMeter() as meter:
        trace = Trace(1, meter=meter, training_parts=True)
        model.infer(frames, trace=trace)
    measured: dict[str, float] = {}
    for key, events in trace.macs.items():
        if not (key.training_only and key.component != "head"):
            measured[key.component] = measured.get(key.component, 0.0) + sum(macs for macs, _ in events)
    assert measured == CONSTANTS | {"focus": 16 * FOCUS[patch]}
    assert sum(measured.values()) / 1e9 == pytest.approx(published, rel=5e-4)


def test_published_exit_costs() -> None:
    """docs/measurement.md#cost-of-exits: 16 glances, from exit 1 on both policies, a patch per exit;."""
    model, frames = paper(128, "cpu")
    measured = []
    for step in (0, 1):
        with torch.inference_mode(), MacMeter() as meter:
            model.infer(frames, {"exit_at": step}, trace=Trace(1))
        measured.append(meter.total)
    glance = CONSTANTS["glance"] + 16 * 1280 * 4096  # exit 1, where it is forced, needs no head of exit 0
    policies = CONSTANTS["spatial policy"] + CONSTANTS["temporal policy"]
    assert measured == [glance + 819_200, glance + policies + FOCUS[128] + 2048 * 4096 + 1_638_400]
    assert measured[0] / 1e9 == pytest.approx(4.889, rel=0.005)
    assert measured[1] / 1e9 == pytest.approx(7.060, rel=0.005)


@pytest.mark.parametrize(
    ("dataset", "classes", "batch", "lr", "decay", "prior", "head_dropout"),
    [
        ("activitynet", 200, 32, 0.002, 2e-4, 1.0, 0.2),
        ("fcvid", 239, 64, 0.004, 1e-4, 1.0, 0.2),
        ("mini-kinetics", 200, 48, 0.003, 1e-4, 0.75, 0.1),
    ],
)
def test_paper_recipes(
    dataset: str, classes: int, batch: int, lr: float, decay: float, prior: float, head_dropout: float
) -> None:
    """docs/methods/uni-adafocus.md#modules, #training, #early-exits; the model is built with the recipe's settings."""
    recipe = next(r for r in recipes() if (r.method, r.dataset) == ("uni-adafocus", dataset))
    (stage,) = recipe.stages
    assert (stage.batch_size, stage.epochs, stage.lr, stage.weight_decay) == (batch, 50, lr, decay)
    assert (stage.optimizer, stage.momentum, stage.schedule, stage.clip_grad) == ("SGD", 0.9, "cosine", None)
    assert recipe.settings == {
        "frames": 16,
        "glance_frames": 16,
        "group": 3,
        "patch_size": 128,
        "smallest_box": 96,
        "glance": "mobilenet_v2",
        "focus": "resnet50",
        "order": "temporal",
        "dropout": 0.2,
        "head_dropout": head_dropout,
        "size_weight": prior,
        "exit_score": "logit",
    }
    rates = {module: group.lr_mult for group in stage.groups for module in group.modules}
    assert rates == {
        **dict.fromkeys(("spatial_policy", "temporal_policy"), 0.2),
        **dict.fromkeys(("glance", "glance_head", "spatial_head"), 0.5),
        **dict.fromkeys(CLASSIFIERS, 20.0),
    }
    assert sum("batch norm sees the whole batch" in departure for departure in stage.departures) == 1
    with torch.device("meta"):
        model = UniAdaFocus(
            classes, resolution=224, **{**UniAdaFocus.settings_for("paper", 224), **recipe.settings}
        )
    model.set_stage(stage)
    assert build_optimizer(model, stage).param_groups
    assert model.stretch == pytest.approx((96 / 128, 224 / 128))
    assert (model.candidates, model.exits) == (48, 17)
    assert (model.exit_score, model.pixel_gradient) == ("logit", False)
    assert [part[0].p for part in (model.glance_head, model.focus_head)] == [head_dropout] * 2
