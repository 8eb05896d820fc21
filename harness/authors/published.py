"""What the papers printed, as package data: accuracies, costs, and the cost of fixed variants. No torch.

`figures/results.csv` holds accuracies over GFLOPs from tables and plots, `figures/fixed_costs.csv` the cost of
variants that always run the same work, and of those that stop at a given exit, with the settings that build them
here, and `figures/components.csv`
the multiply-accumulates of the AdaFocus family's parts, measured on the authors' networks. "GFLOPs" are 1e9
multiply-accumulates in all of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PublishedResult:
    """One accuracy of one method on one dataset, as printed."""

    paper: str
    """Where it is printed, with `location` (table, figure, README)."""
    location: str
    dataset: str
    method: str
    """The name as printed."""
    ours: str
    """Name of the method here; empty for methods this project does not have in mind."""
    variant: str
    metric: str
    """mAP or top1."""
    value: float
    """Percent."""
    gflops: float | None
    """Per video, 1e9 multiply-accumulates by the paper's own counter (conventions differ by up to 5 %)."""
    read: str
    """`print`: a printed number; `plot`: read off a plot."""
    quoted: bool
    """A baseline as quoted by another paper."""
    videos_per_s: float | None
    latency_ms: float | None
    hardware: str
    notes: str


@dataclass(frozen=True)
class PaperRow:
    """A variant that always runs the same work, or stops at one exit, and what its paper says it costs."""

    method: str
    """Name in the registry."""
    title: str
    dataset: str
    classes: int
    variant: str
    settings: Mapping[str, Any] | None
    """Constructor settings over those of the paper size; None where this version has no such method."""
    point: Mapping[str, Any]
    """Settings of the operating point, such as the exit; empty for the default one."""
    gflops: float
    """Per video, as printed; for an exit, by the cost model of the authors' exit script."""
    from_constants: float | None
    """The same with more digits, from the constants of the authors' code."""
    covers: tuple[str, ...]
    """Components that no prediction needs, but that the printed figure counts: `all`, or names such as `head`."""
    source: str

    def label(self) -> str:
        """Readable name: `AdaFocusV2 on activitynet: P=128, ...`."""
        where = "".join(f", {key} {value}" for key, value in self.point.items())
        return f"{self.title} on {self.dataset}: {self.variant}{where}"


@dataclass(frozen=True)
class PublishedPart:
    """Multiply-accumulates of one part of a published network."""

    variant: str
    """Method and, where it matters, glance network."""
    component: str
    macs: int
    """Convolution and linear (recurrent cells by hand), for the unit the component's name tells."""
    fvcore: int | None
    """fvcore's total, with batch norm and pooling; None where it counts nothing (recurrent cells)."""


@cache
def published_results(dataset: str | None = None) -> tuple[PublishedResult, ...]:
    """All printed results, or those of one dataset (an id such as `activitynet`)."""
    optional = ("gflops", "videos_per_s", "latency_ms")
    return tuple(
        PublishedResult(
            **{
                **row,
                "value": float(row["value"]),
                "quoted": row["quoted"] == "1",
                **{key: _number(row[key]) for key in optional},
            }
        )
        for row in _rows("results")
        if dataset is None or row["dataset"] == dataset
    )


@cache
def paper_table() -> tuple[PaperRow, ...]:
    """Every published fixed-cost variant, in the order of `bench.py gflops --paper`."""
    return tuple(row for row in _paper_rows() if not row.point)


@cache
def exit_table() -> tuple[PaperRow, ...]:
    """Every exit whose cost the authors' code says, in order (docs/measurement.md#cost-of-exits)."""
    return tuple(row for row in _paper_rows() if row.point)


@cache
def _paper_rows() -> tuple[PaperRow, ...]:
    return tuple(
        PaperRow(
            **{
                **row,
                "classes": int(row["classes"]),
                "settings": json.loads(row["settings"]) if row["settings"] else None,
                "point": json.loads(row["point"] or "{}"),
                "gflops": float(row["gflops"]),
                "from_constants": _number(row["from_constants"]),
                "covers": tuple(row["covers"].split()),
            }
        )
        for row in _rows("fixed_costs")
    )


@cache
def published_parts() -> tuple[PublishedPart, ...]:
    """Parts of the authors' networks and their multiply-accumulates."""
    return tuple(
        PublishedPart(row["variant"], row["component"], int(row["macs"]), int(row["fvcore"]) if row["fvcore"] else None)
        for row in _rows("components")
    )


def published_part(variant: str, component: str) -> int:
    """MACs of one part; KeyError where the table has none of that name."""
    return {(p.variant, p.component): p.macs for p in published_parts()}[variant, component]


def _rows(name: str) -> list[dict[str, Any]]:
    text = (files("harness.authors") / "figures" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _number(text: str) -> float | None:
    return float(text) if text else None
