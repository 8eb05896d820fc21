"""What changed between two folders of results: paired per video, with significance.

comparison = compare(Path("before"), Path("after"))
print(comparison.to_text())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.values import digest
from harness.errors import BenchError
from harness.measure.metrics import Difference, metric, paired_difference, softmax
from harness.store.records import Record, read_records
from reports.collect import NOT_COMPARED
from reports.tables import cost_format
from reports.text import Cell, Column, Row, Table, markdown_text, to_markdown
from reports.timings import Timing, timings

RESAMPLES = 1000
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Change:
    """One operating point of one cell, in B against A."""

    dataset: str
    method: str
    settings: str
    """The constructor settings, as JSON: cells of one method differ in them."""
    seed: int
    point: str
    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    """95 % of the difference, over videos drawn in pairs."""
    p: float
    """Two-sided; no correction for the number of rows."""
    videos: int
    gflops_a: float
    gflops_b: float
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Setup and batch -> median milliseconds of A and of B, where both were timed."""

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """All cells of two folders."""

    a: str
    b: str
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    not_comparable: tuple[str, ...]
    """Cells in both whose data differ, with the reason."""

    def to_text(self) -> str:
        """For a terminal: aligned columns, `*` at a significant difference."""
        return _text(self)

    def to_markdown(self) -> str:
        """As a Markdown table."""
        return to_markdown(_table(self)) + _rest(self, markdown_text)

    def to_json(self) -> dict[str, Any]:
        """For a script: every field, every number unrounded."""
        return {**asdict(self), "changes": [{**asdict(c), "significant": c.significant} for c in self.changes]}


def compare(a: Path, b: Path) -> Comparison:
    """Compare every cell (dataset, protocol, method, settings, seed) that both work directories hold.

    Raises:
        BenchError: a folder holds no evaluation, or a record is damaged.
    """
    cells_a, cells_b = _cells(a), _cells(b)
    timed_a, timed_b = (read_records([folder], "latency") for folder in (a, b))
    changes: list[Change] = []
    unfit: list[str] = []
    for key in (k for k in cells_a if k in cells_b):
        one, two = cells_a[key], cells_b[key]
        reason = _unfit(one, two)
        if reason:
            unfit.append(f"{_name(one)}: {reason}")
        else:
            changes += _changes(one, two, timed_a, timed_b)
    return Comparison(
        str(a),
        str(b),
        tuple(changes),
        tuple(_name(cells_a[k]) for k in cells_a if k not in cells_b),
        tuple(_name(cells_b[k]) for k in cells_b if k not in cells_a),
        tuple(unfit),
    )


def _table(comparison: Comparison) -> Table:
    """The changes as rows."""
    columns = (
        Column("Dataset", numeric=False),
        Column("Method", numeric=False),
        Column("Seed"),
        Column("Point", numeric=False),
        Column("Metric", numeric=False),
        Column("A"),
        Column("B"),
        Column("B − A", "[95 %], paired"),
        Column("p"),
        Column("GFLOPs", "A → B"),
        Column("Latency", "B / A, per batch", numeric=False),
    )
    cost = cost_format(g for c in comparison.changes for g in (c.gflops_a, c.gflops_b))
    several = _ambiguous(comparison.changes)
    rows = tuple(
        Row(
            (
                Cell(c.dataset),
                Cell(f"{c.method} {c.settings}" if (c.dataset, c.method) in several else c.method),
                Cell(str(c.seed)),
                Cell(c.point),
                Cell(c.metric),
                Cell(f"{c.a:.1f}"),
                Cell(f"{c.b:.1f}"),
                Cell(_signed(c.difference), f"[{_signed(c.low)}, {_signed(c.high)}]", c.significant),
                Cell("<0.001" if c.p < 0.001 else f"{c.p:.3f}"),
                Cell(
                    cost(c.gflops_a)
                    if cost(c.gflops_a) == cost(c.gflops_b)
                    else f"{cost(c.gflops_a)} → {cost(c.gflops_b)}"
                ),
                Cell(_latency_text(c.latency)),
            )
        )
        for c in comparison.changes
    )
    note = f"A: {comparison.a}. B: {comparison.b}. Bold: p < {SIGNIFICANT}, not corrected for the number of rows."
    return Table("What changed", note, columns, rows)


def _text(comparison: Comparison) -> str:
    """The comparison for a terminal: aligned columns, `*` at a significant difference."""
    table = _table(comparison)
    lines = [[c.title for c in table.columns]]
    lines += [[f"{c.text}{'*' if c.best else ''} {c.note}".strip() for c in row.cells] for row in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    rows = [
        "  ".join(
            t.rjust(w) if c.numeric else t.ljust(w) for t, w, c in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    body = "\n".join(rows) if table.rows else "no cell is in both folders"
    meaning = f"* p < {SIGNIFICANT} (paired per video, not corrected for the number of rows)"
    note = f"A: {comparison.a}\nB: {comparison.b}\n{meaning}\n"
    return f"{body}\n\n{note}{_rest(comparison, str)}"


def _cells(folder: Path) -> dict[str, Record]:
    """Cell identity -> its newest record; what the code or data were is not part of the identity."""
    records = read_records([folder], "evaluation")
    if not records:
        raise BenchError(f"no finished evaluation in {folder}; run `bench.py run --work-dir {folder}` first")
    cells = {}
    for record in sorted(records, key=lambda r: (r.result["method"]["version"], r.result["created"], r.result["key"])):
        result = record.result
        protocol = {k: v for k, v in result["protocol"].items() if k not in NOT_COMPARED or k == "test_seed"}
        method, dataset = result["method"], result["dataset"]
        about = [dataset["name"], dataset["resolution"], protocol, method["name"], method["size"], method["settings"]]
        cells[digest([*about, result["initialisation"], result["seed"]])] = record
    return dict(sorted(cells.items(), key=lambda item: (_name(item[1]), item[0])))


def _name(record: Record) -> str:
    result = record.result
    return (
        f"{result['method']['name']} ({result['method']['size']}) on {result['dataset']['name']}, seed {result['seed']}"
    )


def _unfit(one: Record, two: Record) -> str | None:
    """Why two records cannot be paired video by video, or None."""
    arrays_a, arrays_b = one.arrays(), two.arrays()
    if not np.array_equal(arrays_a["ids"], arrays_b["ids"]):
        return "the test videos differ"
    if not np.array_equal(arrays_a["targets"], arrays_b["targets"]):
        return "the labels differ"
    prints = [r.result["dataset"]["fingerprint"] for r in (one, two)]
    return f"the data differ (fingerprints {prints[0]} and {prints[1]})" if prints[0] != prints[1] else None


def _changes(one: Record, two: Record, timed_a: Sequence[Record], timed_b: Sequence[Record]) -> Iterable[Change]:
    points_b = {p["name"]: p for p in two.result["points"]}
    arrays_a, arrays_b = one.arrays(), two.arrays()
    clocks = [list(timings(timed, {str(r.result["key"])})) for timed, r in ((timed_a, one), (timed_b, two))]
    for point in one.result["points"]:
        other = points_b.get(point["name"])
        if other is None:
            continue
        logits = arrays_a[f"{point['prefix']}_logits"], arrays_b[f"{other['prefix']}_logits"]
        yield _change(one, point, other, logits, arrays_a["targets"], _latencies(point["name"], *clocks))


def _change(
    record: Record,
    point: Mapping[str, Any],
    other: Mapping[str, Any],
    logits: tuple[np.ndarray, np.ndarray],
    targets: np.ndarray,
    latency: Mapping[str, tuple[float, float]],
) -> Change:
    result = record.result
    name = result["dataset"]["metric"]
    scores = softmax(logits[0]), softmax(logits[1])
    found: Difference = paired_difference(name, *scores, targets, n=RESAMPLES)
    return Change(
        dataset=result["dataset"]["name"],
        method=result["method"]["name"],
        settings=json.dumps(result["method"]["settings"], sort_keys=True),
        seed=result["seed"],
        point=point["name"],
        metric=name,
        a=metric(name)(scores[0], targets),
        b=metric(name)(scores[1], targets),
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        videos=len(targets),
        gflops_a=point["gflops"]["mean"],
        gflops_b=other["gflops"]["mean"],
        latency=latency,
    )


def _latencies(point: str, clocks_a: Sequence[Timing], clocks_b: Sequence[Timing]) -> dict[str, tuple[float, float]]:
    """Only timings of one machine and one setup are compared."""
    found = {(t.setup, t.batch): t for t in clocks_b if t.point == point and t.ok}
    pairs = [
        (t, found[t.setup, t.batch]) for t in clocks_a if t.point == point and t.ok and (t.setup, t.batch) in found
    ]
    return {
        f"batch {t.batch}, {t.setup}": (t.ms(0.5), other.ms(0.5))
        for t, other in sorted(pairs, key=lambda p: p[0].batch)
    }


def _ambiguous(changes: Sequence[Change]) -> set[tuple[str, str]]:
    """Methods that occur with several settings on one dataset."""
    settings: dict[tuple[str, str], set[str]] = {}
    for change in changes:
        settings.setdefault((change.dataset, change.method), set()).add(change.settings)
    return {key for key, found in settings.items() if len(found) > 1}


def _latency_text(latency: Mapping[str, tuple[float, float]]) -> str:
    return (
        ", ".join(f"{name.split(',')[0].removeprefix('batch ')}: {b / a:.2f}" for name, (a, b) in latency.items())
        or "–"
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


def _rest(comparison: Comparison, text: Callable[[str], str]) -> str:
    parts = (
        ("Only in A", comparison.only_a),
        ("Only in B", comparison.only_b),
        ("In both, but not comparable", comparison.not_comparable),
    )
    return "".join(
        f"\n{title}:\n\n" + "".join(f"* {text(name)}\n" for name in names) for title, names in parts if names
    )
