"""AdaFocus V2 on TSM: who learns from what, one box per video, the two clips, the paper's recipes.

Gradient routing: docs/methods/adafocus-v2.md#on-tsm.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafocus.v2_tsm import AdaFocusV2TSM
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.layers.crop import crop
from harness.plan.building import build_recognizer, full_settings

CLIP = {"focus_frames": 12, "patch_size": 32}
LEARNERS = {
    "loss_glance": {"glance.backbone", "glance.aux_head"},
    "loss_learned": {"glance.head", "focus.head"},
    "loss_random": {"glance.head", "focus.head"},
    "loss_focus_learned": {"focus.backbone", "focus.aux_head", "policy"},
    "loss_focus_random": {"focus.backbone", "focus.aux_head"},
}


def build(**settings: Any) -> AdaFocusV2TSM:
    torch.manual_seed(0)
    model = AdaFocusV2TSM(5, resolution=64, **{**AdaFocusV2TSM.settings_for("tiny", 64), **CLIP, **settings})
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)  # logits and boxes that differ between videos
    if model.patch_policy == "learned":
        nn.init.normal_(model.policy.layers[0].weight)
    return model.eval()


def clips(videos: int = 3) -> dict[str, Tensor]:
    """Blotches, so that the small glance frames differ."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, frames in (("glance", 8), ("focus", 12)):
        coarse = torch.rand(videos * frames, 3, 4, 4, generator=generator)
        clip = nn.functional.interpolate(255 * coarse, size=(64, 64), mode="bilinear")
        found[name] = clip.to(torch.uint8).unflatten(0, (videos, frames))
    return found


def losses(model: AdaFocusV2TSM, random_B2: Tensor | None = None) -> dict[str, Tensor]:
    model.train()
    inputs = {name: model.normalise(clip) for name, clip in clips().items()}
    places = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) if random_B2 is None else random_B2
    return model.losses(inputs["glance"], inputs["focus"], torch.arange(3), places)


def learners(model: AdaFocusV2TSM, loss: Tensor) -> set[str]:
    """Parts that a loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {"policy" if n.startswith("policy") else ".".join(n.split(".")[:2]) for n in reached}


def test_who_learns_from_what() -> None:
    model = build()
    assert {name: learners(model, loss) for name, loss in losses(model).items()} == LEARNERS


def test_without_stop_gradient_the_policy_trains_the_glance_network() -> None:
    model = build(stop_gradient=False)
    assert "glance.backbone" in learners(model, losses(model)["loss_focus_learned"])


def test_one_pass_without_random_patches() -> None:
    assert set(losses(build(random_pass=False))) == {"loss_glance", "loss_learned", "loss_focus_learned"}
    assert set(losses(build(patch_policy="whole"))) == {"loss_glance", "loss_whole", "loss_focus_whole"}


def test_passes_are_averaged() -> None:
    """With equal patches both passes lose the same, half of what the single pass of a fixed patch loses."""
    model = build(dropout=0.0)
    nn.init.zeros_(model.policy.layers[10].weight)
    nn.init.zeros_(model.policy.layers[10].bias)
    found = losses(model, torch.full((3, 2), 0.5))
    torch.testing.assert_close(found["loss_learned"], found["loss_random"])
    torch.testing.assert_close(found["loss_focus_learned"], found["loss_focus_random"])
    single = build(patch_policy="centre", dropout=0.0)
    single.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("policy")})
    alone = losses(single)
    torch.testing.assert_close(2 * found["loss_learned"], alone["loss_centre"])
    torch.testing.assert_close(2 * found["loss_focus_learned"], alone["loss_focus_centre"])
    torch.testing.assert_close(found["loss_glance"], alone["loss_glance"])


def test_the_sum_of_both_networks_decides() -> None:
    """Computed by hand: one box for all focus frames of a video, logits averaged and added."""
    model = build()
    inputs = {name: model.normalise(clip) for name, clip in clips().items()}
    with torch.inference_mode():
        maps = model.glance.maps(nn.functional.avg_pool2d(inputs["glance"].flatten(0, 1), 4), 8)
        places = model.policy(maps.unflatten(0, (3, 8)).flatten(1, 2))
        assert (places[0] - places[1]).abs().max() > 0.01
        expected = model.glance.head(maps.mean((2, 3))).unflatten(0, (3, 8)).mean(1)
        for video in range(3):
            patches = crop(inputs["focus"][video], places[video].expand(12, 2), 32)
            expected[video] += model.focus.head(model.focus.backbone(patches, 12)).mean(0)
        trace = Trace(3, details=True)
        torch.testing.assert_close(model.infer(clips(), trace=trace), expected, rtol=1e-4, atol=1e-4)
    boxes = {(video, *box) for video, _, _, *box in trace.boxes}
    assert len(trace.boxes) == 3 * 12 and len(boxes) == 3
    work = {(key.component, key.shape): counts.tolist() for key, counts in trace.counts.items()}
    assert work["focus", (3, 32, 32)] == [12] * 3 and work["glance", (3, 16, 16)] == [8] * 3


def test_tsm_plus_sees_whole_frames() -> None:
    settings = {**full_settings("tsm-plus", "tiny", 64, {}), "num_classes": 5, "resolution": 64}
    model = build_recognizer("tsm-plus", settings)
    assert isinstance(model, AdaFocusV2TSM) and not hasattr(model, "policy")
    assert [request.frames for request in model.clip_requests()] == [8, 8]
    trace = Trace(3, details=True)
    with torch.inference_mode():
        model.eval().infer({"glance": clips()["glance"], "focus": clips()["glance"]}, trace=trace)
    assert not trace.boxes
    assert ("focus", (3, 64, 64)) in {(key.component, key.shape) for key in trace.counts}


def test_clips_are_cropped_apart_as_in_the_code_or_together() -> None:
    assert [r.crop for r in build(align_crops=False).clip_requests()] == ["shared", "own"]
    assert [r.crop for r in build(align_crops=True).clip_requests()] == ["shared", "shared"]
    assert {r.short for r in build().clip_requests()} == {"first"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_policy": "center"}, "centre"),
        ({"aux_loss": "clip"}, "video"),
        ({"patch_size": 65}, "larger than the frames"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**settings)
