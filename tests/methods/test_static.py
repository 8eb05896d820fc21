"""TSN and TSM: cost in closed form, frames at test, input share, and order: TSN cannot see it, TSM can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines.tsm import TSM
from baselines.tsn import TSN
from harness.contract.trace import Trace
from harness.measure.cost_table import metered


def clip(frames: int, side: int = 64, videos: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"frames": torch.randint(0, 256, (videos, frames, 3, side, side), dtype=torch.uint8, generator=generator)}


@pytest.mark.parametrize("cls", [TSN, TSM])
def test_paper_cost(cls: type[TSN | TSM]) -> None:
    """8 frames of ResNet-50 and a classifier for 200 classes: the published 32.7."""
    recognizer = cls(200, backbone="resnet50", frames=8)
    trace, total = metered(recognizer, clip(8, 224, videos=1))
    assert total == 8 * (4_087_136_256 + 2048 * 200)
    assert total / 1e9 == pytest.approx(32.7, rel=5e-3)
    assert [counts.tolist() for counts in trace.counts.values()] == [[8.0]]


@pytest.mark.parametrize("frames", [1, 2, 4, 8, 16])
def test_cost_is_linear_in_frames(frames: int) -> None:
    recognizer = TSN(10, backbone="restiny", resolution=64)
    (request,) = recognizer.clip_requests({"frames": frames})
    assert request.frames == frames
    assert metered(recognizer, clip(frames))[1] == 2 * frames * (8_503_296 + 960)


def test_points_of_the_frames_knob() -> None:
    points = TSN(10, backbone="restiny", resolution=64).operating_points()
    assert [p.value for p in points] == [8, 1, 2, 4, 16] and {p.knob for p in points} == {"frames"}


def test_share_makes_the_input_smaller() -> None:
    recognizer = TSN(10, backbone="restiny", resolution=64, share=0.5)
    assert recognizer.side == 32
    assert metered(recognizer, clip(8))[1] == 2 * 8 * (2_125_824 + 960)


def test_only_tsm_sees_order() -> None:
    frames = clip(8)["frames"]
    reverse = {"frames": frames.flip(1)}
    for cls, sees in ((TSN, False), (TSM, True)):
        recognizer = cls(10, backbone="restiny", resolution=64)
        torch.nn.init.normal_(recognizer.fc.weight)
        recognizer.eval()
        with torch.inference_mode():
            forward = recognizer.infer({"frames": frames}, trace=Trace(2))
            backward = recognizer.infer(reverse, trace=Trace(2))
        assert torch.allclose(forward, backward, atol=1e-4) is not sees
