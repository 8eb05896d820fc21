"""Frames from importance weights: cases of docs/methods/building-blocks.md#frame-sampling by hand."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UsageError
from harness.layers.frame_sampling import sample_frames


def taken(weights: list[float], frames: int = 16, candidates: int = 48) -> list[int]:
    return sample_frames(torch.tensor([weights]), frames, candidates)[0].tolist()


def test_equal_weights_take_the_middle_of_every_segment() -> None:
    assert taken([1 / 16] * 16) == list(range(1, 48, 3))


def test_a_peak_spills_over_to_later_frames_only() -> None:
    """Cell 3 holds frames 9 to 11 and 68 % of the weight, so eleven frames: eight of them go to 12 .. 20."""
    weights = [0.005, 0.005, 0.03, 0.68, *[0.0325] * 4, 0.03, 0.03, *[0.0186] * 4, 0.0078, 0.0078]
    assert taken(weights) == [*range(8, 21), 23, 29, 39]


@pytest.mark.parametrize(("cell", "expected"), [(15, range(32, 48)), (0, range(16)), (7, range(21, 37))])
def test_all_weight_on_one_cell(cell: int, expected: range) -> None:
    """The last cell's frames are pushed back, so that all fit in."""
    weights = [0.0] * 16
    weights[cell] = 1.0
    assert taken(weights) == list(expected)


def test_linear_inside_a_cell() -> None:
    """Two cells of 6 frames with 3/4 and 1/4 of the weight; thresholds 1/8, 3/8, 5/8, 7/8 of it."""
    assert taken([0.75, 0.25], frames=4, candidates=12) == [1, 3, 5, 9]


def test_noise_shifts_each_threshold() -> None:
    weights = torch.full((1, 4), 0.25)
    noise = torch.tensor([[0.0, 0.999, 0.0, 0.5]])
    assert sample_frames(weights, 4, 12, noise)[0].tolist() == [0, 5, 6, 10]


def test_always_increasing_and_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.1, 1.0, 10.0, 1000.0):
        weights = (sharpness * torch.randn(200, 16, generator=generator)).softmax(1)
        for noise in (None, torch.rand(200, 16, generator=generator)):
            indices = sample_frames(weights, 16, 48, noise)
            assert indices.min() >= 0
            assert indices.max() < 48
            assert (indices.diff(dim=1) > 0).all()


def test_all_candidates_can_be_taken() -> None:
    assert taken([0.9, 0.1], frames=6, candidates=6) == list(range(6))
    with pytest.raises(UsageError, match="7 frames cannot be taken out of 6"):
        taken([0.5, 0.5], frames=7, candidates=6)
