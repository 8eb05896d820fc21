"""Smaller copies of frames for glances and low-resolution paths."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate

from harness.errors import UsageError

SMALLEST = 16
"""Side in pixels from which every backbone has a feature map: the tiny ones divide it by 16, rounded down."""
ResizeMode = Literal["area", "bilinear", "bilinear-corners", "nearest"]


def share_of(side: int, share: float, *, least: int = SMALLEST) -> int:
    """A share of a side, in whole pixels; UsageError where fewer than `least` are left for a network."""
    pixels = round(side * share)
    if pixels < least:
        raise UsageError(f"a share of {share} leaves {pixels} of {side} px; at least {least} px are needed")
    return pixels


def resize(x_NCHW: Tensor, side: int, mode: str = "area") -> Tensor:
    """Float frames (N, C, H, W) at `side` x `side` pixels; unchanged where they already are.

    Args:
        mode: `area` averages (no aliasing), `nearest` is AR-Net's, `bilinear` uses align_corners=False,
            `bilinear-corners` True (the code of AdaFocus V2).
    """
    if x_NCHW.shape[-2:] == (side, side):
        return x_NCHW
    if mode == "bilinear-corners":
        return interpolate(x_NCHW, size=(side, side), mode="bilinear", align_corners=True)
    return interpolate(x_NCHW, size=(side, side), mode=mode)
