"""Leaving early: scores of exits, thresholds for a budget, and which exit a video takes.

Shapes: N videos, K exits, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

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
    shares = ExitShares(scores_NK, lambda exits_N: float(costs[exits_N].mean()))
    return shares.within(budget * costs[-1] * (1 + 1e-9)).thresholds_K


class Leaving(NamedTuple):
    """Thresholds, and what they do on the videos that they were set on."""

    thresholds_K: np.ndarray
    exits_N: np.ndarray
    cost: float
    """Mean over the videos."""


class ExitShares:
    """Thresholds for shares of videos that are proportional to p^k, of which p is solved for.

    Args:
        scores_NK: How sure the prediction of each video is at each exit.
        mean_cost: What it costs on the mean, in any unit, that the videos leave at exits (N,).
    """

    def __init__(self, scores_NK: np.ndarray, mean_cost: Callable[[np.ndarray], float]) -> None:
        self.scores_NK, self.mean_cost = scores_NK, mean_cost
        self._known: dict[tuple[int, ...], Leaving] = {}

    def within(self, limit: float) -> Leaving:
        """The largest p whose mean cost is at most `limit`; where none is, the smallest p."""
        low, high = -_LOG_RATIO, _LOG_RATIO
        best = self._at(high)
        if best.cost <= limit:
            return best
        best = self._at(low)
        for _ in range(50):
            middle = (low + high) / 2
            found = self._at(middle)
            if found.cost <= limit:
                best, low = found, middle
            else:
                high = middle
        return best

    def _at(self, log_ratio: float) -> Leaving:
        videos, exits = self.scores_NK.shape
        shares_K = _geometric(log_ratio, exits)
        leaving = tuple(np.floor(videos * shares_K[:-1] + 1e-6).astype(int).tolist())
        if leaving not in self._known:
            thresholds_K = _thresholds(self.scores_NK, leaving)
            exits_N = exit_steps(self.scores_NK, thresholds_K)
            self._known[leaving] = Leaving(thresholds_K, exits_N, self.mean_cost(exits_N))
        return self._known[leaving]


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


def _thresholds(scores_NK: np.ndarray, leaving: Sequence[int]) -> np.ndarray:
    """At each exit but the last so many of the surest remaining videos leave; the least sure of them sets the bar."""
    videos, exits = scores_NK.shape
    thresholds = np.full(exits, NEVER)
    thresholds[-1] = -NEVER
    remaining = np.ones(videos, dtype=bool)
    for k, wanted in enumerate(leaving):
        number = min(wanted, int(remaining.sum()))
        if number:
            thresholds[k] = np.partition(scores_NK[remaining, k], -number)[-number]
            remaining &= scores_NK[:, k] < thresholds[k]
    return thresholds
