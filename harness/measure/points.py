"""Which operating points get a closer look: the default one, and the calibrated one nearest half its cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.contract.declarations import OperatingPoint


def timed_points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the points of a record that are timed; half of what the default point executed counts."""
    full = points[0]["gflops"]["mean"]
    budgets = [p for p in points if p["budget"] is not None]
    half = min(budgets, key=lambda p: abs(p["gflops"]["mean"] - full / 2), default=None)
    return [points[0]["name"], *([half["name"]] if half is not None else [])]


def shown_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The points whose frames and boxes are kept for the report's picture; half of the budget counts."""
    budgets = [p for p in points if p.budget is not None]
    half = min(budgets, key=lambda p: abs((p.budget or 0.0) - 0.5), default=None)
    return [points[0], *([half] if half is not None else [])]
