"""The plots of a group show every number of its records: points, intervals, histograms, shares."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.pyplot import get_fignums

from reports import drawing, plots
from reports.collect import Group, collect
from tests.reports.conftest import AR_NET, RANDOM, TSN, V2, Factory

LONG = "A method with a name that is far too long for a single line of a legend"
VERBOSE = dataclasses.replace(V2, name="verbose", title=LONG, skill=3.0, gflops=0.03)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Five methods: curves, single points, exits and a long name."""
    factory = Factory(tmp_path_factory.mktemp("plots"))
    for fake in (TSN, VERBOSE, V2, RANDOM, AR_NET):
        record = factory.evaluation(fake, videos=100)
        factory.latency(record)
    return collect([factory.work_dir]).groups[0]


def legend(axes: Axes) -> list[str]:
    """The names in the legend, each in one line."""
    found = axes.get_legend()
    assert found is not None
    return [" ".join(text.get_text().split()) for text in found.get_texts()]


def rows(axes: Axes) -> list[str]:
    """The labels of the rows, each in one line."""
    return [" ".join(label.get_text().split()) for label in axes.get_yticklabels()]


def widths(axes: Axes) -> list[list[float]]:
    """Widths of the parts of every stacked bar, left to right."""
    bars = sorted((bar for bars in axes.containers for bar in bars), key=lambda bar: bar.get_x())
    found: dict[int, list[float]] = {}
    for bar in bars:
        found.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar.get_width())
    return [[w for w in found[row] if w] for row in sorted(found)]


def marks(axes: Axes) -> set[tuple[float, ...]]:
    """Coordinates of all marks."""
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    return {tuple(np.round(at, 9)) for c in dots for at in np.asarray(c.get_offsets())}


def test_every_point_is_marked_and_every_default_carries_its_interval(group):
    axes = plots.over_gflops(group).axes[0]
    points = [p for m in group.methods for p in m.points]
    assert marks(axes) == {(round(p.gflops, 9), round(group.quality(p), 9)) for p in points}
    bars = [s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    estimates = [(m.default.gflops, m.default.metrics["top1"]) for m in group.methods]
    expected = {(x, y) for x, e in estimates for y in (e.low, e.high)}
    assert {(x, y) for bar in bars for x, y in bar} == expected
    curves = {tuple(np.round(line.get_xdata(), 9)) for line in axes.get_lines()}
    assert {tuple(round(p.gflops, 9) for p in curve) for m in group.methods for curve in m.curves()} <= curves
    assert legend(axes) == [*(m.label for m in group.methods), "observed front"]


def test_points_without_a_knob_are_marked_beside_the_curves(group):
    method = group.methods[0]
    loose = dataclasses.replace(method.points[-1], name="loose", knob=None, gflops=0.5)
    with_loose = dataclasses.replace(method, points=(*method.points, loose))
    shown = dataclasses.replace(group, methods=[with_loose, *group.methods[1:]])
    assert (0.5, round(group.quality(loose), 9)) in marks(plots.over_gflops(shown).axes[0])


def test_methods_that_were_not_timed_are_not_in_the_plot_of_latencies(factory):
    factory.latency(factory.evaluation(TSN), "frames=4", ms=7.0)
    factory.evaluation(V2)
    axes = plots.over_latency(collect([factory.work_dir]).groups[0]).axes[0]
    assert legend(axes) == ["TSN", "observed front"] and len(marks(axes)) == 1


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["linear", "log"])
def test_histograms_count_every_video_of_every_seed(factory, spread):
    for seed in range(2):
        factory.evaluation(V2, seed, videos=60)
        factory.evaluation(dataclasses.replace(TSN, gflops=V2.gflops * spread), seed, videos=60)
    (group,) = collect([factory.work_dir]).groups
    shown = [p for m in group.methods for p in plots._varied(m)]
    figure = plots.distributions(group)
    assert figure.axes[0].get_xscale() == ("log" if spread > 1 else "linear")
    for axes, point in zip(figure.axes, shown, strict=True):
        counts = [bar.get_height() for bars in axes.containers for bar in bars]
        assert sum(counts) == (0 if point.gflops_std <= 1e-3 * point.gflops else 2 * 60)
        assert point.gflops in [line.get_xdata()[0] for line in axes.get_lines()]


def test_shares_of_exits_are_those_of_the_records(group):
    axes = plots.exits(group).axes[0]
    points = [p for m in group.methods for p in sorted(m.points, key=lambda p: p.gflops) if p.exits]
    assert len(rows(axes)) == len(points) == 10
    for found, point in zip(widths(axes), points, strict=True):
        assert found == pytest.approx([100 * share for share in point.exits if share])
    written = [float(text.get_text()) for text in axes.texts]
    assert written == [float(f"{100 * share:.0f}") for p in points for share in p.exits if 100 * share >= 7]


def test_components_beyond_the_tenth_are_one_and_none_is_lost(factory):
    many = {f"part {i}": (i + 1) / 78 for i in range(12)}
    factory.evaluation(dataclasses.replace(TSN, components=many, curve=()))
    (group,) = collect([factory.work_dir]).groups
    axes = plots.components(group).axes[0]
    costs = sorted(group.methods[0].default.components.values(), reverse=True)
    assert widths(axes) == [pytest.approx([*costs[:9], sum(costs[9:])])]
    assert legend(axes) == [*(f"part {i}" for i in range(11, 2, -1)), "other"]


def test_long_names_are_in_full_in_every_plot(group):
    assert rows(plots.components(group).axes[0]) == [m.label for m in group.methods]
    labels = [*rows(plots.exits(group).axes[0]), *(r for a in plots.distributions(group).axes for r in rows(a))]
    assert sum(label.startswith(f"{LONG} · ") for label in labels) == 5 + plots.ROWS_PER_METHOD


def test_colours_and_markers_tell_many_methods_apart():
    assert len({(drawing.colour(i), drawing.marker(i)) for i in range(60)}) == 60


def test_figures_are_left_to_nobody(group):
    with drawing.style():
        assert all(figure_of(group) is not None for _, figure_of, _ in plots.PLOTS.values())
    assert get_fignums() == []
