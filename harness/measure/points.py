"""Which operating points get a closer look: the default one, and the one calibrated nearest half its cost. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contract.declarations import OperatingPoint


def shown_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The points whose frames and boxes are kept for the report's picture; half of the budget counts."""
    budgets = [p for p in points if p.budget is not None]
    half = min(budgets, key=lambda p: abs((p.budget or 0.0) - 0.5), default=None)
    return [points[0], *([half] if half is not None else [])]
