"""Losses that several methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def every_step(logits_BTC: Tensor, target_B: Tensor) -> Tensor:
    """Cross entropy of a clip's label at every step, averaged over videos and steps."""
    return cross_entropy(logits_BTC.flatten(0, 1), target_B.repeat_interleave(logits_BTC.shape[1]))
