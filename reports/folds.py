"""Pooled out-of-fold figures: every video once, tested by the networks that did not see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.metrics import Metric, softmax
from harness.measure.statistics import FEWEST_FOLDS, pooled_interval
from reports.collect import Group, Method, fold_sets, identity
from reports.tables import cost_format, metric_cell
from reports.text import Cell, Column, Row, Table


@dataclass(frozen=True)
class _Pooled:
    """A method's default point over all folds."""

    method: Method
    value: float
    low: float
    high: float
    seeds: int
    gflops: float
    videos: int


def pooled_tables(groups: Sequence[Group]) -> list[Table]:
    """One table for every cross-validation of several folds among the groups."""
    return [_table(folds) for folds in fold_sets(groups) if len(folds) > 1]


def _table(folds: Sequence[Group]) -> Table:
    metric, column = folds[0].metric, str(folds[0].fold).partition("=")[0]
    rows = [_pooled(found, metric) for m in folds[0].methods if (found := _in_all(folds, m))]
    cost = cost_format(p.gflops for p in rows)
    over = "over folds" if len(folds) >= FEWEST_FOLDS else "over videos"
    note = (
        f"{len(folds)} folds of column {column}; every video counts once, by the networks that did not see it. "
        f"Intervals are {over}"
        + (", whose networks differ." if len(folds) >= FEWEST_FOLDS else f": {len(folds)} folds are too few to differ.")
    )
    if metric.name.startswith("mAP"):
        note += " Scores of different networks are ranked together."
    if left := sorted({m.label for g in folds for m in g.methods} - {p.method.label for p in rows}):
        note += f" Not in all folds, and left out: {', '.join(left)}."
    if _overlap(folds):
        note += " Some videos are in several folds: they count more than once."
    return Table(
        f"{folds[0].dataset['title']}: all folds pooled",
        note,
        (
            Column("Method", numeric=False),
            Column("Point", numeric=False),
            Column(metric.title, f"{metric.unit} [95 % {over}]"),
            Column("Seeds"),
            Column("Videos"),
            Column("GFLOPs", "mean"),
        ),
        tuple(
            Row(
                (
                    Cell(p.method.label),
                    Cell(p.method.default.name),
                    metric_cell(p.value, p.low, p.high, videos=p.videos),
                    Cell(str(p.seeds)),
                    Cell(str(p.videos)),
                    Cell(cost(p.gflops)),
                ),
                p.method.style,
            )
            for p in sorted(rows, key=lambda p: p.value, reverse=metric.higher_is_better)
        ),
    )


def _in_all(folds: Sequence[Group], method: Method) -> list[Method]:
    """The same method in every fold, with a seed in common; empty where one lacks it."""
    wanted = identity(method.records[0])
    found = [m for g in folds for m in g.methods if identity(m.records[0]) == wanted]
    return found if len(found) == len(folds) and _seeds(found) else []


def _seeds(folds: Sequence[Method]) -> list[int]:
    return sorted(set.intersection(*(set(m.seeds) for m in folds)))


def _pooled(folds: Sequence[Method], metric: Metric) -> _Pooled:
    """Scores of all folds together, seed by seed; the seeds' means are averaged."""
    seeds, by_seed = _seeds(folds), []
    for seed in seeds:
        scores, targets = zip(*(_outputs(m, seed) for m in folds), strict=True)
        width = max(t.shape[1] for t in targets)
        padded = [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=-1) for t in targets]
        joined = metric.contributions(np.concatenate(scores), np.concatenate(padded))
        by_seed.append(np.split(joined, np.cumsum([len(s) for s in scores])[:-1]))
    means = [np.mean(fold, axis=0) for fold in zip(*by_seed, strict=True)]
    everything = np.concatenate(means)
    low, high = pooled_interval(means)
    videos = [len(fold) for fold in means]
    gflops = float(np.average([m.default.gflops for m in folds], weights=videos))
    return _Pooled(folds[0], float(everything.mean()), low, high, len(seeds), gflops, sum(videos))


def _outputs(method: Method, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities and targets of one training seed at the default point."""
    record, entry = next((r, e) for r, e in method.default.runs if r.result["seed"] == seed)
    arrays = record.arrays()
    return softmax(arrays[f"{entry['prefix']}_logits"]), arrays["targets"]


def _overlap(folds: Sequence[Group]) -> bool:
    ids = [np.unique(g.methods[0].records[0].arrays()["ids"]) for g in folds]
    return len(np.unique(np.concatenate(ids))) < sum(map(len, ids))
