"""The tables of a report: headline, operating points, savings, timings, files; and what they say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from harness.measure.statistics import FEWEST_VIDEOS
from reports.claims import ONE_POINT, PARETO, Claims
from reports.collect import Estimate, Group, Method, Point
from reports.text import Cell, Column, Row, Table
from reports.timings import StreamTiming, Timing, find, footnote, joined_notes

T = TypeVar("T", bound=Timing)
NONE = "–"
BOLD = "Bold: not distinguishable from the best."


def headline(group: Group) -> Table:
    """One row per method at its default point."""
    setup = group.setups[0] if group.setups else None
    tags = Claims(group, group.points).tags()
    best = Claims(group, [m.default for m in group.methods]).contenders
    cost = cost_format([m.default.gflops for m in group.methods])
    columns = (
        Column("Method", numeric=False),
        Column("Adapts", help="what it decides per video", numeric=False),
        Column("Grade", help="fidelity: A code-exact, B model exact, C rebuilt, D sketch, R reference", numeric=False),
        Column(group.metric.title, f"{group.metric.unit} [95 % over videos]"),
        Column("Seeds", "sd", "training seeds, and the standard deviation of the metric over them"),
        Column("GFLOPs", "mean ± sd over videos", "executed multiply-accumulates, in 1e9"),
        Column(
            "Latency",
            f"ms, batch {_smallest_batch(group, setup)}, median / p90",
            "wall clock of the model on real videos",
        ),
        Column("Throughput", "videos/s (batch)", "the largest over the batch sizes timed"),
        Column("Peak memory", "MB (batch)"),
        Column("Parameters", "M"),
        Column("Training", "s (own)", "wall clock of all stages; in brackets those no other method shares"),
        Column("Samples", "k", "training videos seen in all stages, repeats included"),
    )
    rows = tuple(
        Row(
            (Cell(m.label, _best_tag(tags, m)), *_headline_cells(group, m, setup, cost, best)),
            m.style,
        )
        for m in group.methods
    )
    latency = f"Latency: {setup}." if setup else "Latency was not measured."
    shown = [t for m in group.methods for t in m.timings if (t.setup, t.point) == (setup, m.default.name)]
    notes = (f"Test: {group.test_videos} videos.", latency, footnote(shown), BOLD if best else "")
    return Table(group.title, " ".join(filter(None, notes)), columns, rows)


def operating_points(group: Group) -> Table:
    """Every operating point of every method, by method and cost."""
    setup = group.setups[0] if group.setups else None
    batch = _smallest_batch(group, setup)
    cost = cost_format([p.gflops for p in group.points])
    claims = Claims(group, group.points)
    tags, best = claims.tags(), claims.contenders
    columns = (
        Column("Method", numeric=False),
        Column("Point", numeric=False),
        Column(group.metric.title, f"{group.metric.unit} [95 % over videos]"),
        Column("Seeds", "sd"),
        Column("GFLOPs", "mean ± sd over videos"),
        Column("of default", "%"),
        Column("Frames", "mean"),
        Column("Latency", f"ms, batch {batch}, median / p90"),
    )
    rows = tuple(
        Row(
            (
                Cell(m.label),
                Cell(p.name, tags.get(id(p), "")),
                _metric_cell(group, p, best),
                _seeds_cell(p.metrics[group.metric.name], p.seeds),
                _cost_cell(p, cost),
                Cell(f"{100 * p.gflops / m.default.gflops:.0f}" if m.default.gflops else NONE),
                Cell(f"{p.frames:.1f}"),
                latency_cell(m.timing(p.name, batch, setup) if setup else None),
            ),
            m.style,
        )
        for m in group.methods
        for p in sorted(m.points, key=lambda p: p.gflops)
    )
    shown = [t for m in group.methods for t in m.timings if (t.setup, t.batch) == (setup, batch)]
    note = " ".join(filter(None, (footnote(shown), BOLD if best else "")))
    return Table(f"{group.title}: operating points", note, columns, rows)


def savings(group: Group) -> Table | None:
    """How much of the MACs saved is saved on the clock, of the model and from file, per point, at each batch; None
    where nothing was timed.
    """
    setup = group.setups[0] if group.setups else None
    clocks = [
        (of, batch)
        for of in (_of_model, _from_files)
        for batch in sorted({t.batch for m in group.methods for t in of(m) if t.setup == setup and t.ok})
    ]
    rows, shown = [], []
    for method in group.methods:
        for point in sorted(method.points, key=lambda p: p.gflops):
            pairs = [_saving(group, method, point.name, batch, setup, of) for of, batch in clocks]
            found = next((pair for pair in pairs if pair is not None), None)
            if found is None:
                continue
            cells = [Cell(method.label), Cell(point.name), Cell(found[0]), Cell(_percent(_saved_macs(*found[1:])))]
            for pair in pairs:
                cells += _saving_cells(*pair[1:]) if pair is not None else [Cell(NONE), Cell(NONE)]
            rows.append(Row(tuple(cells), method.style))
            shown += [timing for pair in pairs if pair is not None for timing in pair[1:]]
    if not rows:
        return None
    columns = [
        Column("Method", numeric=False),
        Column("Point", numeric=False),
        Column(
            "Against", numeric=False, help="its own costliest timed point; for a method with one point, a static one"
        ),
        Column("MACs saved", "%", "of the videos timed"),
    ]
    for of, batch in clocks:
        where = f"batch {batch}" if of is _of_model else f"batch {batch} from file"
        columns += [
            Column("Clock saved", f"%, {where}", "of the median wall clock"),
            Column(
                "Ratio",
                f"clock / MACs, {where}",
                "1: every multiply-accumulate saved is saved on the clock; below 0: slower",
            ),
        ]
    note = f"Timed on: {setup}. {footnote(shown)}".strip()
    return Table(f"{group.title}: saved on paper and on the clock", note, tuple(columns), tuple(rows))


def file_table(group: Group) -> Table | None:
    """The third clock, from file to logits, beside the model's own; None where it was not taken."""
    timed = _in_order((m, m.files) for m in group.methods)
    if not timed:
        return None
    columns = (
        Column("Method", numeric=False),
        Column("Point", numeric=False),
        Column("Batch"),
        Column("From file", "ms [95 % over launches]", "from opening the files of a batch to logits, median"),
        Column("Model", "ms", "the model's own clock: the batch lies in memory"),
        Column("Throughput", "videos/s from file"),
        Column("Frames decoded", "per video (all requested)", "to reach those that the model asks for, and all"),
        Column("Lazy / eager", "time [95 % over launches]", "decoding what is asked for over decoding all before"),
        Column("Decode", "ms per video"),
        Column("Transform", "ms per video"),
        Column("Transfer", "ms per video"),
        Column("Rest", "ms per video", "the model, and opening and closing its clips"),
        Column("Setup", numeric=False),
    )
    rows = tuple(_timed_row(m, t, _file_cells(m, t)) for m, t in timed)
    return Table(f"{group.title}: from file to logits", footnote(t for _, t in timed), columns, rows)


def timing_table(group: Group) -> Table | None:
    """Every timing: batch sizes, setups, out of memory included; None where nothing was timed."""
    timed = _in_order((m, m.timings) for m in group.methods)
    if not timed:
        return None
    columns = (
        Column("Method", numeric=False),
        Column("Point", numeric=False),
        Column("Batch"),
        Column("Median", "ms [95 % over launches]", "the median of each launch is one observation; –: one launch"),
        Column("p90", "ms"),
        Column("p99", "ms"),
        Column("Launches", "", "fresh processes, methods interleaved"),
        Column("Throughput", "videos/s"),
        Column("Peak memory", "MB"),
        Column("Model", "ms per video"),
        Column("Decode", "ms per video"),
        Column("Transform", "ms per video"),
        Column("Transfer", "ms per video"),
        Column("Setup", numeric=False),
    )
    rows = tuple(_timed_row(m, t, _timing_cells(t)) for m, t in timed)
    note = footnote(t for _, t in timed)
    return Table(f"{group.title}: timings", " ".join(filter(None, [*_precision_notes(timed), note])), columns, rows)


def stream_table(group: Group) -> Table | None:
    """Every timing as a rebatched stream; None where there is none."""
    timed = _in_order((m, m.streams) for m in group.methods)
    if not timed:
        return None
    columns = (
        Column("Method", numeric=False),
        Column("Point", numeric=False),
        Column("Batch"),
        Column("Throughput", "videos/s", "of a rebatched stream of real videos"),
        Column("Plain loop", "videos/s", "over the same videos, in turns with the stream"),
        Column("Ratio", "[95 % over launches]", "stream / plain loop; –: one launch"),
        Column("Own time", "ms, median / p99", "of a video, from being taken in to its result"),
        Column("Fill", "%", "mean size of the batches that were run, all segments, of the full size"),
        Column("MACs saved", "%", "against its own costliest stream; of one point, against a static method's"),
        Column("Clock saved", "%", "of the time per video"),
        Column("Clock / MACs", "", "1: every multiply-accumulate saved is saved on the clock"),
        Column("Peak memory", "MB"),
        Column("Setup", numeric=False),
    )
    rows = tuple(_timed_row(m, t, _stream_cells(group, m, t)) for m, t in timed)
    waits = sorted({r.result["options"]["max_wait_s"] for _, t in timed for r in t.records})
    note = f"A video older than {' or '.join(f'{s:g}' for s in waits)} s waits no longer for others."
    note = f"{note} {footnote(t for _, t in timed)}".strip()
    return Table(f"{group.title}: as a stream", note, columns, rows)


def _in_order(timings: Iterable[tuple[Method, Iterable[T]]]) -> list[tuple[Method, T]]:
    """Every timing beside its method, by setup, point and batch."""
    return [(m, t) for m, own in timings for t in sorted(own, key=lambda t: (t.setup, t.point, t.batch))]


def _timed_row(method: Method, timing: Timing, cells: Iterable[Cell]) -> Row:
    return Row((Cell(method.label), Cell(timing.point), Cell(str(timing.batch)), *cells), method.style)


def findings(group: Group) -> list[str]:
    """What a reader should take from the group, in sentences, each with the interval of what it claims."""
    points = [(m, p) for m in group.methods for p in m.points if group.original(p) is p]
    claims = Claims(group, group.points)
    method, best = max(points, key=lambda mp: (claims.value(mp[1]), -mp[1].gflops))
    cost = cost_format([p.gflops for _, p in points])

    def described(method: Method, point: Point) -> str:
        return f"{_named(method, point)}, {group.quality(point):.1f} {group.metric.unit} at {cost(point.gflops)} GFLOPs"

    def margin(point: Point) -> str:
        return "" if point is best else f", {claims.against(point, best)}"

    lines = [f"Best {group.metric.title}: {described(method, best)}{_against_others(group, claims, method, best)}."]
    near = [mp for mp in points if claims.value(best) - claims.value(mp[1]) <= ONE_POINT]
    cheap = min(near, key=lambda mp: mp[1].gflops)
    if cheap[1] is not best and best.gflops:
        share = 100 * cheap[1].gflops / best.gflops
        lines.append(
            f"Cheapest measured within one point of it: {described(*cheap)} ({share:.0f} % of its cost)"
            f"{margin(cheap[1])}{claims.within(cheap[1], best)}."
        )
    setup = group.setups[0] if group.setups else None
    batch = _smallest_batch(group, setup)
    timed = [(mp, t) for mp in near if setup and (t := mp[0].timing(mp[1].name, batch, setup)) and t.ok]
    if timed:
        fast, timing = min(timed, key=lambda entry: entry[1].ms(0.5))
        lines.append(
            f"Fastest measured within one point of it at batch {batch}: {_named(*fast)}, {ms(timing.ms(0.5))} ms"
            f"{f' {timing.mark}' if timing.mark else ''}"
            f"{margin(fast[1])}{claims.within(fast[1], best)}."
        )
    return [*lines, claims.caveat()]


def _against_others(group: Group, claims: Claims, method: Method, best: Point) -> str:
    """The margin over the next method, and which methods cannot be told from the best."""
    others = [m for m in group.methods if not m.is_kin(method)]
    if not others or group.mixed:
        return ""
    second, point = max(((m, p) for m in others for p in m.points), key=lambda mp: claims.value(mp[1]))
    told = {id(p) for p in claims.points} & claims.contenders
    tied = [m.label for m in others if any(id(p) in told for p in m.points)]
    words = f"; not distinguishable from it: {_listed(tied)}" if tied else ""
    return f", {claims.against(best, point)} against the next method, {second.label}{words}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def cost_format(values: Iterable[float]) -> Callable[[float], str]:
    """A format with three significant digits for the median of `values`, the same number of decimals for all."""
    positive = sorted(v for v in values if v > 0)
    middle = positive[len(positive) // 2] if positive else 1.0
    decimals = min(6, max(1, 2 - math.floor(math.log10(middle))))
    return lambda value: f"{value:.{decimals}f}"


def ms(value: float) -> str:
    """Milliseconds with about three significant digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def latency_cell(timing: Timing | None) -> Cell:
    """Median / p90, or why there is none."""
    if timing is None:
        return Cell(NONE)
    if not timing.ok:
        return Cell("out of memory")
    return Cell(f"{ms(timing.ms(0.5))} / {ms(timing.ms(0.9))}", timing.note)


def _headline_cells(
    group: Group, method: Method, setup: str | None, cost: Callable[[float], str], best: set[int]
) -> list[Cell]:
    point, about = method.default, method.about
    timed = [t for t in method.timings if t.setup == setup and t.point == point.name]
    first = method.timing(point.name, _smallest_batch(group, setup), setup) if setup else None
    fastest = max((t for t in timed if t.ok), key=lambda t: t.videos_per_s, default=None)
    memory = fastest.peak_memory_bytes if fastest else None
    training = [r.result["training"] for r in method.records]

    def mean(key: str) -> float:
        return sum(t[key] for t in training) / len(training)

    return [
        Cell(", ".join(about["adapts"]) or NONE),
        Cell(about["fidelity"]),
        _metric_cell(group, point, best),
        _seeds_cell(point.metrics[group.metric.name], point.seeds),
        _cost_cell(point, cost),
        latency_cell(first),
        Cell(f"{fastest.videos_per_s:.0f}", f"({fastest.batch}) {fastest.note}".strip()) if fastest else Cell(NONE),
        Cell(f"{memory / 1e6:.0f}", f"({fastest.batch})") if memory and fastest else Cell(NONE),
        Cell(f"{about['parameters'] / 1e6:.{2 if about['parameters'] < 1e7 else 1}f}"),
        Cell(f"{mean('seconds'):.0f}", f"({mean('own_seconds'):.0f})"),
        Cell(f"{mean('samples') / 1e3:.1f}"),
    ]


def _timing_cells(timing: Timing) -> list[Cell]:
    if not timing.ok:
        return [Cell("out of memory"), *[Cell(NONE)] * 9, Cell(timing.setup)]
    phases = timing.phases_ms
    memory = timing.peak_memory_bytes
    found = timing.interval_ms
    interval = NONE if found is None else _interval(*map(ms, found))
    return [
        Cell(ms(timing.ms(0.5)), f"{interval} {timing.note}".strip()),
        *(Cell(ms(timing.ms(q))) for q in (0.9, 0.99)),
        Cell(str(timing.launches)),
        Cell(f"{timing.videos_per_s:.0f}"),
        Cell(f"{memory / 1e6:.0f}" if memory else NONE),
        *(Cell(ms(phases[n]) if n in phases else NONE) for n in ("model", "decode", "transform", "transfer")),
        Cell(timing.setup),
    ]


def _file_cells(method: Method, timing: Timing) -> list[Cell]:
    if not timing.ok:
        return [Cell("out of memory"), *[Cell(NONE)] * 8, Cell(timing.setup)]
    phases, lazy, interval = timing.phases_ms, timing.laziness, timing.interval_ms
    own = find(method.timings, timing.point, timing.batch, timing.setup)
    low, high = lazy["lazy_low"], lazy["lazy_high"]
    return [
        Cell(ms(timing.ms(0.5)), f"{_interval(*map(ms, interval)) if interval else NONE} {timing.note}".strip()),
        Cell(ms(own.ms(0.5)), own.note) if own is not None and own.ok else Cell(NONE),
        Cell(f"{timing.videos_per_s:.0f}"),
        Cell(f"{lazy['frames_decoded']:.1f}", f"({lazy['eager_frames_decoded']:.1f})"),
        Cell(f"{lazy['lazy_over_eager']:.2f}", _interval(f"{low:.2f}", f"{high:.2f}") if low is not None else NONE),
        *(Cell(ms(phases[n]) if n in phases else NONE) for n in ("decode", "transform", "transfer", "model")),
        Cell(timing.setup),
    ]


def _stream_cells(group: Group, method: Method, timing: StreamTiming) -> list[Cell]:
    if not timing.ok:
        return [Cell("out of memory"), *[Cell(NONE)] * 8, Cell(timing.setup)]
    found, memory = timing.ratio_interval, timing.peak_memory_bytes
    interval = NONE if found is None else f"[{found[0]:.2f}, {found[1]:.2f}]"
    against = _against(group, method, timing, lambda m: m.streams)
    saved = (
        [Cell(NONE)] * 3
        if against is None
        else [Cell(_percent(_saved_macs(timing, against[1])), against[0]), *_saving_cells(timing, against[1])]
    )
    return [
        Cell(f"{timing.videos_per_s:.0f}", timing.note),
        Cell(f"{timing.plain_per_s:.0f}"),
        Cell(f"{timing.videos_per_s / timing.plain_per_s:.2f}", interval),
        Cell(f"{ms(timing.own_ms(0.5))} / {ms(timing.own_ms(0.99))}"),
        Cell(f"{100 * timing.fill:.0f}"),
        *saved,
        Cell(f"{memory / 1e6:.0f}" if memory else NONE),
        Cell(timing.setup),
    ]


def _interval(low: str, high: str) -> str:
    return f"[{low}, {high}]"


def _precision_notes(timed: Iterable[tuple[Method, Timing]]) -> Iterator[str]:
    """Of every timing in half precision, how often it says what float32 says, and how good it is."""
    told: dict[str, None] = {}
    for method, timing in timed:
        for result in (r.result for r in timing.records):
            if found := result.get("precision"):
                shares = {name: found["agreement"][name] for name in ("top1", "exits", "decisions", "boxes")}
                same = [f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None]
                name, metric = next(iter(found["metrics"].items()))
                told[
                    f"{method.label} at {timing.point} in {result['dtype']}: {name} {metric['value']:.1f}, the same as "
                    f"in float32: {', '.join(same)}."
                ] = None
    yield from told


def _of_model(method: Method) -> tuple[Timing, ...]:
    return method.timings


def _from_files(method: Method) -> tuple[Timing, ...]:
    return method.files


def _saving(
    group: Group,
    method: Method,
    point: str,
    batch: int,
    setup: str | None,
    clock: Callable[[Method], tuple[Timing, ...]],
) -> tuple[str, Timing, Timing] | None:
    """What a point is held against, its timing and the other's; None where it saves nothing or was not timed."""
    timing = find(clock(method), point, batch, setup) if setup else None
    if timing is None or not timing.ok or not timing.gflops:
        return None
    against = _against(group, method, timing, clock)
    return against and (against[0], timing, against[1])


def _against(group: Group, method: Method, timing: T, timed: Callable[[Method], Iterable[T]]) -> tuple[str, T] | None:
    """What a timing is held against, by name, of those that `timed` gives; None where it saves nothing."""
    reference = _reference(group, method, timing, timed)
    if not timing.gflops or reference is None or not reference[1].gflops or _saved_macs(timing, reference[1]) <= 0.005:
        return None
    return reference


def _saved_macs(timing: Timing, reference: Timing) -> float:
    assert timing.gflops is not None and reference.gflops
    return 1 - timing.gflops / reference.gflops


def _saving_cells(timing: Timing, reference: Timing) -> list[Cell]:
    clock = 1 - timing.s_per_video / reference.s_per_video
    return [
        Cell(_percent(clock), joined_notes((timing, reference))),
        Cell(f"{clock / _saved_macs(timing, reference):.2f}".replace("-", "−")),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}".replace("-", "−")


def metric_cell(value: float, low: float, high: float, *, videos: int, best: bool = False) -> Cell:
    """A metric with its interval, which is left out where there are too few videos for it to say anything."""
    return Cell(f"{value:.1f}", f"[{low:.1f}, {high:.1f}]" if videos >= FEWEST_VIDEOS else "", best)


def _metric_cell(group: Group, point: Point, best: set[int]) -> Cell:
    found = point.metrics[group.metric.name]
    return metric_cell(found.value, found.low, found.high, videos=group.test_videos, best=id(point) in best)


def _seeds_cell(estimate: Estimate, seeds: int) -> Cell:
    return Cell(str(seeds), NONE if estimate.sd is None else f"±{estimate.sd:.1f}")


def _cost_cell(point: Point, cost: Callable[[float], str]) -> Cell:
    spread = cost(point.gflops_std) if point.gflops_std > 1e-6 * point.gflops else "0"
    accounted = "" if point.accounted is None else f"(accounted {cost(point.accounted)})"
    return Cell(f"{cost(point.gflops)} ± {spread}", accounted)


def _smallest_batch(group: Group, setup: str | None) -> int:
    return min((t.batch for m in group.methods for t in m.timings if t.setup == setup), default=1)


def _best_tag(tags: dict[int, str], method: Method) -> str:
    """The strongest tag of a method's points."""
    found = {tags.get(id(p), "") for p in method.points}
    return PARETO if PARETO in found else max(found)


def _reference(group: Group, method: Method, timing: T, timed: Callable[[Method], Iterable[T]]) -> tuple[str, T] | None:
    """What a point's savings are measured against, at the same batch on the same setup."""

    def same(candidates: Iterable[T]) -> list[T]:
        return [t for t in candidates if (t.batch, t.setup) == (timing.batch, timing.setup) and t.ok and t.gflops]

    own = same(timed(method))
    if len(own) > 1:
        reference = max(own, key=lambda t: t.gflops or 0.0)
        return (reference.point, reference) if reference is not timing else None
    static = [(m.label, t) for m in group.methods if not m.about["adapts"] for t in same(timed(m))]
    return max(static, key=lambda entry: entry[1].gflops or 0.0, default=None)


def _named(method: Method, point: Point) -> str:
    return method.label if point is method.default else f"{method.label} at {point.name}"
