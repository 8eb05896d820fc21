"""Temporal shift against mmaction2's, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import harness.compat.imports  # noqa: F401  (before mmaction)
from harness.errors import UsageError
from harness.layers.temporal_shift import TemporalShift, temporal_shift

from mmaction.models.backbones.resnet_tsm import TemporalShift as MMActionShift


@pytest.mark.parametrize(("channels", "segments"), [(8, 4), (16, 8), (24, 3), (20, 1)])
def test_equals_mmaction(channels: int, segments: int) -> None:
    frames = torch.randn(2 * segments, channels, 3, 5)
    assert torch.equal(temporal_shift(frames, segments), MMActionShift.shift(frames, segments, shift_div=8))


def test_by_hand() -> None:
    """First eighth from the next frame, second from the previous one, zeros at the ends, the rest in place."""
    frames = torch.arange(1.0, 25).view(3, 8, 1, 1)
    shifted = temporal_shift(frames, 3).view(3, 8)
    assert shifted[:, 0].tolist() == [9, 17, 0]
    assert shifted[:, 1].tolist() == [0, 2, 10]
    assert torch.equal(shifted[:, 2:], frames.view(3, 8)[:, 2:])


def test_clips_do_not_mix() -> None:
    frames = torch.ones(4, 8, 1, 1)
    assert temporal_shift(frames, 2)[:, 0, 0, 0].tolist() == [1, 0, 1, 0]


def test_gradient_and_memory_format() -> None:
    frames = torch.randn(4, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 2), frames)
    channels_last = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last)
    assert temporal_shift(channels_last, 2).is_contiguous(memory_format=torch.channels_last)


def test_attached_to_a_convolution() -> None:
    conv, shift = nn.Conv2d(8, 4, 1), TemporalShift()
    frames = torch.randn(4, 8, 2, 2)
    expected = conv(temporal_shift(frames, 4))
    shift.attach(conv)
    shift.segments = 4
    torch.testing.assert_close(conv(frames), expected)
    assert shift.places == 1


def test_refuses_broken_clips() -> None:
    with pytest.raises(UsageError, match="5 frames are not clips of 2"):
        temporal_shift(torch.zeros(5, 8, 1, 1), 2)
