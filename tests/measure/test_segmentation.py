"""Budgets in time: mean times against a simulation, choices against brute force and where the best one is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from harness.contract.exits import NEVER
from harness.measure.segmentation import MOST_STOPS, SegmentTimes, candidate_stops, choose_stops, without_exits


def times(call: float, step: float, exits: int = 4, batch: int = 1, per_row: bool = True) -> SegmentTimes:
    """A call takes `call`, and each step of it `step` more, for every row or for all of them."""
    rows = sorted({1, batch})

    def seconds(first: int, last: int) -> tuple[float, ...]:
        return tuple(call + step * (last - first + 1) * (number if per_row else 1) for number in rows)

    pairs = {(a, b): seconds(a, b) for a in range(exits) for b in range(a, exits)}
    return SegmentTimes(batch, tuple(rows), (0.0,) * len(rows), pairs)


def easy_and_hard(easy: int, hard: int, exits: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether each exit is right (N, K): easy videos are right and sure from the first exit on, hard ones
    are right at the last only, and never sure before.
    """
    right = np.zeros((easy + hard, exits))
    right[:easy] = right[:, -1] = 1.0
    scores = 0.5 * right + 0.4 * np.linspace(0, 1, easy + hard)[::-1, None]
    return scores, right


def quality_of(right: np.ndarray):
    return lambda exits_N: float(right[np.arange(len(right)), exits_N].mean())


def test_mean_time_is_that_of_the_loop() -> None:
    rng = np.random.default_rng(0)
    table = SegmentTimes(
        4, (1, 2, 4), (1.0, 1.5, 2.0),
        {(a, b): tuple(np.sort(rng.uniform(1, 9, 3))) for a in range(3) for b in range(a, 3)},
    )  # fmt: skip
    exits_N = rng.integers(0, 3, 10)
    total = 0.0
    for start in range(0, 10, 4):
        batch = exits_N[start : start + 4]
        total += np.interp(len(batch), table.rows, table.begin_s)
        for stop in range(3):
            if there := int((batch >= stop).sum()):
                total += np.interp(there, table.rows, table.segment_s[stop, stop])
    assert table.mean_seconds(exits_N) == pytest.approx(total / 10)


def test_exits_where_nobody_leaves_are_merged() -> None:
    table = times(call=10.0, step=1.0)
    assert table.mean_seconds(np.array([1, 3])) == (12 + (12 + 12)) / 2
    assert without_exits(table, 2, lambda _: 0.0).seconds == 14


def test_the_choice_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.2, 1.0, (30, 3)) * np.arange(1, 4)
    right = rng.uniform(size=scores.shape) < np.array([0.5, 0.7, 0.9])
    table, quality, budgets = times(call=0.7, step=1.0, exits=3), quality_of(right), (0.3, 0.6, 0.7, 0.8, 0.9, 1.0)
    for budget, choice in zip(budgets, choose_stops(scores, table, budgets, quality), strict=True):
        tried = []
        for stops in (stops for size in (1, 2, 3) for stops in combinations(range(3), size)):
            fitting = [
                (log_ratio, exits_N)
                for log_ratio, exits_N in swept(scores, stops)
                if simulated(exits_N) <= budget * 3.7 * (1 + 1e-9)
            ]
            if fitting:
                exits_N = max(fitting, key=lambda entry: entry[0])[1]
                tried.append((quality(exits_N), -simulated(exits_N)))
        if tried:
            assert (choice.quality, -choice.seconds) == pytest.approx(max(tried))
        assert choice.considered == 7


def swept(scores: np.ndarray, stops: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
    """(log p, exits (N,)) over a fine grid of p, each set of exits once, at its largest p."""
    found: dict[tuple[int, ...], tuple[float, np.ndarray]] = {}
    for log_ratio in np.linspace(20, -20, 4001):
        shares = np.exp(log_ratio * np.arange(len(stops)))
        leave = tuple(int(len(scores) * share / shares.sum() + 1e-6) for share in shares[:-1])
        if leave not in found:
            found[leave] = log_ratio, leaving(scores, stops, leave)
    return list(found.values())


def leaving(scores: np.ndarray, stops: tuple[int, ...], leave: tuple[int, ...]) -> np.ndarray:
    """Exits (N,) when at each stop but the last so many videos leave, the surest."""
    exits_N, there = np.full(len(scores), stops[-1]), list(range(len(scores)))
    for stop, number in zip(stops[:-1], leave, strict=True):
        surest = sorted(there, key=lambda video: -scores[video, stop])[:number]
        exits_N[surest] = stop
        there = [video for video in there if video not in surest]
    return exits_N


def simulated(exits_N: np.ndarray) -> float:
    """Mean seconds at batch 1 of calls of 0.7 with steps of 1."""
    stops = sorted(set(exits_N.tolist()))
    return float(np.mean([0.7 * (stops.index(e) + 1) + e + 1 for e in exits_N.tolist()]))


def test_where_calls_are_free_the_easy_leave_early() -> None:
    scores, right = easy_and_hard(10, 10)
    (choice,) = choose_stops(scores, times(call=0.0, step=1.0), [0.625], quality_of(right))
    assert choice.stops == (0, 3) and choice.quality == 1.0
    assert choice.seconds == pytest.approx((1 + 4) / 2)
    assert choice.thresholds[1:] == (NEVER, NEVER, -NEVER) and 0 < choice.thresholds[0] < 1


def test_where_calls_are_dear_one_is_made() -> None:
    scores, right = easy_and_hard(10, 10)
    right[:15, 1] = 1.0
    (choice,) = choose_stops(scores, times(call=100.0, step=1.0), [0.99], quality_of(right))
    assert choice.stops == (1,) and choice.quality == 0.75
    assert choice.thresholds == (NEVER, -NEVER, -NEVER, -NEVER)


def test_rows_that_cost_nothing_are_not_worth_an_exit() -> None:
    """Easy and hard videos share batches: where a call takes as long for one row as for four, exits save nothing."""
    scores, right = easy_and_hard(10, 10)
    mixed = np.arange(20).reshape(2, 10).T.ravel()
    scores, right = scores[mixed], right[mixed]
    by_row, by_call = (
        choose_stops(scores, times(0.5, 1.0, batch=4, per_row=per_row), [0.9], quality_of(right))[0]
        for per_row in (True, False)
    )
    assert by_row.quality == 1.0 and by_call.quality < 1.0


def test_a_budget_that_nothing_meets_takes_the_cheapest_and_equal_ones_the_cheaper() -> None:
    scores, right = easy_and_hard(20, 0)
    low, high = choose_stops(scores, times(call=1.0, step=1.0), [0.01, 1.0], quality_of(right))
    assert low.stops == high.stops == (0,)
    assert low.seconds == high.seconds == 2.0


def test_of_many_exits_some_may_be_stops() -> None:
    assert candidate_stops(8) == list(range(8))
    assert candidate_stops(17) == list(range(0, 17, 2))
    assert len(candidate_stops(16)) == MOST_STOPS and candidate_stops(16)[-1] == 15
    assert candidate_stops(1) == [0]


def test_a_table_is_read_back_from_a_record() -> None:
    table = {
        "batch": 2, "rows": [1, 2], "begin_s": [0.1, 0.2],
        "segments": [{"first": 0, "last": 4, "seconds": [1.0, 2.0]}, {"first": 0, "last": 2, "seconds": [1.0, 1.0]}],
    }  # fmt: skip
    found = SegmentTimes.of(table)
    assert found.candidates == (2, 4) and found.segment_s[0, 4] == (1.0, 2.0)
