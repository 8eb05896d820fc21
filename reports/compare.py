"""What changed between two folders of results: paired over videos, and over training seeds where there are several.

comparison = compare(Path("before"), Path("after"))
print(comparison.to_text())

Two methods are compared by `reports.versus`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from harness.contract.values import digest
from harness.errors import BenchError
from harness.measure.metrics import metric
from harness.measure.statistics import SIGNIFICANT, difference, holm
from harness.plan.protocol import budget_label
from harness.store.records import Record, read_records
from reports.claims import signed
from reports.collect import NOT_COMPARED, identity, seed_scores
from reports.tables import cost_format
from reports.text import Cell, Column, Row, Table, markdown_text, to_markdown, to_plain
from reports.timings import Timing, footnote, joined_notes, timings

ONE_SEED = (
    "Rows with one seed in A or B compare networks, not methods or versions of code: two trainings of one method "
    "differ as much by luck. Train several seeds in both folders for a test that covers it."
)


@dataclass(frozen=True)
class Change:
    """One operating point of one cell, in B against A."""

    dataset: str
    part: str | None
    """The fold or selection that was tested."""
    method: str
    settings: str
    """The constructor settings, as JSON: cells of one method differ in them."""
    budgets: str
    """Empty where exits were calibrated for multiply-accumulates; else ` (ms)`, with the batch if it is not 1."""
    recipe: str
    """`recipe` and the hash of its stages' recipes and initialisation."""
    seeds: tuple[int, int]
    """Number of training seeds in A and in B."""
    point: str
    metric: str
    a: float
    b: float
    """Means over seeds."""
    difference: float
    low: float
    high: float
    """95 % of the difference, over videos; over seeds, too, where `covers_training`."""
    p: float
    """Two-sided, of this row alone."""
    p_holm: float
    """Corrected for the number of rows (Holm)."""
    covers_training: bool
    videos: int
    gflops_a: float
    gflops_b: float
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Setup and batch -> median milliseconds of A and of B, where both were timed."""
    latency_notes: Mapping[str, str] = field(default_factory=dict)
    """The same -> marks, and how much ran compiled where not all did; of A or B."""

    @property
    def significant(self) -> bool:
        """Whether more than the luck of trainings and videos is shown."""
        return self.covers_training and self.p_holm < SIGNIFICANT


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
    footnote: str = ""
    """What the marks at latencies mean."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the marks mean, and what one seed cannot show."""
        rows = f"p is corrected for {len(self.changes)} rows (Holm)"
        meaning = f"{rows}; marked: p < {SIGNIFICANT:.2g} over videos and seeds."
        one_seed = ONE_SEED if any(not c.covers_training for c in self.changes) else ""
        return tuple(filter(None, (meaning, self.footnote, one_seed)))

    def to_text(self) -> str:
        """For a terminal: aligned columns, `*` at a significant difference."""
        body = to_plain(_table(self)) if self.changes else "no cell is in both folders"
        notes = "".join(f"{note}\n" for note in self.notes)
        return f"{body}\n\nA: {self.a}\nB: {self.b}\n{notes}{_rest(self, str)}"

    def to_markdown(self) -> str:
        """As a Markdown table."""
        return to_markdown(_table(self)) + _rest(self, markdown_text)

    def to_json(self) -> dict[str, Any]:
        """For a script: every field, every number unrounded."""
        changes = [{**asdict(c), "significant": c.significant} for c in self.changes]
        return {**asdict(self), "changes": changes, "notes": self.notes}


def compare(a: Path, b: Path) -> Comparison:
    """Compare every cell (data set, part, protocol, method, settings, recipe) that both work directories hold.

    Raises:
        BenchError: a folder holds no evaluation.
    """
    cells_a, cells_b = _cells(a), _cells(b)
    timed_a, timed_b = (read_records([folder], "latency") for folder in (a, b))
    names = _names([*cells_a.items(), *cells_b.items()])
    changes: list[Change] = []
    clocks: list[Timing] = []
    unfit: list[str] = []
    for key in sorted(set(cells_a) & set(cells_b), key=names.__getitem__):
        one, two = cells_a[key], cells_b[key]
        reason = _unfit([*one, *two])
        if reason:
            unfit.append(f"{names[key]}: {reason}")
        else:
            for change, timed in _changes(one, two, timed_a, timed_b):
                changes.append(change)
                clocks += timed
    corrected = holm([c.p for c in changes])
    return Comparison(
        str(a),
        str(b),
        tuple(replace(c, p_holm=p) for c, p in zip(changes, corrected, strict=True)),
        tuple(sorted(names[k] for k in cells_a if k not in cells_b)),
        tuple(sorted(names[k] for k in cells_b if k not in cells_a)),
        tuple(unfit),
        footnote(clocks),
    )


def _table(comparison: Comparison) -> Table:
    """The changes as rows."""
    columns = (
        Column("Dataset", numeric=False),
        Column("Method", numeric=False),
        Column("Seeds", "A, B"),
        Column("Point", numeric=False),
        Column("Metric", numeric=False),
        Column("A"),
        Column("B"),
        Column("B − A", "[95 %], paired"),
        Column("p", "Holm"),
        Column("GFLOPs", "A → B"),
        Column("Latency", "B / A, per batch", numeric=False),
    )
    cost = cost_format(g for c in comparison.changes for g in (c.gflops_a, c.gflops_b))
    several = _ambiguous(comparison.changes)
    rows = tuple(
        Row(
            (
                Cell(f"{c.dataset} ({c.part})" if c.part else c.dataset),
                Cell(" ".join([f"{c.method}{c.budgets}", *_apart(c, several)])),
                Cell(f"{c.seeds[0]}, {c.seeds[1]}"),
                Cell(c.point),
                Cell(c.metric),
                Cell(f"{c.a:.1f}"),
                Cell(f"{c.b:.1f}"),
                Cell(signed(c.difference), f"[{signed(c.low)}, {signed(c.high)}]", c.significant),
                Cell(p_text(c.p_holm)),
                Cell(
                    cost(c.gflops_a)
                    if cost(c.gflops_a) == cost(c.gflops_b)
                    else f"{cost(c.gflops_a)} → {cost(c.gflops_b)}"
                ),
                Cell(_latency_text(c)),
            )
        )
        for c in comparison.changes
    )
    note = " ".join([f"A: {comparison.a}. B: {comparison.b}.", *comparison.notes])
    return Table("What changed", note, columns, rows)


def p_text(p: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _cells(folder: Path) -> dict[str, list[Record]]:
    """Cell identity -> the newest record of every seed; what the code or data were is not part of the identity."""
    records = read_records([folder], "evaluation")
    if not records:
        raise BenchError(f"no finished evaluation in {folder}; run `bench.py run --work-dir {folder}` first")
    cells: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: (r.result["method"]["version"], r.result["created"], r.result["key"])):
        result = record.result
        protocol = {k: v for k, v in result["protocol"].items() if k not in NOT_COMPARED or k == "test_seed"}
        dataset = result["dataset"]
        about = [dataset["name"], dataset.get("part"), dataset["resolution"], protocol, identity(record)]
        cells[digest(about)][result["seed"]] = record
    return {key: [found[seed] for seed in sorted(found)] for key, found in cells.items()}


def _names(cells: Iterable[tuple[str, Sequence[Record]]]) -> dict[str, str]:
    """A name for every cell; those that would share one carry their settings, else their recipe."""
    first = {key: records[0] for key, records in cells}
    names = {key: _name(record) for key, record in first.items()}
    for apart in (_settings, _recipe):
        shared = {n for n in names.values() if list(names.values()).count(n) > 1}
        names = {key: f"{n}, {apart(first[key])}" if n in shared else n for key, n in names.items()}
    return names


def _name(record: Record) -> str:
    method, dataset = record.result["method"], record.result["dataset"]
    part = f" ({dataset['part']})" if dataset.get("part") else ""
    budgets = budget_label(record.result["protocol"])
    return f"{method['name']}{budgets} ({method['size']}) on {dataset['name']}{part}"


def _settings(record: Record) -> str:
    return json.dumps(record.result["method"]["settings"], sort_keys=True)


def _recipe(record: Record) -> str:
    stages = [stage.get("recipe") for stage in record.result["training"]["stages"]]
    return f"recipe {digest([record.result['initialisation'], stages], 6)}"


def _unfit(records: Sequence[Record]) -> str | None:
    """Why records cannot be paired video by video, or None."""
    first, *others = (record.arrays() for record in records)
    if not all(np.array_equal(first["ids"], other["ids"]) for other in others):
        return "the test videos differ"
    if not all(np.array_equal(first["targets"], other["targets"]) for other in others):
        return "the labels differ"
    prints = list(dict.fromkeys(r.result["dataset"]["fingerprint"] for r in records))
    return f"the data differ (fingerprints {' and '.join(prints)})" if len(prints) > 1 else None


def _changes(
    one: Sequence[Record], two: Sequence[Record], timed_a: Sequence[Record], timed_b: Sequence[Record]
) -> Iterable[tuple[Change, list[Timing]]]:
    """Every point of a cell, with the timings that its latency is made from."""
    first = one[0].result
    chosen = metric(first["dataset"]["metric"])
    scores_a, scores_b = seed_scores(one, chosen), seed_scores(two, chosen)
    clocks = [
        list(timings(timed, {str(r.result["key"]) for r in records}))
        for timed, records in ((timed_a, one), (timed_b, two))
    ]
    for point in (name for name in scores_a if name in scores_b):
        a, b = scores_a[point], scores_b[point]
        found = difference([b], [a])
        timed = _timed_alike(point, *clocks)
        change = Change(
            dataset=first["dataset"]["name"],
            part=first["dataset"].get("part"),
            method=first["method"]["name"],
            settings=_settings(one[0]),
            budgets=budget_label(first["protocol"]),
            recipe=_recipe(one[0]),
            seeds=(len(a), len(b)),
            point=point,
            metric=chosen.name,
            a=float(a.mean()),
            b=float(b.mean()),
            difference=found.value,
            low=found.low,
            high=found.high,
            p=found.p,
            p_holm=found.p,
            covers_training=found.covers_training,
            videos=found.videos,
            gflops_a=_gflops(one, point),
            gflops_b=_gflops(two, point),
            latency={name: (t.ms(0.5), other.ms(0.5)) for name, (t, other) in timed.items()},
            latency_notes={name: note for name, pair in timed.items() if (note := joined_notes(pair))},
        )
        yield change, [t for pair in timed.values() for t in pair]


def _gflops(records: Sequence[Record], point: str) -> float:
    return fmean(p["gflops"]["mean"] for r in records for p in r.result["points"] if p["name"] == point)


def _timed_alike(
    point: str, clocks_a: Sequence[Timing], clocks_b: Sequence[Timing]
) -> dict[str, tuple[Timing, Timing]]:
    """Only timings of one machine and one setup are compared."""
    found = {(t.setup, t.batch): t for t in clocks_b if t.point == point and t.ok}
    pairs = [
        (t, found[t.setup, t.batch]) for t in clocks_a if t.point == point and t.ok and (t.setup, t.batch) in found
    ]
    return {f"batch {t.batch}, {t.setup}": (t, other) for t, other in sorted(pairs, key=lambda p: p[0].batch)}


def _ambiguous(changes: Sequence[Change]) -> Mapping[tuple[str, str], set[tuple[str, str]]]:
    """Settings and recipes of the methods that occur with several on one dataset."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for change in changes:
        found[change.dataset, change.method].add((change.settings, change.recipe))
    return found


def _apart(change: Change, several: Mapping[tuple[str, str], set[tuple[str, str]]]) -> list[str]:
    """What tells a row from others of its method."""
    rivals = several[change.dataset, change.method]
    settings = [change.settings] if len({s for s, _ in rivals}) > 1 else []
    recipes = {r for s, r in rivals if s == change.settings}
    return [*settings, change.recipe] if len(recipes) > 1 else settings


def _latency_text(change: Change) -> str:
    ratios = [
        f"{name.split(',')[0].removeprefix('batch ')}: {b / a:.2f} {change.latency_notes.get(name, '')}".strip()
        for name, (a, b) in change.latency.items()
    ]
    return ", ".join(ratios) or "–"


def _rest(comparison: Comparison, text: Callable[[str], str]) -> str:
    parts = (
        ("Only in A", comparison.only_a),
        ("Only in B", comparison.only_b),
        ("In both, but not comparable", comparison.not_comparable),
    )
    return "".join(
        f"\n{title}:\n\n" + "".join(f"* {text(name)}\n" for name in names) for title, names in parts if names
    )
