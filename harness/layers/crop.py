"""Cutting square patches out of frames: differentiably (AdaFocus V2) and on whole pixels (AdaFocus V1).

An action a = (a_y, a_x) in [0, 1] places a patch of P pixels: its upper left corner lies at
a * (side - P). Suffixes of tensor names: N frames, 3 channels, H and W the frame's sides, P the patch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import UsageError
from harness.layers.precision import no_autocast


def crop(x_N3HW: Tensor, actions_N2: Tensor, size: int) -> Tensor:
    """Bilinear patches (N, 3, P, P) through which gradients reach the actions.

    Output pixel (i, j) samples the frame at (a_y * (H - P) + i, a_x * (W - P) + j), so a whole-numbered
    offset gives the slice itself and nothing outside the frame is ever sampled.

    Args:
        x_N3HW: Float frames.
        actions_N2: (a_y, a_x) in [0, 1].
        size: P in pixels.

    Raises:
        UsageError: The patch is larger than the frame.

    Source: AdaFocus V2 section 3.2; its code (`affine_grid`, `align_corners=False`).
    """
    height, width = _sides(x_N3HW, size)
    exact = torch.promote_types(x_N3HW.dtype, torch.float32)  # half precision would move the patch
    steps_P = torch.arange(size, device=x_N3HW.device, dtype=exact) + 0.5
    rows_NP = (actions_N2[:, :1] * (height - size) + steps_P) * (2 / height) - 1
    columns_NP = (actions_N2[:, 1:] * (width - size) + steps_P) * (2 / width) - 1
    grid = torch.stack((columns_NP[:, None, :].expand(-1, size, -1), rows_NP[:, :, None].expand(-1, -1, size)), dim=-1)
    with no_autocast(x_N3HW):
        patches = F.grid_sample(x_N3HW.to(exact), grid.to(exact), mode="bilinear", align_corners=False)
    return patches.to(x_N3HW.dtype)


def hard_crop(x_N3HW: Tensor, actions_N2: Tensor, size: int) -> Tensor:
    """Patches (N, 3, P, P) on whole pixels, floor(a * (side - P)); any dtype, no gradient to the actions.

    Raises:
        UsageError: The patch is larger than the frame.

    Source: AdaFocus V1, its code.
    """
    height, width = _sides(x_N3HW, size)
    steps_P = torch.arange(size, device=x_N3HW.device)
    rows = ((actions_N2[:, :1] * (height - size)).floor().long() + steps_P)[:, :, None]
    columns = ((actions_N2[:, 1:] * (width - size)).floor().long() + steps_P)[:, None, :]
    frames = torch.arange(len(x_N3HW), device=x_N3HW.device)[:, None, None]
    return x_N3HW.permute(0, 2, 3, 1)[frames, rows, columns].permute(0, 3, 1, 2)


def crop_boxes(actions: Tensor, size: int, side: int) -> Tensor:
    """(..., 2) actions to boxes (..., 4): top, left, height, width as shares of the frame's side."""
    share = size / side
    return torch.cat((actions * (1 - share), torch.full_like(actions, share)), dim=-1)


def clip_patch_gradients(actions_N2: Tensor) -> Tensor:
    """The same actions; on the way back each one's gradient is scaled down to the batch's median norm.

    The gradient through a bilinear crop has heavy tails: a few patches would steer the policy
    (synthetic.md 5.9). Departs from AdaFocus V2, which does not clip.
    """
    if actions_N2.requires_grad:
        actions_N2.register_hook(_to_median)
    return actions_N2


def _to_median(gradient_N2: Tensor) -> Tensor:
    norms_N1 = gradient_N2.norm(dim=1, keepdim=True)
    return gradient_N2 * (norms_N1.median() / norms_N1.clamp_min(1e-12)).clamp_max(1.0)


def _sides(x_N3HW: Tensor, size: int) -> tuple[int, int]:
    height, width = x_N3HW.shape[-2:]
    if size > min(height, width):
        raise UsageError(
            f"a patch of {size} px does not fit into frames of {height}x{width} px; "
            f"choose patch_size <= {min(height, width)}"
        )
    return height, width
