"""From importance weights of coarse time cells to the frames that are looked at (Uni-AdaFocus).

Shapes: B videos, T cells of equal duration, M candidate frames, N frames taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import UsageError


def sample_frames(weights_BT: Tensor, frames: int, candidates: int, noise_BN: Tensor | None = None) -> Tensor:
    """Indices (B, N), int64, strictly increasing, denser where the weights are larger; without gradient.

    The weights are taken as a density over time, constant within each cell. Frame i is where the
    distribution function reaches (i + u) / N. An index that is not larger than its predecessor becomes the
    next one, so a sharp peak spills over to later frames only; the last indices leave room for each other.

    Args:
        weights_BT: Non-negative, summing to 1 per video.
        frames: N.
        candidates: M.
        noise_BN: u in [0, 1) per frame, drawn in training; 1/2 when left out.

    Raises:
        UsageError: More frames than candidates.

    Source: Uni-AdaFocus, its code; docs/methods/building-blocks.md#frame-sampling.
    """
    if frames > candidates:
        raise UsageError(f"{frames} frames cannot be taken out of {candidates} candidates")
    weights = weights_BT.detach().double()
    cells = weights.shape[1]
    total = torch.nn.functional.pad(weights.cumsum(1), (1, 0))
    total[:, -1] = 1.0
    steps_N = torch.arange(frames, device=weights.device)
    offset = 0.5 if noise_BN is None else noise_BN.double()
    wanted = ((steps_N + offset) / frames).expand(len(weights), frames).contiguous()
    cell = (torch.searchsorted(total, wanted) - 1).clamp(0, cells - 1)
    before, after = total.gather(1, cell), total.gather(1, cell + 1)
    inside = (wanted - before) / (after - before).clamp_min(1e-12)
    indices = ((cell + inside) / cells * candidates).floor().long()
    # idx_i = max(idx_i, idx_{i-1} + 1), from left to right, is a running maximum of idx_i - i
    return (indices - steps_N).cummax(1).values.clamp_max(candidates - frames) + steps_N
