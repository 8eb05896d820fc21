"""AdaFocus V1 and V1+: who learns from what, rewards by hand, one focus batch, skipped patches, online work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adafocus.authors.v1 import parity
from adafocus.policy import cell_places
from adafocus.rewards import Reward, keep_rewards, patch_rewards
from adafocus.v1 import AdaFocusV1
from harness.authors.official import convert
from harness.authors.parity import ParityCase
from harness.contract.declarations import EMPTY, Stage
from harness.contract.trace import Trace
from harness.errors import CheckpointError, UsageError
from harness.layers.crop import hard_crop
from harness.layers.recurrent import RecurrentClassifier
from harness.measure.counter import MacMeter
from harness.plan.recipes import recipes

from mmaction.structures import ActionDataSample

PAIRS = Path(__file__).parents[1] / "authors" / "data"
VIDEOS, FRAMES = 3, 8


def build(**settings: Any) -> AdaFocusV1:
    torch.manual_seed(0)
    model = AdaFocusV1(5, resolution=64, **{**AdaFocusV1.settings_for("tiny", 64), **settings})
    for policy in (model.policy, model.skip_policy):
        if policy is not None:
            nn.init.normal_(policy.actor.weight, std=2.0)  # decisions that differ between frames
    return model.eval()


def clip(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (VIDEOS * FRAMES, 3, 4, 4), generator=generator)
    frames = nn.functional.interpolate(coarse.float(), size=(64, 64), mode="bilinear").to(torch.uint8)
    return {"frames": frames.unflatten(0, (VIDEOS, FRAMES))}


def labelled() -> list[ActionDataSample]:
    return [ActionDataSample().set_gt_label(i % 5) for i in range(VIDEOS)]


def stages(model: AdaFocusV1, size: str = "tiny") -> dict[str, Stage]:
    return {stage.name: stage for stage in model.recipe(size)}


def features(model: AdaFocusV1, x_BT3HW: Tensor, actions_BT2: Tensor) -> Tensor:
    """The classifier's input, video by video and frame by frame."""
    return torch.stack([
        torch.stack([
            torch.cat((model.glance(model.shrink(x[None]))[0], model.focus(hard_crop(x[None], a[None], 32))[0]))
            for x, a in zip(video, places, strict=True)
        ])
        for video, places in zip(x_BT3HW, actions_BT2, strict=True)
    ])


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "learning"),
    [
        ("glance", {"glance", "glance_head"}),
        ("focus", {"focus", "focus_head"}),
        ("random", {"focus", "classifier"}),
        ("policy", {"policy"}),
        ("finetune", {"classifier"}),
    ],
)
def test_each_stage_reaches_its_part_only(phase: str, learning: set[str]) -> None:
    model = build()
    model.set_stage(stages(model)[phase])
    model.train()
    losses = model.loss(clip(), labelled())
    torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == learning


def test_skip_stage_reaches_the_second_policy_only() -> None:
    model = build(skip=True)
    model.set_stage(stages(model)["skip"])
    model.train()
    losses = model.loss(clip(), labelled())
    torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"skip_policy"}


def test_value_loss_teaches_the_critic_and_the_surrogate_does_not() -> None:
    model = build()
    model.set_stage(stages(model)["policy"])
    losses = model.train().loss(clip(), labelled())
    losses["loss_policy"].backward(retain_graph=True)
    assert model.policy.critic.weight.grad is None and model.policy.actor.weight.grad.any()
    model.zero_grad()
    losses["loss_value"].backward()
    assert model.policy.critic.weight.grad.any() and model.policy.actor.weight.grad is None


@torch.inference_mode()
def test_rewards_are_what_a_walk_through_the_frames_gives() -> None:
    """Step by step with the GRU's state carried along the trajectory; the alternative starts from the same."""
    torch.manual_seed(0)
    classifier = RecurrentClassifier(5, 4, hidden=6, dropout=0.0).eval()
    glance, focus, random = torch.randn(2, 3, 2), torch.randn(2, 3, 3), torch.randn(2, 3, 3)
    keep, target = torch.tensor([[1, 0, 1], [0, 1, 1]]), torch.tensor([3, 1])
    got = {kind: patch_rewards(kind, classifier, glance, focus, random, target) for kind in get_args(Reward)}
    got["keep"] = keep_rewards(classifier, glance, focus, keep, 0.1, target)
    for video in range(2):

        def after(step: int, patch: Tensor, state: Tensor, video: int = video) -> tuple[float, Tensor]:
            _, state = classifier.gru(torch.cat((glance[video, step], patch))[None, None], state)
            return float(classifier.fc(state[0, 0]).softmax(-1)[target[video]]), state

        state, kept, last = torch.zeros(1, 1, 6), torch.zeros(1, 1, 6), 0.0
        for step in range(3):
            patch, nothing = focus[video, step], torch.zeros(3)
            p, ahead = after(step, patch, state)
            expected = {"conf": p, "prev": p - last}
            expected["random"] = p - after(step, random[video, step], state)[0]
            expected["padding"] = p - after(step, nothing, state)[0]
            gain = after(step, patch, kept)[0] - after(step, nothing, kept)[0] - 0.1
            expected["keep"] = gain if keep[video, step] else 0.0
            for kind, value in expected.items():
                assert got[kind][video, step].item() == pytest.approx(value, abs=1e-6), kind
            state, last = ahead, p
            kept = after(step, patch if keep[video, step] else nothing, kept)[1]


def test_the_reward_that_lacks_its_features_says_so() -> None:
    classifier, features = RecurrentClassifier(5, 4, hidden=6, dropout=0.0).eval(), torch.randn(2, 3, 5)
    with pytest.raises(UsageError, match="needs the features of random patches"):
        patch_rewards("random", classifier, features[..., :2], features[..., 2:], None, torch.tensor([3, 1]))


def test_random_patches_reach_every_offset() -> None:
    """floor(a (side - P)) of a ~ U[0, 1): 0 .. side - P - 1, as the authors' integers."""
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(4000, 3, 64, 64)
    torch.manual_seed(0)
    offsets = hard_crop(ramp, AdaFocusV1._anywhere(ramp[:, None])[:, 0], 32)[:, 0, 0, 0].unique()
    assert offsets.tolist() == list(range(32))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="reward"):
        build(reward="luck")
    with pytest.raises(UsageError, match="larger than the frames"):
        build(patch_size=65)
    with pytest.raises(UsageError, match="patches"):
        build().infer(clip(), {"patches": "left"}, trace=Trace(VIDEOS))


# -- evaluation ----------------------------------------------------------------------------------


def test_cells_are_counted_row_by_row() -> None:
    places = cell_places(torch.tensor([0, 1, 7, 24, 48]), 7)
    torch.testing.assert_close(places, torch.tensor([[0, 0], [0, 1 / 6], [1 / 6, 0], [0.5, 0.5], [1, 1]]))


@torch.inference_mode()
def test_all_patches_go_through_the_focus_network_at_once() -> None:
    """After the policy has placed them all; on a CPU as few batches that fit the caches, not frame by frame."""
    model, calls = build(), []
    model.focus.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    trace = Trace(VIDEOS, details=True)
    logits = model.infer(clip(), trace=trace)
    assert calls == [VIDEOS * FRAMES]
    assert {key.component for key in trace.counts} == {"glance", "policy", "focus", "classifier", "head"}
    boxes = {(video, step): (top, left) for video, step, _, top, left, _, _ in trace.boxes}
    actions = 2 * torch.tensor([[boxes[video, step] for step in range(FRAMES)] for video in range(VIDEOS)])
    x = model.normalise(clip()["frames"])
    expected = model.classifier(features(model, x, actions + 1e-6))[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_patches_without_policy() -> None:
    model = build()
    model.policy.register_forward_hook(lambda *_: pytest.fail("the policy ran"))
    for patches in ("random", "centre"):
        trace = Trace(VIDEOS, details=True)
        model.infer(clip(), {"patches": patches}, trace=trace)
        assert "policy" not in {key.component for key in trace.counts}
        corners = {(top, left) for *_, top, left, _, _ in trace.boxes}
        assert (corners == {(0.25, 0.25)}) == (patches == "centre")


@pytest.mark.parametrize("skip", [False, True])
@torch.inference_mode()
def test_online_agrees_with_offline(skip: bool) -> None:
    model, state = build(skip=skip), None
    for frame in clip()["frames"].unbind(1):
        logits, state = model.step(frame, state)
    torch.testing.assert_close(logits, model.infer(clip(), trace=Trace(VIDEOS)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_skipped_patches_are_not_computed() -> None:
    model = build(skip=True)
    assert model.skip_policy is not None
    out_BT2 = model.skip_policy.act(maps(model))[0]
    model.skip_policy.actor.bias[0] += (out_BT2[..., 1] - out_BT2[..., 0]).median()  # about half is kept
    with MacMeter() as meter:
        trace = Trace(VIDEOS, meter=meter, details=True)
        logits = model.infer(clip(), trace=trace)
    keep = trace.decisions["keep"]
    assert 0 < keep.sum() < keep.size
    key = next(key for key in trace.counts if key.component == "focus")
    assert trace.counts[key].tolist() == keep.sum(1).tolist()
    ((macs, rows),) = trace.macs[key]
    patch = torch.zeros(1, 3, 32, 32)
    with MacMeter() as one:
        model.focus(patch)
    assert rows == keep.sum() and macs == rows * one.total
    assert {(video, step) for video, step, *_ in trace.boxes} == set(zip(*keep.nonzero(), strict=True))
    cells = model.policy.act(maps(model))[0].argmax(-1)
    rows_BTD = features(model, model.normalise(clip()["frames"]), cell_places(cells, 7))
    rows_BTD[..., model.glance.dim :] *= torch.from_numpy(keep)[..., None]
    torch.testing.assert_close(logits, model.classifier(rows_BTD)[:, -1], atol=1e-4, rtol=1e-4)


def maps(model: AdaFocusV1) -> Tensor:
    x = model.normalise(clip()["frames"])
    return model.glance.features(model.shrink(x.flatten(0, 1))).unflatten(0, x.shape[:2])


@torch.inference_mode()
def test_a_batch_may_be_skipped_entirely() -> None:
    model = build(skip=True)
    assert model.skip_policy is not None
    nn.init.zeros_(model.skip_policy.actor.weight)
    with torch.no_grad():
        model.skip_policy.actor.bias.copy_(torch.tensor([1.0, -1.0]))
    assert torch.isfinite(model.infer(clip(), trace=Trace(VIDEOS))).all()


# -- recipes and checkpoints ---------------------------------------------------------------------


def test_plus_shares_v1() -> None:
    """V1's artifact is asked for with the settings that differ from its defaults, and no others."""
    inits = stages(build(skip=True, skip_cost=0.2))["skip"].init
    assert {init.into for init in inits} >= {"glance", "focus", "policy", "classifier"}
    assert all(init.source == "method:adafocus-v1" and not init.settings for init in inits)
    inits = stages(build(skip=True, patch_size=24))["skip"].init
    assert all(dict(init.settings) == {"patch_size": 24} for init in inits)


def official(**without: bool) -> dict[str, Any]:
    """A file of stage 3 in the authors' layout: the focuser repeats the policy twice."""
    tensors = json.loads((PAIRS / "v1_actnet_p128.json").read_text())["tensors"]
    parts = {part: {n: torch.empty(s, device="meta") for n, s in group.items()} for part, group in tensors.items()}
    for copy in ("policy", "policy_old"):
        parts["focuser"] |= {f"policy.{copy}.{n}": value for n, value in parts["policy"].items()}
    content = {"epoch": 3, "model_state_dict": {}, "acc": 75.0, "optimizer": None, **parts}
    return content | {name: None for name, gone in without.items() if gone}


def test_official_file() -> None:
    converted = convert(official())
    assert (converted.method, converted.unused, converted.unplaced) == ("adafocus-v1", (), ())
    assert converted.settings["grid"] == 7 and converted.settings["num_classes"] == 200
    with torch.device("meta"):
        model = AdaFocusV1(**converted.settings)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.state.items()} == expected


def test_a_file_without_policy_is_refused() -> None:
    with pytest.raises(CheckpointError, match="second stage .*, without policy; it cannot be evaluated"):
        convert(official(policy=True))


@pytest.mark.parametrize(("part", "other"), [("glancer", "focuser"), ("focuser", "glancer")])
@pytest.mark.parametrize("empty", [True, False])
def test_a_backbone_alone_is_refused(part: str, other: str, empty: bool) -> None:
    """The authors' globalcnn and localcnn files."""
    content = {part: official()[part], "best_acc": 70.0} | ({other: None, "fc": None, "policy": None} if empty else {})
    with pytest.raises(CheckpointError, match=f"a backbone of AdaFocus V1's first stage .{part}.; it cannot be"):
        convert(content)


@pytest.mark.parametrize("part", ["glancer", "focuser", "fc", "policy"])
def test_parts_that_are_no_state_dicts_are_refused(part: str) -> None:
    with pytest.raises(CheckpointError, match=f"no state dict at {part}"):
        convert(official() | {part: [1, 2]})


def test_copies_of_the_policy_that_differ_are_reported() -> None:
    """The authors evaluate `policy`, whatever the copies inside the focuser hold."""
    content = official()
    name = "actor.0.bias"
    content["policy"][name] = torch.zeros(49)
    content["focuser"][f"policy.policy.{name}"] = torch.zeros(49)
    content["focuser"][f"policy.policy_old.{name}"] = torch.ones(49)
    converted = convert(content)
    assert converted.state["policy.actor.bias"] is content["policy"][name]
    assert converted.differing == (f"focuser.policy.policy_old.{name}",)
    assert f"LEFT, unlike the tensors they should repeat: focuser.policy.policy_old.{name}" in converted.report()


def test_other_pairs_are_not_ours() -> None:
    assert parity(ParityCase("other", {"method": "AdaFocus V2"}, {"logits": np.zeros(1)})) is None


@pytest.mark.parametrize("recipe", [r for r in recipes() if r.method in ("adafocus-v1", "adafocus-v1-plus")])
def test_recipes_of_the_paper(recipe: Any) -> None:
    """They name stages and modules that exist, in the order of the method's own recipe."""
    with torch.device("meta"):
        model = AdaFocusV1(200, skip=recipe.method == "adafocus-v1-plus", **recipe.settings)
    assert [stage.name for stage in recipe.stages] == [stage.name for stage in model.recipe("paper")]
    for stage, usual in zip(recipe.stages, model.recipe("paper"), strict=True):
        model.set_stage(stage)
        assert (stage.trained, stage.settings) == (usual.trained, usual.settings)
    assert model.clip_requests(EMPTY)[0].frames == 16
