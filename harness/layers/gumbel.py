"""Discrete decisions that gradients pass through (Jang et al., Maddison et al., ICLR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the shape, type and device of `like`, drawn from `generator`."""
    device = generator.device if generator is not None else like.device
    uniform = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float32)
    noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
    return noise.to(device=like.device, dtype=like.dtype)


def straight_through_gumbel(logits: Tensor, tau: float) -> Tensor:
    """One-hot sample over the last axis whose gradient is that of the soft sample at temperature `tau`.

    Args:
        logits: Unnormalised log-probabilities (..., K).
        tau: Temperature; it shapes the gradient only, never the distribution of the sample.
    """
    soft = torch.softmax((logits + gumbel_noise(logits)) / tau, -1)
    hard = one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


def decide(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Index of the action taken, (...), int64: the argmax, or with a generator a sample of softmax(logits)."""
    if generator is None:
        return logits.argmax(-1)
    return (logits + gumbel_noise(logits, generator)).argmax(-1)
