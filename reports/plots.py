"""The plots of one group: accuracy over cost, where the cost goes, and how it differs between videos."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.authors.published import published_results
from reports.collect import Group, Method, Point, pareto
from reports.drawing import FAINT, INK, PAPER, colour, log_ticks, marker, short, wrapped
from reports.timings import footnote

WIDTH = 5.4
ROWS_PER_METHOD = 4
"""Operating points of one method whose distribution is shown."""
COMPONENTS = 10
"""Components that have a colour of their own; the smallest beyond them are one, `other`."""
EARLY_TO_LATE = ("#f2c14e", "#e07a5f", "#a0446b", "#4b2e6d")
Mark = tuple[Method, Point, float]
"""A point and its x coordinate."""


def over_gflops(group: Group) -> Figure:
    """The main metric over executed GFLOPs per video, logarithmic."""
    marks = [(m, p, p.gflops) for m in group.methods for p in m.points if p.gflops > 0]
    figure = _tradeoff(group, marks, "GFLOPs per video (1e9 multiply-accumulates, executed, log scale)")
    _published(group, figure)
    return figure


def over_latency(group: Group) -> Figure | None:
    """The main metric over median latency at the smallest batch; None where nothing was timed."""
    setup = group.setups[0] if group.setups else None
    timed = [
        (m, p, t)
        for m in group.methods
        for p in m.points
        for t in m.timings
        if (t.point, t.setup) == (p.name, setup) and t.ok
    ]
    if not timed:
        return None
    batch = min(t.batch for _, _, t in timed)
    marks = [(m, p, t.ms(0.5)) for m, p, t in timed if t.batch == batch]
    figure = _tradeoff(group, marks, f"median latency at batch {batch} (ms wall clock, log scale)")
    title = [short(str(setup), 90), *textwrap.wrap(footnote(t for _, _, t in timed if t.batch == batch), 95)]
    figure.axes[0].set_title("\n".join(title), fontsize=7.5, fontweight="normal", color=FAINT)
    return figure


def distributions(group: Group) -> Figure | None:
    """Histograms of executed GFLOPs over the test videos; None where every video costs the same everywhere."""
    rows = [(m, p) for m in group.methods for p in _varied(m)]
    if not any(p.gflops_std > 1e-3 * p.gflops for _, p in rows):
        return None
    values = [_per_video(p, "gflops") for _, p in rows]
    low, high = min(v.min() for v in values), 1.02 * max(v.max() for v in values)
    logarithmic = high > 30 * low > 0
    low = low / 1.02 if logarithmic else 0.0
    edges = np.linspace(low, high, 72)
    if logarithmic:  # seaborn wants edges in the scale of the axis
        edges = np.linspace(np.log10(low), np.log10(high), 72)
    labels = [_row_label(m, p) for m, p in rows]
    figure = _figure(labels, height=0.36)
    grid = figure.subplots(len(rows), sharex=True, squeeze=False, gridspec_kw={"hspace": 0})[:, 0]
    if logarithmic:
        log_ticks(grid[0])
    for axes, label, (method, point), data in zip(grid, labels, rows, values, strict=True):
        tint = colour(method.style)
        if point.gflops_std <= 1e-3 * point.gflops:
            axes.vlines(point.gflops, 0, 1, color=tint, linewidth=2.2)
        else:
            sns.histplot(x=data, bins=edges, color=tint, alpha=0.85, linewidth=0, ax=axes)
        (mean,) = axes.plot(point.gflops, 0, "d", color=PAPER, markeredgecolor=INK, clip_on=False)
        axes.set(xlim=(low, high), ylim=(0, 1.2 * axes.dataLim.ymax), ylabel="")
        axes.set_yticks([0], [label], va="bottom")
        axes.tick_params(axis="y", length=0)
        axes.label_outer(remove_inner_ticks=True)
        sns.despine(ax=axes, left=True, bottom=axes is not grid[-1], offset={"bottom": 5})
    grid[-1].set_xlabel("GFLOPs of one video (executed)" + (", log scale" if logarithmic else ""))
    key = {"mean": mean, "share of the videos": Patch(color=FAINT, alpha=0.6)}
    grid[0].legend(key.values(), key, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return figure


def exits(group: Group) -> Figure | None:
    """After which step videos leave, per operating point; None where no method exits."""
    rows = [(m, p) for m in group.methods for p in sorted(m.points, key=lambda p: p.gflops) if p.exits]
    if not rows:
        return None
    shares = 100 * pd.DataFrame([dict(enumerate(p.exits or ())) for _, p in rows]).fillna(0)
    steps = len(shares.columns)
    tints = sns.blend_palette(EARLY_TO_LATE, steps).as_hex()
    figure, axes = _stacked([_row_label(m, p) for m, p in rows], shares, tints, height=0.27)
    widths = shares.to_numpy()
    centres = widths.cumsum(axis=1) - widths / 2
    for row, step in np.argwhere(widths >= 7):
        ink = "#1c1c1c" if step < steps * 0.45 else "#ffffff"
        text = f"{widths[row, step]:.0f}"
        axes.text(centres[row, step], row, text, ha="center", va="center", fontsize=7, color=ink)
    axes.set(xlim=(0, 100), xlabel="share of the test videos (%) that leave after step …")
    axes.grid(visible=False)
    shown = range(steps) if steps <= 10 else np.unique(np.linspace(0, steps - 1, 8).round().astype(int))
    handles = [Patch(color=tints[k], label=str(k + 1)) for k in shown]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(handles),
        columnspacing=0.9,
        handlelength=0.9,
        borderaxespad=0.2,
    )
    return figure


def components(group: Group) -> Figure:
    """Mean GFLOPs per video of every component, at the default points."""
    parts = pd.DataFrame([m.default.components for m in group.methods]).fillna(0)
    parts = parts[parts.sum().sort_values(ascending=False, kind="stable").index]
    if len(parts.columns) > COMPONENTS:
        small = parts.columns[COMPONENTS - 1 :]
        parts = parts.drop(columns=small).assign(other=parts[small].sum(axis=1))
    names = list(map(str, parts.columns))
    tints = [FAINT if name == "other" else colour(i) for i, name in enumerate(names)]
    figure, axes = _stacked([wrapped(m.label) for m in group.methods], parts, tints, height=0.32)
    axes.set_xlabel("GFLOPs per video (executed, mean)")
    axes.grid(visible=False, axis="y")
    handles = [Patch(color=tint, label=name) for name, tint in zip(names, tints, strict=True)]
    axes.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(1.01, -0.5 / figure.get_size_inches()[1]),
        ncols=_columns(names, {14: 4, 30: 2}),
        columnspacing=1.2,
        handlelength=1,
    )
    return figure


def _tradeoff(group: Group, marks: Sequence[Mark], label: str) -> Figure:
    """Curves with their intervals; default points are large and carry their own."""
    figure = Figure(figsize=(WIDTH, 3.7))
    axes = figure.subplots()
    log_ticks(axes)
    points = _frame(group, marks)
    low, high = points.cost.min(), points.cost.max()
    room = max((high / low) ** 0.06, 1.12) if high > low else 2.0  # also where all points have one cost
    axes.set_xlim(low / room, high * room)  # first: a logarithmic axis of no width cannot be drawn on
    tints, shapes = ({wrapped(m.label): of(m.style) for m in group.methods} for of in (colour, marker))
    for _, curve in points.groupby("curve"):
        tint, default = tints[curve.method.iloc[0]], curve[curve.default]
        axes.fill_between(curve.cost, curve.low, curve.high, color=tint, alpha=0.12, linewidth=0)
        axes.vlines(default.cost, default.low, default.high, color=tint, linewidth=1.1, zorder=4)
    look: dict[str, Any] = {"x": "cost", "y": "value", "hue": "method", "style": "method", "palette": tints}
    look |= {"markers": shapes, "ax": axes}
    sns.lineplot(points, units="curve", estimator=None, dashes=False, linewidth=1.4, markeredgecolor=PAPER, **look)
    large_last, sizes = points.sort_values("default"), {True: 64, False: 23}
    sns.scatterplot(large_last, size="default", sizes=sizes, edgecolor=PAPER, zorder=5, legend=False, **look)
    front = points.iloc[pareto(list(points.cost), list(points.value), higher_is_better=group.metric.higher_is_better)]
    axes.step(front.cost, front.value, "--", where="post", color=FAINT, linewidth=1, zorder=1, label="observed front")
    axes.set(xlabel=label, ylabel=f"{group.metric.title} ({group.metric.unit})")
    columns = _columns(points.method, {20: 3, 31: 2})
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17), ncols=columns, columnspacing=1.4, markerscale=1.2)
    return figure


def _frame(group: Group, marks: Sequence[Mark]) -> pd.DataFrame:
    """A row for each point of each curve, by rising cost within one; a point of no knob is a curve of its own."""
    cost = {(m.label, p.name): x for m, p, x in marks}
    curves = [(m, c) for m in group.methods for c in (*m.curves(), *([p] for p in m.points if p.knob is None))]
    rows = [
        {
            "curve": number,
            "method": wrapped(m.label),
            "cost": cost[m.label, p.name],
            "default": p is m.default,
            **asdict(p.metrics[group.metric.name]),
        }
        for number, (m, curve) in enumerate(curves)
        for p in curve
        if (m.label, p.name) in cost
    ]
    return pd.DataFrame(rows).sort_values(["curve", "cost"], kind="stable", ignore_index=True)


def _published(group: Group, figure: Figure) -> None:
    """Hollow marks for what the papers printed of these methods on this dataset, by their own counters."""
    axes = figure.axes[0]
    styles = {m.about["name"]: m.style for m in sorted(group.methods, key=lambda m: m.budgets, reverse=True)}
    printed = published_results(group.dataset["name"])
    marks = [
        (styles[r.ours], r.gflops, r.value)
        for r in printed
        if r.ours in styles and not r.quoted and r.metric == group.metric.name and r.gflops
    ]
    for style, cost, value in marks:
        axes.plot(
            cost,
            value,
            marker(style),
            color=colour(style),
            markersize=5.5,
            markerfacecolor="none",
            markeredgewidth=1.1,
            zorder=4,
        )
    if marks:
        low, high = axes.get_xlim()
        costs = [cost for _, cost, _ in marks]
        axes.set_xlim(min(low, min(costs) / 1.12), max(high, max(costs) * 1.12))
        note = "hollow: as published, at full size, of the epoch best on test"
        axes.set_title(note, fontsize=7.5, fontweight="normal", color=FAINT)


def _stacked(labels: Sequence[str], parts: pd.DataFrame, tints: Sequence[str], *, height: float) -> tuple[Figure, Axes]:
    """A labelled horizontal bar per row of `parts`, its columns from left to right."""
    figure = _figure(labels, height=height)
    axes = figure.subplots()
    sns.histplot(
        y=np.repeat(range(len(parts)), len(parts.columns)),
        weights=parts.to_numpy().ravel(),
        discrete=True,
        shrink=0.72,
        hue=np.tile(parts.columns, len(parts)),
        hue_order=parts.columns[::-1],  # the last of them is drawn at the axis
        palette=tints[::-1],
        multiple="stack",
        alpha=1,
        edgecolor=PAPER,
        linewidth=0.6,
        legend=False,
        ax=axes,
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(labels) - 0.5, -0.5), ylabel="")
    sns.despine(ax=axes, left=True)
    return figure, axes


def _figure(labels: Sequence[str], *, height: float) -> Figure:
    """An empty figure with room for one horizontal row per label, `height` inches or what its lines need."""
    row = max(height, 0.14 * max(label.count("\n") + 1 for label in labels))
    return Figure(figsize=(0.9 * WIDTH, max(1.5, 0.75 + row * len(labels))))


def _row_label(method: Method, point: Point) -> str:
    return wrapped(f"{method.label} · {point.name}")


def _columns(names: Iterable[str], limits: Mapping[int, int]) -> int:
    """Columns of a legend: those of the first limit (in characters) that no line reaches, else one."""
    longest = max(len(line) for name in names for line in name.splitlines())
    return next((columns for limit, columns in limits.items() if longest < limit), 1)


def _varied(method: Method) -> list[Point]:
    """Points that show a method's distribution: the default and, of those that differ per video, evenly chosen ones."""
    varied = sorted(
        (p for p in method.points if p is not method.default and p.gflops_std > 1e-3 * p.gflops), key=lambda p: p.gflops
    )
    room = ROWS_PER_METHOD - 1
    if len(varied) > room:
        varied = [varied[i] for i in np.linspace(0, len(varied) - 1, room).round().astype(int)]
    return sorted([method.default, *varied], key=lambda p: p.gflops)


def _per_video(point: Point, name: str) -> np.ndarray:
    """An array over the test videos, all seeds one after the other."""
    return np.concatenate([record.arrays()[f"{entry['prefix']}_{name}"] for record, entry in point.runs])


PLOTS: dict[str, tuple[str, Callable[[Group], Figure | None], str]] = {
    "accuracy-gflops": (
        "Accuracy over GFLOPs",
        over_gflops,
        "Large marks: the default point with its 95 % interval over videos; small marks: other operating points "
        "of the same training.",
    ),
    "accuracy-latency": (
        "Accuracy over latency",
        over_latency,
        "The same operating points, all timed on real videos on one machine: medians over several launches.",
    ),
    "gflops-distribution": (
        "GFLOPs from video to video",
        distributions,
        "A method that adapts spends more on some videos than on others; a line: every video costs the same.",
    ),
    "exits": ("Exits", exits, "After how many steps the videos leave, at each budget."),
    "components": ("Where the GFLOPs go", components, "Executed components at the default point."),
}
"""File stem -> title, figure of a group, caption."""
