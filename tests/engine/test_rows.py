"""Dividing rows into calls: against brute force, and where one call is best."""

from __future__ import annotations

from functools import cache
from itertools import count

import pytest

from harness.engine.rows import RowTable, measured

FLAT = {n: 1.0 + 0.001 * n for n in (1, 2, 4, 8, 16)}
"""A constant dominates: the fewer calls the better."""
STEEP = {1: 1.0, 2: 1.2, 4: 1.6, 8: 6.0, 16: 20.0}
"""Four rows a call are best."""


def least(seconds: dict[int, float], rows: int) -> float:
    """Least time of `rows` in calls of the given sizes, filled up."""

    @cache
    def best(left: int) -> float:
        return 0.0 if left <= 0 else min(s + best(left - n) for n, s in seconds.items())

    return best(rows)


@pytest.mark.parametrize("rows", range(1, 40))
@pytest.mark.parametrize("seconds", [FLAT, STEEP], ids=["flat", "steep"])
def test_exact_sizes_are_divided_as_brute_force_does(seconds: dict[int, float], rows: int) -> None:
    table = RowTable(seconds, exact=True)
    calls = table.calls(rows)
    assert set(calls) <= set(seconds)
    assert rows <= sum(calls) and sum(calls) - calls[-1] < rows
    assert table.cost(rows) == pytest.approx(least(seconds, rows))


def test_any_number_of_rows() -> None:
    assert RowTable(STEEP).calls(16) == (4, 4, 4, 4)
    assert RowTable(STEEP).calls(7) == (4, 3)
    assert RowTable(STEEP).cost(3) == pytest.approx(1.4)
    assert RowTable(FLAT).calls(11) == (11,)
    assert RowTable(FLAT).calls(100) == (100,)
    assert RowTable(STEEP).calls(0) == () == RowTable(STEEP, exact=True).calls(0)


def test_little_is_no_reason_to_divide() -> None:
    assert RowTable({1: 1.0, 2: 2.02, 4: 4.05}).calls(4) == (4,)
    assert RowTable({1: 1.0, 2: 2.02, 4: 4.4}).calls(4) == (1, 1, 1, 1)


def test_sizes_are_measured_in_turns() -> None:
    calls: list[int] = []
    ticks = count()
    found = measured(calls.append, (1, 4), lambda: float(next(ticks)))
    assert calls == [1, 4, 1, 4, 1, 4, 1, 4]
    assert found == {1: 1.0, 4: 1.0}
