"""Into how many calls rows are best divided: measured once for a component on a device, then looked up.

A network is fastest at some number of rows a call: below it the machine idles, above it activations leave the caches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

SIZES = (1, 2, 4, 8, 16, 32)
"""Rows a call that are measured, up to the largest that occurs."""
ROUNDS = 3
"""Timed calls of each size, sizes in turns."""
WORTH = 0.03
"""Rows are divided where that saves more than this share of the time of one call."""


class RowTable:
    """Seconds of a call over its rows.

    Args:
        seconds: Rows -> seconds of a call.
        exact: Only these numbers of rows can be run (a captured graph), and rows are filled up to the next. Else any
            number can: between them the time is interpolated, beyond them it grows as a row of the largest.
    """

    def __init__(self, seconds: Mapping[int, float], *, exact: bool = False) -> None:
        self.seconds, self.exact = dict(sorted(seconds.items())), exact

    def calls(self, rows: int) -> tuple[int, ...]:
        """Rows of each call that together take `rows` in the least time, most first; they may add up to more."""
        return _calls(tuple(self.seconds.items()), self.exact, rows)

    def cost(self, rows: int) -> float:
        """Seconds that `rows` take so."""
        return sum(_call_seconds(tuple(self.seconds.items()), n) for n in self.calls(rows))


def _call_seconds(known: tuple[tuple[int, float], ...], rows: int) -> float:
    sizes, seconds = zip(*known, strict=True)
    if rows > sizes[-1]:
        return float(seconds[-1] * rows / sizes[-1])
    return float(np.interp(rows, sizes, seconds))


@cache
def _calls(known: tuple[tuple[int, float], ...], exact: bool, rows: int) -> tuple[int, ...]:
    sizes = [n for n, _ in known] if exact else range(1, min(rows, known[-1][0]) + 1)
    options = [(n, _call_seconds(known, n)) for n in sizes]
    least: list[tuple[float, int]] = [(0.0, 0)]  # for each number of rows: seconds, rows of one of the calls
    for wanted in range(1, rows + 1):
        least.append(min((seconds + least[max(0, wanted - n)][0], n) for n, seconds in options))
    if not exact and _call_seconds(known, rows) * (1 - WORTH) <= least[rows][0]:
        return (rows,)
    found = []
    while rows > 0:
        found.append(least[rows][1])
        rows -= found[-1]
    return tuple(sorted(found, reverse=True))


def measured(call: Callable[[int], object], sizes: Sequence[int], clock: Callable[[], float]) -> dict[int, float]:
    """Median seconds of `call(rows)` for each of `sizes`, after an untimed call of each.

    Args:
        clock: Seconds; of a device with a queue, once it is empty.
    """
    for rows in sizes:
        call(rows)
    found: dict[int, list[float]] = {rows: [] for rows in sizes}
    for _ in range(ROUNDS):
        for rows in sizes:
            began = clock()
            call(rows)
            found[rows].append(clock() - began)
    return {rows: statistics.median(seconds) for rows, seconds in found.items()}
