"""Cutting square patches out of frames: differentiably (AdaFocus V2), on whole pixels (AdaFocus V1), stretched (Uni).

An action a = (a_y, a_x) in [0, 1] places a patch of P pixels: its upper left corner lies at
a * (side - P). Uni-AdaFocus's actions (a_y, a_x, s_y, s_x) also say how large a box is shrunk or blown
up to the patch. Suffixes of tensor names: N frames, 3 or C channels, H and W the frame's sides, P the patch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import UsageError
from harness.layers.precision import no_autocast
from harness.layers.resize import SMALLEST


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
    room = actions_N2.new_tensor((height - size, width - size))
    return _sample(x_N3HW, actions_N2 * room, torch.ones_like(actions_N2), size)


def deformable_crop(x_NCHW: Tensor, actions_N4: Tensor, size: int, stretch: tuple[float, float]) -> Tensor:
    """Boxes of any size and aspect, resampled bilinearly to (N, C, P, P); gradients reach all four numbers.

    Along each axis r = low + s * (high - low) and the box has P * r pixels: output pixel i samples the
    frame at a * (H - P * r) + (i + 0.5) * r - 0.5. There is no smoothing where r > 1. Feature maps are cut
    by the same actions and `stretch`, with P in cells.

    Args:
        x_NCHW: Float frames or feature maps.
        actions_N4: (a_y, a_x, s_y, s_x) in [0, 1]; any s with 0 < r <= H / P will do, see `unstretched`.
        size: P in pixels or cells.
        stretch: (low, high), see `box_stretch`.

    Source: Uni-AdaFocus, its code; docs/methods/building-blocks.md#patch-operators.
    """
    height, width = x_NCHW.shape[-2:]
    stretch_N2 = _stretched(actions_N4[:, 2:], stretch)
    room_N2 = actions_N4.new_tensor((height, width)) - size * stretch_N2
    return _sample(x_NCHW, actions_N4[:, :2] * room_N2, stretch_N2, size)


def box_stretch(patch: int, smallest: int, side: int) -> tuple[float, float]:
    """Sides of the smallest and the largest box (the frame's own, `side`) in patches: (low, high).

    Uni-AdaFocus: boxes of 96 to 224 pixels, whatever the patch.

    Raises:
        UsageError: The smallest box is larger than the frame.
    """
    if not 0 < smallest <= side:
        raise UsageError(f"smallest_box must be between 1 and the frame's side of {side} px, not {smallest}")
    return smallest / patch, side / patch


def unstretched(stretch: tuple[float, float]) -> float:
    """The s at which a box is exactly the patch, so that cropping does not resample: (1 - low) / (high - low).

    Below 0 for a patch smaller than the smallest box, which is all the same cut out exactly. 0 where every box
    is the whole frame and none can be the patch.

    Source: the authors' (P - 96) / 128; docs/methods/uni-adafocus.md#losses.
    """
    low, high = stretch
    return 0.0 if low == high else (1 - low) / (high - low)


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


def check_patch_size(size: int, side: int) -> None:
    """Raise UsageError where a patch of `size` px is larger than frames of `side` px, or too small for a network."""
    if size < SMALLEST:
        raise UsageError(f"patch_size {size} is too small; networks see {SMALLEST} px and more")
    if size > side:
        raise UsageError(f"patch_size {size} is larger than the frames of {side} px")


def crop_boxes(actions: Tensor, size: int, side: int) -> Tensor:
    """(..., 2) actions to boxes (..., 4): top, left, height, width as shares of the frame's side."""
    share = size / side
    return torch.cat((actions * (1 - share), torch.full_like(actions, share)), dim=-1)


def deformable_boxes(actions: Tensor, stretch: tuple[float, float]) -> Tensor:
    """(..., 4) actions to boxes (..., 4): top, left, height, width as shares of the frame's side.

    The largest box is the whole frame.
    """
    shares = _stretched(actions[..., 2:], stretch) / stretch[1]
    return torch.cat((actions[..., :2] * (1 - shares), shares), dim=-1)


def clip_patch_gradients(actions_N2: Tensor) -> Tensor:
    """The same actions; on the way back each one's gradient is scaled down to the batch's median norm.

    The gradient through a bilinear crop has heavy tails: a few patches would steer the policy
    (docs/embedded-sets.md#what-failed). Departs from AdaFocus V2, which does not clip.
    """
    if actions_N2.requires_grad:
        actions_N2.register_hook(_to_median)
    return actions_N2


def _to_median(gradient_N2: Tensor) -> Tensor:
    norms_N1 = gradient_N2.norm(dim=1, keepdim=True)
    return gradient_N2 * (norms_N1.median() / norms_N1.clamp_min(1e-12)).clamp_max(1.0)


def _stretched(sizes: Tensor, stretch: tuple[float, float]) -> Tensor:
    low, high = stretch
    return low + sizes * (high - low)


def _sample(x_NCHW: Tensor, corner_N2: Tensor, stretch_N2: Tensor, size: int) -> Tensor:
    """Patches whose pixel i samples `corner` + (i + 0.5) * `stretch` - 0.5, rows and columns apart."""
    height, width = x_NCHW.shape[-2:]
    exact = torch.promote_types(x_NCHW.dtype, torch.float32)  # half precision would move the patch
    steps_P = torch.arange(size, device=x_NCHW.device, dtype=exact) + 0.5
    rows_NP = (corner_N2[:, :1] + steps_P * stretch_N2[:, :1]) * (2 / height) - 1
    columns_NP = (corner_N2[:, 1:] + steps_P * stretch_N2[:, 1:]) * (2 / width) - 1
    grid = torch.stack((columns_NP[:, None, :].expand(-1, size, -1), rows_NP[:, :, None].expand(-1, -1, size)), dim=-1)
    with no_autocast(x_NCHW):
        patches = F.grid_sample(x_NCHW.to(exact), grid.to(exact), mode="bilinear", align_corners=False)
    return patches.to(x_NCHW.dtype)


def _sides(x_N3HW: Tensor, size: int) -> tuple[int, int]:
    height, width = x_N3HW.shape[-2:]
    if size > min(height, width):
        raise UsageError(
            f"a patch of {size} px does not fit into frames of {height}x{width} px; "
            f"choose patch_size <= {min(height, width)}"
        )
    return height, width
