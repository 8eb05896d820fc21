"""Budgets in time: which exits are stops, and their thresholds, from the measured times of segments.

On paper an exit costs nothing; on a clock every stop costs a call with fewer rows, so a few useful exits beat many.
Stops and thresholds are therefore chosen together, on the calibration split (docs/measurement.md#budgets-in-time).

Shapes: N videos in the order in which they are batched, K exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from harness.contract.exits import NEVER, ExitShares, Leaving
from harness.contract.segments import stops

MOST_STOPS = 9
"""Exits that may be stops: of a method with more, so many, spread evenly. All their subsets are tried (511 of nine)."""


@dataclass(frozen=True)
class SegmentTimes:
    """How long merged segments take on one device, by the rows (videos) that are still there."""

    batch: int
    rows: tuple[int, ...]
    """Numbers of rows that were timed, ascending, `batch` last; times in between are interpolated."""
    begin_s: tuple[float, ...]
    """Before the first segment."""
    segment_s: Mapping[tuple[int, int], tuple[float, ...]]
    """(first, last) exit -> seconds of these segments run as one, with the decision who leaves behind them."""

    @staticmethod
    def of(table: Mapping[str, Any]) -> SegmentTimes:
        """From a record's `segment_times`."""
        pairs = {(entry["first"], entry["last"]): tuple(entry["seconds"]) for entry in table["segments"]}
        return SegmentTimes(table["batch"], tuple(table["rows"]), tuple(table["begin_s"]), pairs)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Exits that may be stops, the method's last one included."""
        return tuple(sorted({last for _, last in self.segment_s}))

    def mean_seconds(self, exits_N: np.ndarray) -> float:
        """Mean time of a video when they come in batches of `batch` and leave at `exits_N`; other exits are merged."""
        batches = np.arange(len(exits_N)) // self.batch
        total, first = self._sum(self.begin_s, np.bincount(batches)), 0
        for stop in np.flatnonzero(np.bincount(exits_N)).tolist():
            there = np.bincount(batches[exits_N >= stop])
            total += self._sum(self.segment_s[first, stop], there[there > 0])
            first = stop + 1
        return total / len(exits_N)

    def _sum(self, seconds: Sequence[float], rows: np.ndarray) -> float:
        return float(np.interp(rows, self.rows, seconds).sum())


@dataclass(frozen=True)
class Choice:
    """Stops and thresholds, and what they give on the calibration split."""

    thresholds: tuple[float, ...]
    """(K,)."""
    stops: tuple[int, ...]
    """Exits at which somebody may leave."""
    seconds: float
    """Mean of a video, predicted from the times of segments."""
    quality: float
    """Metric on the videos that it was chosen on, which flatters it."""
    considered: int = 1
    """Sets of stops that it was chosen among."""


def candidate_stops(exits: int) -> list[int]:
    """Exits that may be stops: all, or `MOST_STOPS` of them, spread evenly, with the first and the last."""
    number = min(exits, MOST_STOPS)
    return np.linspace(0, exits - 1, number).round().astype(int).tolist()


def without_exits(times: SegmentTimes, videos: int, quality: Callable[[np.ndarray], float]) -> Choice:
    """All segments as one for everybody: what budgets are shares of."""
    last = times.candidates[-1]
    exits_N = np.full(videos, last)
    thresholds = (*[NEVER] * last, -NEVER)
    return Choice(thresholds, (last,), times.mean_seconds(exits_N), quality(exits_N))


def choose_stops(
    scores_NK: np.ndarray, times: SegmentTimes, budgets: Sequence[float], quality: Callable[[np.ndarray], float]
) -> list[Choice]:
    """For each budget the set of stops, with its thresholds, that is best on these videos within it.

    Every set of candidates is tried; the thresholds of each are solved for the budget as those of all exits are for
    multiply-accumulates (harness.contract.exits). Of equally good ones the cheaper is taken. Where no set meets the
    budget the cheapest is.

    Args:
        scores_NK: How sure the predictions are, at all exits.
        times: Of the method's segments.
        budgets: Mean times wanted, as shares of that without exits.
        quality: Exits (N,) that the videos leave at -> metric; higher is better.
    """
    full = without_exits(times, len(scores_NK), quality)
    limits = [budget * full.seconds * (1 + 1e-9) for budget in budgets]
    best: list[tuple[tuple[bool, float, float], np.ndarray, Leaving] | None] = [None] * len(limits)
    for columns in _subsets(times.candidates):
        shares = ExitShares(scores_NK[:, columns], partial(_mean_seconds, times, columns))
        for number, limit in enumerate(limits):
            found, known = shares.within(limit), best[number]
            fits = found.cost <= limit
            rank = (fits, quality(columns[found.exits_N]) if fits else 0.0, -found.cost)
            if known is None or rank > known[0]:
                best[number] = rank, columns, found
    choices = []
    for _, columns, found in filter(None, best):
        thresholds = _spread(found.thresholds_K, columns, scores_NK.shape[1])
        value, considered = quality(columns[found.exits_N]), 2 ** len(times.candidates) - 1
        choices.append(Choice(thresholds, tuple(stops(thresholds)), found.cost, value, considered))
    return choices


def _subsets(candidates: Sequence[int]) -> Iterator[np.ndarray]:
    for size in range(1, len(candidates) + 1):
        yield from map(np.asarray, combinations(candidates, size))


def _mean_seconds(times: SegmentTimes, columns: np.ndarray, exits_N: np.ndarray) -> float:
    """`exits_N` are places in `columns`."""
    return times.mean_seconds(columns[exits_N])


def _spread(thresholds: np.ndarray, columns: np.ndarray, exits: int) -> tuple[float, ...]:
    """Thresholds of all exits: nobody leaves at an exit that is no stop, everybody at the last stop."""
    whole = np.full(exits, NEVER)
    whole[columns] = thresholds
    whole[columns[-1] :] = -NEVER
    return tuple(whole.tolist())
