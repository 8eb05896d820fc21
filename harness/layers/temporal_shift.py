"""Temporal shift (TSM, ICCV 2019): frames exchange a share of their channels with their neighbours, at no cost.

The shift is put in front of an existing convolution by a hook, so a shifted network has the parameter
names of the plain one and takes its weights as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError


def temporal_shift(x_NCHW: Tensor, segments: int, share: int = 8) -> Tensor:
    """Shift channels along time within each clip of `segments` frames.

    Args:
        x_NCHW: N = clips x `segments` frames, the frames of a clip side by side in temporal order.
        segments: T, frames of a clip.
        share: C // `share` channels come from the next frame and as many from the previous one; the
            rest stay. Vacated places are zero.

    Source: TSM section 4 and its released code (channel order: next frame first).
    """
    if x_NCHW.shape[0] % segments:
        raise UsageError(f"temporal shift: {x_NCHW.shape[0]} frames are not clips of {segments}")
    x_BTCHW = x_NCHW.unflatten(0, (-1, segments))
    fold = x_NCHW.shape[1] // share
    out = torch.zeros_like(x_BTCHW)
    out[:, :-1, :fold] = x_BTCHW[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x_BTCHW[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x_BTCHW[:, :, 2 * fold :]
    return out.flatten(0, 1)


class TemporalShift(nn.Module):
    """Shifts the input of every convolution it is attached to.

    Attributes:
        segments: T of the clips that come next; set before each forward, so one network serves any T.
        places: Number of convolutions it is attached to.
    """

    def __init__(self, share: int = 8) -> None:
        super().__init__()
        self.share = share
        self.segments = 1
        self.places = 0

    def attach(self, module: nn.Module) -> None:
        """Shift what `module` gets as input from now on."""
        module.register_forward_pre_hook(self._hook)
        self.places += 1

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The shifted frames, same shape (N, C, H, W)."""
        return temporal_shift(x_NCHW, self.segments, self.share)

    def _hook(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self(args[0]), *args[1:])
