"""Leaving early: scores of exits, thresholds for a budget, and which exit a video takes.

Shapes: N videos, K exits, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from harness.errors import UsageError, unknown

NEVER = 1e8
"""A threshold that no score reaches (JSON has no infinity)."""

Score = Literal["softmax", "logit", "entropy"]
"""How sure a prediction is; see `exit_scores`."""

_LOG_RATIO = 20.0  # beyond exp(+-20) all videos share one exit


def exit_scores(logits: Tensor, score: str = "softmax") -> Tensor:
    """How sure a prediction is (...,) from logits (..., C), float64.

    Args:
        score: `softmax`, the largest probability; `logit`, the largest raw logit, which is what the code
            of AdaFocus V2 and Uni-AdaFocus calls confidence; `entropy`, the negative entropy in nats.

    Raises:
        UsageError: `score` is unknown.
    """
    if score not in get_args(Score):
        raise unknown("exit score", score, get_args(Score))
    exact = logits.double()
    if score == "entropy":
        return (exact.softmax(-1) * exact.log_softmax(-1)).sum(-1)
    return (exact.softmax(-1) if score == "softmax" else exact).amax(-1)


def should_exit(logits_BC: Tensor, threshold: float, score: str = "softmax") -> Tensor:
    """Which videos leave here (B,), bool: those whose score reaches the threshold."""
    return exit_scores(logits_BC, score) >= threshold


def staying(logits_BC: Tensor, threshold: float, score: str = "softmax") -> np.ndarray:
    """Rows of the videos that do not leave here, ascending, on the host.

    The decision is fetched once, so an exit makes the host wait for the device a single time.
    """
    return np.flatnonzero(~should_exit(logits_BC, threshold, score).cpu().numpy())


def point_thresholds(point: Mapping[str, Any], exits: int) -> list[float] | None:
    """Thresholds (K,) that an operating point asks for; None where it lets every video see all.

    `point` may hold `thresholds` (K,), or `exit_at`, the 0-based exit forced on every video.

    Raises:
        UsageError: There is no such exit, the number of thresholds is wrong, or they are no numbers.
    """
    if "exit_at" in point:
        step = point["exit_at"]
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < exits:
            raise UsageError(f"exit_at {step!r}: there are {exits} exits, 0 to {exits - 1}")
        return [NEVER] * step + [-NEVER] * (exits - step)
    if "thresholds" not in point:
        return None
    thresholds = point["thresholds"]
    if not isinstance(thresholds, list | tuple) or not all(map(_is_real, thresholds)):
        raise UsageError(f"thresholds {thresholds!r}: they are a list of {exits} numbers, one for each exit")
    if len(thresholds) != exits:
        raise UsageError(f"{len(thresholds)} thresholds for {exits} exits; calibrate again")
    return [float(threshold) for threshold in thresholds]


def calibrate_thresholds(
    exit_logits_NKC: np.ndarray, exit_costs_K: np.ndarray, budget: float, *, score: str = "softmax"
) -> np.ndarray:
    """Thresholds (K,) whose mean cost on these videos is at most, and as near as can be to, the budget.

    The share of videos that leave at exit k is proportional to p^k; at each exit the surest of those still
    there leave. p is found by bisection on the cost that the resulting thresholds really have. The last
    threshold lets everybody out. Below the first exit's cost no budget can be met: then all leave there.

    Args:
        exit_logits_NKC: Logits at every exit of the calibration videos.
        exit_costs_K: Cost of leaving at each exit, in any unit, the last one being the full cost.
        budget: Mean cost wanted, as a share of the full cost.
        score: See `exit_scores`.

    Raises:
        UsageError: No videos, or costs that do not match the exits.

    Source: MSDNet's budgeted batch classification, as used for AdaFocus V2+
    (docs/methods/adafocus-v2.md#early-exits); the authors sweep p instead of solving for it.
    """
    costs = np.asarray(exit_costs_K, dtype=np.float64)
    if exit_logits_NKC.ndim != 3 or exit_logits_NKC.shape[1] != len(costs) or not len(exit_logits_NKC):
        raise UsageError(f"exit logits {exit_logits_NKC.shape} do not fit {len(costs)} exit costs (N, K, C)")
    scores_NK = exit_scores(torch.as_tensor(exit_logits_NKC), score).numpy()
    limit = budget * costs[-1] * (1 + 1e-9)

    def attempt(log_ratio: float) -> tuple[np.ndarray, bool]:
        thresholds = _thresholds(scores_NK, _geometric(log_ratio, len(costs)))
        return thresholds, costs[exit_steps(scores_NK, thresholds)].mean() <= limit

    low, high = -_LOG_RATIO, _LOG_RATIO
    best, fits = attempt(high)
    if fits:
        return best
    best, _ = attempt(low)
    for _ in range(50):
        middle = (low + high) / 2
        thresholds, fits = attempt(middle)
        if fits:
            best, low = thresholds, middle
        else:
            high = middle
    return best


def exit_steps(scores_NK: np.ndarray, thresholds_K: np.ndarray) -> np.ndarray:
    """0-based exit of each video (N,): the first whose threshold its score reaches, else the last."""
    reached = scores_NK >= np.asarray(thresholds_K)
    reached[:, -1] = True
    return reached.argmax(axis=1)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _geometric(log_ratio: float, exits: int) -> np.ndarray:
    """Shares q_k proportional to exp(log_ratio)^k, summing to 1."""
    powers = log_ratio * np.arange(exits)
    shares = np.exp(powers - powers.max())
    return shares / shares.sum()


def _thresholds(scores_NK: np.ndarray, shares_K: np.ndarray) -> np.ndarray:
    """At each exit the floor(N * q_k) surest remaining videos leave; the least sure of them sets the bar."""
    videos, exits = scores_NK.shape
    thresholds = np.full(exits, NEVER)
    thresholds[-1] = -NEVER
    remaining = np.ones(videos, dtype=bool)
    for k in range(exits - 1):
        leaving = min(int(np.floor(videos * shares_K[k] + 1e-6)), int(remaining.sum()))
        if leaving:
            thresholds[k] = np.sort(scores_NK[remaining, k])[-leaving]
            remaining &= scores_NK[:, k] < thresholds[k]
    return thresholds
