"""Which of two methods is better at equal cost? Over videos and training seeds together, in one sentence.

    bench.py compare --methods adafocus-v2,tsn [--at latency] [WORK_DIR...]

A method is the curve of its test-time knob: accuracy between two operating points is interpolated over log cost. At
every cost that is a weighted mean of per-video scores, and so is the mean over a range of costs (the area between the
curves): one test serves all (`harness.measure.statistics.difference`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from harness.contract.declarations import EMPTY
from harness.contract.names import split_name, stands_for
from harness.errors import BenchError, UsageError, unknown
from harness.measure.statistics import SIGNIFICANT, Effect, difference, holm
from reports.claims import signed
from reports.collect import Group, Method, Point, collect, fold_sets
from reports.compare import p_text
from reports.tables import ms
from reports.text import Cell, Column, Row, Table, to_plain
from reports.timings import Timing, footnote, joined_notes

COSTS = 5
"""Equal costs at which the curves are compared, evenly over the logarithm of the range that both reach."""


@dataclass(frozen=True)
class Contrast:
    """A minus B at one cost, or as a mean over a range of costs."""

    where: str
    a: float
    b: float
    """Their values there, in the metric's unit."""
    effect: Effect
    p_holm: float
    """Corrected for all contrasts of its kind in the answer."""


@dataclass(frozen=True)
class Pair:
    """Two methods on one data set."""

    dataset: str
    metric: str
    a: str
    b: str
    at: str
    """What is equal: GFLOPs, or latency at a batch on a setup."""
    range: tuple[float, float]
    """Costs that both reach, in GFLOPs or ms."""
    main: Contrast
    """The mean over the range, on a log scale: the area between the curves over its width."""
    points: tuple[Contrast, ...]
    """At single costs, and at the default points."""
    note: str = ""
    """Marks of the timings that it rests on, and how much of them ran compiled where not all did."""
    dropped: tuple[str, ...] = ()
    """Points that are on no curve: slower than one of more GFLOPs."""

    @property
    def significant(self) -> bool:
        """Whether the methods, not just these networks, are shown to differ."""
        return self.main.effect.covers_training and self.main.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Answer:
    """Every pair of methods on every data set that has both."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    """Pairs that could not be compared somewhere, with the reason."""
    footnote: str = ""
    """What the marks at latencies mean."""

    def to_text(self) -> str:
        """The sentences, and a small table of the single costs."""
        sentences = "\n".join(sentence(pair, len(self.pairs)) for pair in self.pairs)
        left = "".join(f"\nNot compared: {line}." for line in self.left_out)
        return f"{sentences}{left}\n\n{to_plain(_table(self))}\n\n{_note(self)}"

    def to_json(self) -> dict[str, Any]:
        """For a script: every number unrounded."""
        pairs = [
            {**asdict(p), "significant": p.significant, "sentence": sentence(p, len(self.pairs))} for p in self.pairs
        ]
        return {"pairs": pairs, "left_out": self.left_out, "footnote": self.footnote}


def versus(
    methods: Sequence[str],
    work_dirs: Sequence[Path],
    *,
    at: str = "gflops",
    defaults: Mapping[str, Mapping[str, Any]] = EMPTY,
) -> Answer:
    """Compare every two of the methods wherever both were evaluated on the same videos.

    Args:
        methods: Names as in a record, with settings in brackets where several variants are there; or labels of
            the report.
        work_dirs: Work directories of `bench.py run`.
        at: What is made equal: gflops, or latency (timings of one machine and setup).
        defaults: Method -> settings that its class sets, which may be written out in a name.

    Raises:
        UsageError: fewer than two methods, one that is not there or not unique, or an unknown `at`.
        BenchError: no data set has two of them, their costs do not overlap, or nothing was timed.
    """
    if at not in ("gflops", "latency"):
        raise unknown("cost", at, ("gflops", "latency"))
    if len(set(methods)) < 2:
        raise UsageError("--methods takes two or more different methods: --methods adafocus-v2,tsn")
    groups = collect(work_dirs).groups
    for name in methods:
        if not any(_matching(g, name, defaults) for g in groups):
            raise unknown("method in these results", name, {m.about["name"] for g in groups for m in g.methods})
    pairs, left, clocks = list[Pair](), list[str](), list[Timing]()
    for folds in fold_sets(groups):
        for names in combinations(methods, 2):
            curves = [_found(folds, name, defaults) for name in names]
            if not all(curves):
                absent = ", ".join(n for n, c in zip(names, curves, strict=True) if not c)
                left.append(f"{names[0]} with {names[1]} on {_title(folds)}: {absent} was not evaluated there")
                continue
            if all(a is b for a, b in zip(*curves, strict=True)):
                raise UsageError(f"--methods: {names[0]!r} and {names[1]!r} are one method; name two different ones")
            try:
                pair, timed = _pair(folds, names, curves, at)
                pairs.append(pair)
                clocks += timed
            except BenchError as error:
                left.append(f"{names[0]} with {names[1]} on {_title(folds)}: {error}")
    if not pairs:
        raise BenchError("nothing could be compared: " + "; ".join(left))
    return Answer(tuple(_corrected(pairs)), tuple(left), footnote(clocks))


def sentence(pair: Pair, family: int) -> str:
    """The answer for one pair; `family` tests were made."""
    found, first, second = pair.main.effect, pair.a, pair.b
    value, low, high, seeds = found.value, found.low, found.high, found.seeds
    if value < 0:
        first, second, value, low, high, seeds = second, first, -value, -high, -low, seeds[::-1]
    more = f"better in {pair.metric}" if pair.metric.startswith("mAP") else "more accurate"
    size = f"{value:.1f} points [{signed(low).lstrip('+')}, {signed(high).lstrip('+')}] {more}"
    where = f"at equal {pair.at} ({pair.main.where})" + (f" {pair.note}" if pair.note else "")
    folds = f", {found.folds} folds" if found.folds > 1 else ""
    p = f"p {_equals(pair.main.p_holm)}" + (f" (Holm over {family})" if family > 1 else "")
    if not found.covers_training:
        return (
            f"On {pair.dataset}, {_networks(first, second, size, seeds)} {where}, over {found.videos} videos; {p}. "
            "One seed compares networks, not the methods: train several (run --seeds 3)."
        )
    over = f"over {_seeds(found.seeds)}{folds} and {found.videos} videos; {p}"
    if pair.significant:
        return f"On {pair.dataset}, {first} is {size} than {second} {where}, {over}."
    return f"On {pair.dataset}, {first} and {second} are not distinguishable {where}: {first} is {size}, {over}."


def _networks(first: str, second: str, size: str, seeds: tuple[int, int]) -> str:
    """What is said of networks, where one method has one seed, or both."""
    one = f"this network of {first} is" if seeds[0] == 1 else f"{seeds[0]} networks of {first} on average are"
    if seeds[1] > 1:
        return f"{one} {size} than {seeds[1]} of {second} on average"
    return f"{one} {size} than {'this one' if seeds[0] == 1 else 'one'} of {second}"


def _pair(
    folds: Sequence[Group], names: Sequence[str], found: Sequence[Sequence[Method]], at: str
) -> tuple[Pair, list[Timing]]:
    """And the timings that it rests on. Raises BenchError where there is no equal cost."""
    clocks, what = ([], "GFLOPs") if at == "gflops" else _latencies(names, found)
    costs = [{t.point: t.ms(0.5) for t in timed} for timed in clocks] if clocks else [_gflops(m) for m in found]
    text = _macs if at == "gflops" else _milliseconds
    a, b = (_Curve(folds, methods, cost) for methods, cost in zip(found, costs, strict=True))
    for name, curve in zip(names, (a, b), strict=True):
        if not curve.costs:
            raise BenchError(f"no point of {name}'s curve has a cost; run `bench.py latency {name}`")
    low, high = max(a.costs[0], b.costs[0]), min(a.costs[-1], b.costs[-1])
    if low > high * (1 + 1e-9):
        spans = " and ".join(
            f"{name} {text(c.costs[0])} to {text(c.costs[-1])}" for name, c in zip(names, (a, b), strict=True)
        )
        raise BenchError(f"their costs do not overlap ({spans}), so there is no equal cost")
    wide = high > low * (1 + 1e-3)
    sign = 1 if folds[0].metric.higher_is_better else -1

    def contrast(where: str, one: list[np.ndarray], two: list[np.ndarray]) -> Contrast:
        effect = difference([sign * x for x in one], [sign * y for y in two])
        return Contrast(where, _mean(one), _mean(two), effect, effect.p)

    where = f"mean from {text(low)} to {text(high)}" if wide else text(low)
    main = contrast(where, a.over(low, high), b.over(low, high))
    single = np.geomspace(low, high, COSTS) if wide else ()
    points = [contrast(text(float(c)), a.over(c, c), b.over(c, c)) for c in single]
    if a.default_cost and b.default_cost:
        defaults = f"default points, {text(a.default_cost)} and {text(b.default_cost)}"
        points.append(contrast(defaults, a.default, b.default))
    span = (float(low), float(high))
    used = [t for timed, c in zip(clocks, (a, b), strict=False) for t in timed if t.point in c.rests_on]
    dropped = tuple(f"{name} at {n}" for name, c in zip(names, (a, b), strict=True) for n in c.dropped)
    note, metric = joined_notes(used), folds[0].metric.title
    return Pair(_title(folds), metric, names[0], names[1], what, span, main, tuple(points), note, dropped), used


class _Curve:
    """Scores of one method over cost, on the points of its first test-time knob.

    A point that costs more (in ms) than one of more GFLOPs is `dropped`: over cost the knob would run back and forth.
    Accuracy has no say in that.
    """

    def __init__(self, folds: Sequence[Group], methods: Sequence[Method], costs: Mapping[str, float]) -> None:
        curves = methods[0].curves()
        knob = [p.name for p in (curves[0] if curves else methods[0].points)]
        everywhere = set.intersection(*({p.name for p in m.points} for m in methods))
        gflops = _gflops(methods)
        timed = sorted((n for n in knob if costs.get(n) and n in everywhere), key=costs.__getitem__)
        self.dropped = [n for n in timed if any(costs[m] < costs[n] and gflops[m] > gflops[n] for m in timed)]
        names = [n for n in timed if n not in self.dropped]
        self.rests_on = {*timed, methods[0].default.name}
        self.costs = [costs[n] for n in names]
        self._scores = [[g.scores(_point(m, n)) for n in names] for g, m in zip(folds, methods, strict=True)]
        self.default = [g.scores(m.default) for g, m in zip(folds, methods, strict=True)]
        self.default_cost = costs.get(methods[0].default.name)

    def over(self, low: float, high: float) -> list[np.ndarray]:
        """Scores (seeds, videos) of every fold, interpolated over log cost and averaged from `low` to `high`."""
        knots = np.log(self.costs)
        ends = np.log([low, high])
        at = np.unique([*ends, *knots[(knots > ends[0]) & (knots < ends[1])]])
        weights = np.stack([np.interp(at, knots, one) for one in np.eye(len(knots))])
        mean = weights[:, 0] if len(at) == 1 else np.trapezoid(weights, at, axis=1) / (at[-1] - at[0])
        return [np.tensordot(mean, np.stack(scores), axes=1) for scores in self._scores]


def _gflops(methods: Sequence[Method]) -> dict[str, float]:
    """Mean cost of every point of a method, over seeds and folds."""
    by_point: dict[str, list[float]] = {}
    for point in (p for m in methods for p in m.points):
        by_point.setdefault(point.name, []).append(point.gflops)
    return {name: fmean(values) for name, values in by_point.items()}


def _latencies(names: Sequence[str], found: Sequence[Sequence[Method]]) -> tuple[list[list[Timing]], str]:
    """The timings of both, one of a point, at the smallest batch and the setup that both share."""
    timed = [{(t.setup, t.batch, t.point): t for m in methods for t in m.timings if t.ok} for methods in found]
    shared = set.intersection(*({key[:2] for key in times} for times in timed))
    if not shared:
        raise BenchError(
            "they were not timed on one machine with one setup; run `bench.py latency "
            f"{' '.join(names)}`, or compare --at gflops"
        )
    setup, batch = min(shared, key=lambda key: (key[1], -sum(k[:2] == key for t in timed for k in t), key[0]))
    chosen = [[t for key, t in times.items() if key[:2] == (setup, batch)] for times in timed]
    return chosen, f"latency at batch {batch} on {setup}"


def _found(folds: Sequence[Group], name: str, defaults: Mapping[str, Mapping[str, Any]]) -> list[Method]:
    """The method of that name in every fold; empty where one lacks it.

    Where its exits were calibrated for several units of budgets, a name means multiply-accumulates; a label says which.
    """
    every = [_matching(group, name, defaults) for group in folds]
    units = {m.budgets for methods in every for m in methods}
    found = [[m for m in methods if m.budgets == min(units)] for methods in every]
    for methods in found:
        if len(methods) > 1:
            labels = ", ".join(repr(m.label) for m in methods)
            raise UsageError(
                f"{name!r} stands for several here: {labels}; give their settings ({name}[setting=value]), "
                "or results that hold one of them"
            )
    return [methods[0] for methods in found] if all(found) else []


def _matching(group: Group, text: str, defaults: Mapping[str, Mapping[str, Any]]) -> list[Method]:
    """Methods of a group by label, or by name and those settings that are given."""
    if by_label := [m for m in group.methods if m.label == text]:
        return by_label
    own = defaults.get(split_name(text)[0], EMPTY)
    return [m for m in group.methods if stands_for(text, m.about, own)]


def _point(method: Method, name: str) -> Point:
    return next(p for p in method.points if p.name == name)


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Holm over all main contrasts, and over all single costs."""
    main = holm([p.main.effect.p for p in pairs])
    single = iter(holm([c.effect.p for p in pairs for c in p.points]))
    return [
        replace(p, main=replace(p.main, p_holm=q), points=tuple(replace(c, p_holm=next(single)) for c in p.points))
        for p, q in zip(pairs, main, strict=True)
    ]


def _table(answer: Answer) -> Table:
    columns = (
        Column("Data set", numeric=False),
        Column("A", numeric=False),
        Column("B", numeric=False),
        Column("at", numeric=False),
        Column("A"),
        Column("B"),
        Column("A − B"),
        Column("p"),
    )
    rows = tuple(
        Row(
            (
                Cell(p.dataset),
                Cell(p.a),
                Cell(p.b),
                Cell(c.where, p.note),
                Cell(f"{c.a:.1f}"),
                Cell(f"{c.b:.1f}"),
                Cell(
                    signed(c.effect.value),
                    f"[{signed(c.effect.low)}, {signed(c.effect.high)}]",
                    c.effect.covers_training and c.p_holm < SIGNIFICANT,
                ),
                Cell(p_text(c.p_holm)),
            )
        )
        for p in answer.pairs
        for c in (p.main, *p.points)
    )
    return Table("", "", columns, rows)


def _note(answer: Answer) -> str:
    mains, singles = len(answer.pairs), sum(len(p.points) for p in answer.pairs)
    family = f"{mains} means" if mains > 1 else "1 mean"
    dropped = list(dict.fromkeys(name for p in answer.pairs for name in p.dropped))
    left = f" Not on the curves, slower than a point of more GFLOPs: {', '.join(dropped)}." if dropped else ""
    return (
        f"Accuracy is interpolated over the logarithm of cost.{left} Intervals are 95 % of one comparison each, "
        "over videos and, where there are several, training seeds. p is corrected (Holm) over "
        f"{family} and, apart from that, {singles} single costs; * marks p < {SIGNIFICANT:.2g}. {answer.footnote}"
    ).rstrip()


def _title(folds: Sequence[Group]) -> str:
    return folds[0].title if len(folds) == 1 else f"{folds[0].dataset['title']} ({len(folds)} folds)"


def _seeds(seeds: tuple[int, int]) -> str:
    return f"{seeds[0]} seed{'s' * (seeds[0] > 1)} each" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _macs(gflops: float) -> str:
    return f"{gflops:.3g} G" if gflops >= 1 else f"{1e3 * gflops:.3g} M"


def _milliseconds(time: float) -> str:
    return f"{ms(time)} ms"


def _mean(folds: Sequence[np.ndarray]) -> float:
    """Mean over all videos, seeds of a fold averaged."""
    return float(np.concatenate([scores.mean(axis=0) for scores in folds]).mean())
