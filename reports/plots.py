"""The plots of one group: accuracy over cost, where the cost goes, and how it differs between videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.cost.published import published_results
from reports.collect import Group, Method, Point, pareto
from reports.drawing import FAINT, GRID, INK, PALETTE, PAPER, colour, log_ticks, marker, short

WIDTH = 5.4
ROWS_PER_METHOD = 4
"""Operating points of one method whose distribution is shown."""
EARLY_TO_LATE = LinearSegmentedColormap.from_list("exits", ["#f2c14e", "#e07a5f", "#a0446b", "#4b2e6d"])
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
    figure.axes[0].set_title(short(str(setup), 90), fontsize=7.5, fontweight="normal", color=FAINT)
    return figure


def distributions(group: Group) -> Figure | None:
    """Histograms of executed GFLOPs over the test videos; None where every video costs the same everywhere."""
    rows = [(m, p) for m in group.methods for p in _varied(m)]
    if not any(p.gflops_std > 1e-3 * p.gflops for _, p in rows):
        return None
    values = [_per_video(p, "gflops") for _, p in rows]
    low, high = min(v[v > 0].min(initial=np.inf) for v in values), max(v.max() for v in values)
    logarithmic = high > 30 * low
    edges = np.geomspace(low / 1.02, high * 1.02, 72) if logarithmic else np.linspace(0, high * 1.02, 72)
    figure, axes = _rows([f"{short(m.label, 24)} · {short(p.name, 14)}" for m, p in rows], height=0.36)
    for row, ((method, point), data) in enumerate(zip(rows, values, strict=True)):
        _ridge(axes, row, data, edges, colour(method.style), point)
    if logarithmic:
        log_ticks(axes)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(len(rows) - 0.45, -0.95)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("GFLOPs of one video (executed)" + (", log scale" if logarithmic else ""))
    handles = [
        Line2D(
            [], [], marker="d", linestyle="", markersize=5, markerfacecolor=PAPER, markeredgecolor=INK, label="mean"
        ),
        Patch(color=FAINT, alpha=0.6, label="share of the videos"),
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return figure


def exits(group: Group) -> Figure | None:
    """After which step videos leave, per operating point; None where no method exits."""
    rows = [(m, p) for m in group.methods for p in sorted(m.points, key=lambda p: p.gflops) if p.exits]
    if not rows:
        return None
    steps = max(len(p.exits or ()) for _, p in rows)
    figure, axes = _rows([f"{short(m.label, 24)} · {short(p.name, 14)}" for m, p in rows], height=0.27)
    colours = [to_hex(EARLY_TO_LATE(k / max(steps - 1, 1))) for k in range(steps)]
    left = np.zeros(len(rows))
    for step in range(steps):
        share = np.array([100 * p.exits[step] if p.exits and step < len(p.exits) else 0.0 for _, p in rows])
        axes.barh(range(len(rows)), share, left=left, color=colours[step], height=0.74, edgecolor=PAPER, linewidth=0.6)
        for row in np.flatnonzero(share >= 7):
            ink = "#1c1c1c" if step < steps * 0.45 else "#ffffff"
            axes.text(
                left[row] + share[row] / 2,
                float(row),
                f"{share[row]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color=ink,
            )
        left += share
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("share of the test videos (%) that leave after step …")
    axes.grid(visible=False)
    shown = range(steps) if steps <= 10 else np.unique(np.linspace(0, steps - 1, 8).round().astype(int))
    handles = [Patch(color=colours[k], label=str(k + 1)) for k in shown]
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
    names = _largest([m.default.components for m in group.methods], 10)
    figure, axes = _rows([short(m.label) for m in group.methods], height=0.32)
    left = np.zeros(len(group.methods))
    for i, name in enumerate(names):
        if name == "other":
            width = np.array([sum(v for n, v in m.default.components.items() if n not in names) for m in group.methods])
        else:
            width = np.array([m.default.components.get(name, 0.0) for m in group.methods])
        tint = FAINT if name == "other" else PALETTE[i % len(PALETTE)]
        axes.barh(
            range(len(left)),
            width,
            left=left,
            color=tint,
            height=0.7,
            edgecolor=PAPER,
            linewidth=0.6,
            label=short(name, 22),
        )
        left += width
    axes.set_ylim(len(left) - 0.5, -0.5)
    axes.set_xlabel("GFLOPs per video (executed, mean)")
    axes.grid(visible=False, axis="y")
    columns = 4 if max(map(len, names)) < 14 else 2
    below = (1.01, -0.5 / figure.get_size_inches()[1])
    axes.legend(loc="upper right", bbox_to_anchor=below, ncols=columns, columnspacing=1.2, handlelength=1)
    return figure


def _tradeoff(group: Group, marks: Sequence[Mark], label: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.7))
    axes = figure.subplots()
    where = {(m.label, p.name): x for m, p, x in marks}
    _front_line(group, axes, marks)
    drawn = [m for m in group.methods if any(m.label == n for n, _ in where)]
    for method in drawn:
        for curve in method.curves():
            _curve(
                group,
                axes,
                method,
                [(where[method.label, p.name], p) for p in curve if (method.label, p.name) in where],
            )
        for point in method.points:
            if (method.label, point.name) in where:
                _mark(group, axes, method, point, where[method.label, point.name])
    log_ticks(axes)
    _widen(axes, [x for _, _, x in marks])
    axes.set_xlabel(label)
    axes.set_ylabel(f"{group.metric.title} ({group.metric.unit})")
    handles = [_key(m) for m in drawn]
    handles.append(Line2D([], [], color=FAINT, linestyle=(0, (4, 2)), linewidth=1, label="Pareto front"))
    longest = max(len(m.label) for m in drawn)
    columns = 3 if longest < 20 else 2 if longest <= 30 else 1
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.17), ncols=columns, columnspacing=1.4)
    return figure


def _published(group: Group, figure: Figure) -> None:
    """Hollow marks for what the papers printed of these methods on this dataset, by their own counters."""
    axes = figure.axes[0]
    styles = {m.about["name"]: m.style for m in group.methods}
    printed = [
        r
        for r in published_results(group.dataset["name"])
        if r.ours in styles and not r.quoted and r.metric == group.metric.name
    ]
    marks = [(r, r.gflops) for r in printed if r.gflops]
    for result, cost in marks:
        axes.plot(
            cost,
            result.value,
            marker=marker(styles[result.ours]),
            markersize=5.5,
            linestyle="",
            markerfacecolor="none",
            markeredgecolor=colour(styles[result.ours]),
            markeredgewidth=1.1,
            zorder=4,
        )
    if marks:
        low, high = axes.get_xlim()
        costs = [cost for _, cost in marks]
        axes.set_xlim(min(low, min(costs) / 1.12), max(high, max(costs) * 1.12))
        axes.set_title("hollow: as published, at the paper's full size", fontsize=7.5, fontweight="normal", color=FAINT)


def _key(method: Method) -> Line2D:
    """A method's entry in the legend."""
    tint, shape = colour(method.style), marker(method.style)
    return Line2D(
        [],
        [],
        color=tint,
        marker=shape,
        markersize=5.5,
        markeredgecolor=PAPER,
        linewidth=1.4,
        label=short(method.label, 60),
    )


def _front_line(group: Group, axes: Axes, marks: Sequence[Mark]) -> None:
    values = [group.quality(p) for _, p, _ in marks]
    front = pareto([x for _, _, x in marks], values, higher_is_better=group.metric.higher_is_better)
    axes.step(
        [marks[i][2] for i in front],
        [values[i] for i in front],
        where="post",
        color=FAINT,
        linestyle=(0, (4, 2)),
        linewidth=1,
        zorder=1,
    )


def _curve(group: Group, axes: Axes, method: Method, found: Sequence[tuple[float, Point]]) -> None:
    found = sorted(found, key=lambda entry: entry[0])
    estimates = [p.metrics[group.metric.name] for _, p in found]
    xs, tint = [x for x, _ in found], colour(method.style)
    axes.fill_between(
        xs, [e.low for e in estimates], [e.high for e in estimates], color=tint, alpha=0.12, linewidth=0, zorder=2
    )
    axes.plot(xs, [e.value for e in estimates], color=tint, linewidth=1.4, zorder=3)


def _mark(group: Group, axes: Axes, method: Method, point: Point, x: float) -> None:
    """The default point is large and carries its interval; other points are small."""
    estimate, tint = point.metrics[group.metric.name], colour(method.style)
    default = point is method.default
    if default:
        axes.vlines(x, estimate.low, estimate.high, color=tint, linewidth=1.1, zorder=4)
    axes.plot(
        x,
        estimate.value,
        marker=marker(method.style),
        markersize=8 if default else 4.6,
        color=tint,
        linestyle="",
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=6 if default else 5,
    )


def _widen(axes: Axes, xs: Sequence[float]) -> None:
    """Room on both sides, also where all points have one cost."""
    low, high = min(xs), max(xs)
    room = max((high / low) ** 0.06, 1.12) if high > low else 2.0
    axes.set_xlim(low / room, high * room)


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


def _ridge(axes: Axes, row: int, data: np.ndarray, edges: np.ndarray, tint: str, point: Point) -> None:
    axes.axhline(row + 0.32, color=GRID, linewidth=0.8, zorder=1)
    if point.gflops_std <= 1e-3 * point.gflops:
        axes.plot(
            [point.gflops] * 2, [row + 0.32, row - 0.42], color=tint, linewidth=2.2, solid_capstyle="butt", zorder=3
        )
    else:
        counts, _ = np.histogram(data, edges)
        height = 0.82 * counts / counts.max()
        axes.bar(
            edges[:-1],
            -height,
            width=np.diff(edges),
            bottom=row + 0.32,
            align="edge",
            color=tint,
            alpha=0.85,
            linewidth=0,
        )
    axes.plot(
        point.gflops,
        row + 0.32,
        marker="d",
        markersize=5,
        color=PAPER,
        markeredgecolor=INK,
        markeredgewidth=0.9,
        linestyle="",
        zorder=5,
        clip_on=False,
    )


def _rows(labels: Sequence[str], *, height: float) -> tuple[Figure, Axes]:
    """A figure with one labelled horizontal row per label."""
    figure = Figure(figsize=(0.9 * WIDTH, max(1.5, 0.75 + height * len(labels))))
    axes = figure.subplots()
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _largest(parts: Sequence[Mapping[str, float]], limit: int) -> list[str]:
    """Component names by total cost; beyond `limit` they are one, `other`."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    names = sorted(total, key=lambda n: -total[n])
    return names if len(names) <= limit else [*names[: limit - 1], "other"]


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
        "The same operating points, timed on real videos on one machine.",
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
