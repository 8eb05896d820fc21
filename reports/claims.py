"""What a table may claim: best, on the Pareto front, within one point; each only where videos and seeds show it.

A claim is made after looking at all points of a table, so it is corrected for their number (Bonferroni):
docs/measurement.md#claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from harness.measure.statistics import SIGNIFICANT
from reports.collect import Group, Point, pareto

PARETO, OBSERVED = "(Pareto)", "(observed front)"
ONE_POINT = 1.0


class Claims:
    """Comparisons among the points of one table."""

    def __init__(self, group: Group, points: Sequence[Point]) -> None:
        self.group = group
        self.originals = {id(p): group.original(p) for p in points}
        self.points = list({id(p): p for p in self.originals.values()}.values())
        """Those that differ: a default point that was evaluated for several units of budgets is one."""
        self.alpha = SIGNIFICANT / max(len(self.points) - 1, 1)
        """One-sided, of each comparison with the best."""

    @cached_property
    def contenders(self) -> set[int]:
        """Identities of the points that may be the best: with 95 % probability the best one is among them.

        A point drops out where another is shown to be better, tested against each other one (Gupta's subset
        selection). Empty where there is nothing to choose from, or the points did not see the same videos.
        """
        if len(self.points) < 2 or self.group.mixed:
            return set()
        ordered = sorted(self.points, key=lambda p: -self.value(p))
        found = {
            id(p)
            for place, p in enumerate(ordered)
            if not any(self.group.effect(better, p).better(self.alpha) for better in ordered[:place])
        }
        return {i for i, original in self.originals.items() if id(original) in found}

    def tags(self) -> dict[int, str]:
        """Points of the observed front by identity: PARETO where every point as cheap is shown to be worse."""
        values = [self.value(p) for p in self.points]
        front = [self.points[i] for i in pareto([p.gflops for p in self.points], values)]
        tags = {id(p): PARETO if self._undominated(p, SIGNIFICANT / len(front)) else OBSERVED for p in front}
        return {i: tags[id(original)] for i, original in self.originals.items() if id(original) in tags}

    def _undominated(self, point: Point, alpha: float) -> bool:
        rivals = [p for p in self.points if p is not point and p.gflops <= point.gflops]
        return not self.group.mixed and all(self.group.effect(point, p).better(alpha) for p in rivals)

    def against(self, a: Point, b: Point) -> str:
        """`+3.1 points [0.4, 5.8]`: A against B, simultaneously for all comparisons with the best."""
        if self.group.mixed:
            return "on other videos"
        found = self.group.effect(a, b, 1 - 2 * self.alpha)
        return f"{signed(found.value)} points [{signed(found.low)}, {signed(found.high)}]"

    def within(self, point: Point, best: Point) -> str:
        """What to add where a point is not shown to lie within one point of the best."""
        if point is best or self.group.mixed:
            return ""
        shown = self.group.effect(point, best, 1 - 2 * self.alpha).low > -ONE_POINT
        return "" if shown else "; not shown to be within one point"

    def caveat(self) -> str:
        """What the intervals of these claims cover."""
        if self.group.mixed:
            return "The methods did not see the same videos: no difference is tested."
        choice = f"corrected for choosing among {len(self.points)} points on the test videos"
        if min(p.seeds for p in self.points) < 2:
            return f"These are networks of one training each, not methods: intervals cover the videos, {choice}."
        return f"Intervals of differences cover videos and training seeds, {choice}."

    def value(self, point: Point) -> float:
        """The main metric, higher is better."""
        value = self.group.quality(point)
        return value if self.group.metric.higher_is_better else -value


def signed(value: float, decimals: int = 1) -> str:
    """With its sign, a real minus, and zero without one."""
    return f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else f"{0:.{decimals}f}"
