"""AdaFocus V1 on TSM: what each stage trains, rewards, places, the policy's statistics, the paper's recipes.

Stages: docs/methods/adafocus-v1.md#on-tsm, #learning-rates.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafocus.authors.v1_tsm import from_official
from adafocus.clip_nets import stacked
from adafocus.v1_tsm import AdaFocusV1TSM
from harness.contract.declarations import Stage
from harness.contract.trace import Trace
from harness.errors import CheckpointError, UsageError
from harness.layers.crop import hard_crop
from harness.work.optimization import optimizer_groups

from mmaction.structures import ActionDataSample

CLIP = {"focus_frames": 12, "patch_size": 32}
LEARNERS = {
    "glance": {"glance.backbone", "glance.head"},
    "focus": {"focus.backbone", "focus.head"},
    "random": {"focus.backbone", "focus.head"},
    "policy": {"policy"},
    "finetune": {"focus.head"},
}


def build(**settings: Any) -> AdaFocusV1TSM:
    torch.manual_seed(0)
    model = AdaFocusV1TSM(5, resolution=64, **{**AdaFocusV1TSM.settings_for("tiny", 64), **CLIP, **settings})
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)  # logits and places that differ between videos
    nn.init.normal_(model.policy.encoder[0].weight)
    return model.eval()


def clips(videos: int = 4) -> dict[str, Tensor]:
    """Blotches, brighter from video to video, so that the small glance frames differ."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, frames in (("glance", 8), ("focus", 12)):
        light = torch.linspace(0.2, 1, videos).repeat_interleave(frames)[:, None, None, None]
        coarse = light * torch.rand(videos * frames, 3, 4, 4, generator=generator)
        clip = nn.functional.interpolate(255 * coarse, size=(64, 64), mode="bilinear")
        found[name] = clip.to(torch.uint8).unflatten(0, (videos, frames))
    return found


def labelled(videos: int = 4) -> list[ActionDataSample]:
    return [ActionDataSample().set_gt_label(i % 5) for i in range(videos)]


def stages(model: AdaFocusV1TSM, size: str = "tiny") -> dict[str, Stage]:
    return {stage.name: stage for stage in model.recipe(size)}


@pytest.mark.parametrize("name", LEARNERS)
def test_what_each_stage_trains(name: str) -> None:
    model = build()
    stage = stages(model)[name]
    model.set_stage(stage)
    model.train()
    wanted = {request.name for request in model.clip_requests(stage=stage)}
    losses = model.loss({n: c for n, c in clips().items() if n in wanted}, labelled())
    torch.stack([value for key, value in losses.items() if "loss" in key]).sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"policy" if n.startswith("policy") else ".".join(n.split(".")[:2]) for n in reached} == LEARNERS[name]


def test_dropout_is_off_where_only_the_head_is_trained() -> None:
    model = build()
    for name, dropping in {"random": True, "finetune": False}.items():
        model.set_stage(stages(model)[name])
        model.train()
        assert model.focus.dropout.training is dropping


def test_paper_learning_rates_are_those_that_were_meant() -> None:
    """All of the focus network at 1e-5 and its head at 0.01; the released code trains its first convolution only."""
    model = build()
    model.set_stage(stages(model, "paper")["random"])
    rates = {sum(p.numel() for p in group["params"]): group["lr"] for group in optimizer_groups(model, model.stage)}
    backbone, head = (sum(p.numel() for p in part.parameters()) for part in (model.focus.backbone, model.focus.head))
    assert rates == {backbone: pytest.approx(1e-5), head: pytest.approx(0.01)}
    model.set_stage(stages(model, "paper")["finetune"])
    (group,) = optimizer_groups(model, model.stage)
    assert group["lr"] == 5e-4 and sum(p.numel() for p in group["params"]) == head


def test_both_networks_are_added() -> None:
    """Computed by hand: one place on whole pixels for all focus frames of a video."""
    model = build()
    inputs = {name: model.normalise(clip) for name, clip in clips().items()}
    with torch.inference_mode():
        maps = model.glance.maps(nn.functional.avg_pool2d(inputs["glance"].flatten(0, 1), 4), 8)
        out, _, _ = model.policy(stacked(maps, 8)[:, None])
        places = torch.sigmoid(out[:, 0])
        assert (places[0] - places[-1]).abs().max() > 0.01
        expected = model.glance.head(maps.mean((2, 3))).unflatten(0, (4, 8)).mean(1)
        for video in range(4):
            patches = hard_crop(inputs["focus"][video], places[video].expand(12, 2), 32)
            expected[video] += model.focus.head(model.focus.backbone(patches, 12)).mean(0)
        trace = Trace(4, details=True)
        torch.testing.assert_close(model.infer(clips(), trace=trace), expected, rtol=1e-4, atol=1e-4)
    assert len(trace.boxes) == 4 * 12 and len({(video, *box) for video, _, _, *box in trace.boxes}) == 4


@pytest.mark.parametrize("patches", ["random", "centre"])
def test_other_patches_run_no_policy(patches: str) -> None:
    trace = Trace(4)
    with torch.inference_mode():
        build().infer(clips(), {"patches": patches}, trace=trace)
    assert {key.component for key in trace.counts} == {"glance", "focus"}
    with pytest.raises(UsageError, match="did you mean"):
        build().infer(clips(), {"patches": "center"}, trace=trace)


def test_drawn_places_are_spread_around_the_mean() -> None:
    model = build(action_std=0.05)
    nn.init.zeros_(model.policy.actor.weight)
    nn.init.zeros_(model.policy.actor.bias)
    with torch.inference_mode():
        trace = Trace(4, details=True)
        model.infer(clips(), trace=trace, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([box[3:5] for box in trace.boxes[::12]]) / 0.5  # the patch is half the side
    assert 0.01 < (corners - 0.5).abs().mean() < 0.1


def test_policy_moves_towards_the_better_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewarded for looking at the lower right: after some updates the mean has gone there."""
    model = build(samples=8)
    nn.init.normal_(model.policy.actor.weight, std=0.01)
    stage = stages(model)["policy"]
    model.set_stage(stage)
    model.train()

    def lower_right(_focus: Tensor, places_B2: Tensor, *_: Tensor) -> Tensor:
        return places_B2.mean(1)

    monkeypatch.setattr(model, "_truth", lower_right)
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=stage.lr)
    maps, logits = torch.randn(16, 8 * 64, 4, 4), torch.zeros(16, 5)
    for _ in range(40):
        losses = model._policy_losses(torch.zeros(16, 12, 3, 1, 1), maps, logits, torch.zeros(16, dtype=torch.int64))
        optimizer.zero_grad()
        (losses["loss_policy"] + losses["loss_value"]).backward()
        optimizer.step()
    out, _, _ = model.policy(maps[:, None])
    assert torch.sigmoid(out).mean() > 0.7


def test_fine_tuning_and_test_look_at_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both use what training collected in the policy's batch norms."""
    model = build()
    with torch.inference_mode():
        trace = Trace(4, details=True)
        model.infer(clips(), trace=trace)
    seen: list[Tensor] = []
    look = model.look
    monkeypatch.setattr(model, "look", lambda focus, places: (seen.append(places), look(focus, places))[1])
    model.set_stage(stages(model)["finetune"])
    model.train().loss(clips(), labelled(4))
    top = torch.tensor([box[3] for box in trace.boxes if box[1] == 0]) / (1 - trace.boxes[0][5])
    torch.testing.assert_close(seen[0][:, 0], top, atol=1e-5, rtol=0)


def test_a_file_without_policy_is_refused() -> None:
    content = {
        "glancer": {"net.classifier.weight": torch.zeros(5, 1280)},
        "focuser": {"net.base_model.0.weight": torch.zeros(64, 3, 7, 7)},
        "fc": {"weight": torch.zeros(5, 2048)},
        "policy": None,
    }
    with pytest.raises(CheckpointError, match="without policy"):
        from_official(content)


@pytest.mark.parametrize("settings", [{"patch_size": 65}, {"samples": 0}])
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build(**settings)
