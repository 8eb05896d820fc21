"""Records as a report wants them: comparable groups of methods, seeds aggregated, timings attached.

A group is one table: one dataset (one part of it, where folds were asked for) at one resolution under one
protocol. Numbers that differ in video ids, labels, splits or pixels (the dataset's fingerprint) are not put
into one table unless asked: each version of a data set is a group of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from harness.contract.values import digest
from harness.errors import BenchError
from harness.measure.metrics import Metric, metric, softmax
from harness.measure.statistics import FEWEST_VIDEOS, LEVEL, Effect, difference
from harness.plan.protocol import budget_label
from harness.store.files import read_json
from harness.store.records import Record, read_records, say_left_out
from harness.store.shapes import FailureNote
from reports.timings import StreamTiming, Timing, find, stream_timings, timings

NOT_COMPARED = ("budgets", "budget_unit", "budget_batch", "eval_batch", "threads", "test_seed")
"""Protocol settings that change which points exist or the last digit, not what a number means."""

DATA_NOTES = {
    "missing": "videos are missing or broken and were left out for every method",
    "dropped": "videos have too few frames and were left out for every method",
    "duplicates": "groups of videos hold the same, within a split or in several",
    "untrained": "classes have no training video",
}
"""Key of a record's `dataset` -> what its entries mean to a reader."""


@dataclass(frozen=True)
class Estimate:
    """A metric of one operating point over training seeds."""

    value: float
    """Mean over seeds."""
    low: float
    high: float
    """95 % over videos: ends of the seeds' intervals, averaged."""
    sd: float | None
    """Sample standard deviation over training seeds; None for one seed."""


@dataclass(frozen=True)
class Point:
    """One operating point of a method, its seeds aggregated."""

    name: str
    knob: str | None
    value: float | None
    budget: float | None
    metrics: Mapping[str, Estimate]
    gflops: float
    """Mean executed GFLOPs per video, over videos and seeds."""
    gflops_std: float
    """Standard deviation over videos, mean over seeds."""
    accounted: float | None
    """By the paper's accounting, where it differs from what ran."""
    components: Mapping[str, float]
    frames: float
    exits: tuple[float, ...] | None
    """Share of videos that leave at each exit."""
    runs: tuple[tuple[Record, Mapping[str, Any]], ...]
    """The records and the entries in them that this was made from, one per seed."""

    @property
    def seeds(self) -> int:
        return len({record.result["seed"] for record, _ in self.runs})


@dataclass
class Method:
    """A method (with its settings) in a group."""

    label: str
    records: tuple[Record, ...]
    points: tuple[Point, ...]
    timings: tuple[Timing, ...] = ()
    """Of the model."""
    files: tuple[Timing, ...] = ()
    """From file to logits."""
    streams: tuple[StreamTiming, ...] = ()
    """Rebatched."""
    style: int = 0
    """Index of its colour and marker, the same in every group of a report."""

    @property
    def default(self) -> Point:
        """The method as its paper runs it."""
        return self.points[0]

    @property
    def about(self) -> Mapping[str, Any]:
        """The `method` entry of its records."""
        return self.records[0].result["method"]

    @property
    def seeds(self) -> list[int]:
        return sorted({int(r.result["seed"]) for r in self.records})

    @property
    def budgets(self) -> str:
        """Empty where exits were calibrated for multiply-accumulates; else ` (ms)`, with the batch if it is not 1."""
        return budget_label(self.records[0].result["protocol"])

    def is_kin(self, other: Method) -> bool:
        """Whether both are one method, whose exits were perhaps calibrated for budgets of another unit."""
        return training(self.records[0]) == training(other.records[0])

    def curves(self) -> list[list[Point]]:
        """Points of each knob in order of cost, the default point among them."""
        knobs = dict.fromkeys(p.knob for p in self.points if p.knob is not None)
        return [
            sorted((p for p in self.points if p.knob == knob or p is self.default), key=lambda p: p.gflops)
            for knob in knobs
        ]

    def timing(self, point: str, batch: int, setup: str) -> Timing | None:
        """How long a point took at a batch size on one setup, if it was timed."""
        return find(self.timings, point, batch, setup)


@dataclass
class Group:
    """Methods whose numbers may be compared."""

    title: str
    anchor: str
    dataset: Mapping[str, Any]
    protocol: Mapping[str, Any]
    methods: list[Method]
    notes: list[str] = field(default_factory=list)
    _scores: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    """By the identity of the point."""

    @property
    def metric(self) -> Metric:
        return metric(self.dataset["metric"])

    @property
    def points(self) -> list[Point]:
        """All operating points of all methods."""
        return [p for m in self.methods for p in m.points]

    @property
    def fold(self) -> str | None:
        """COLUMN=VALUE where the test videos are one fold of a cross-validation."""
        return self.methods[0].records[0].result.get("data", {}).get("fold")

    @property
    def mixed(self) -> bool:
        """Whether several versions of the data set are in one table: no video is then compared with itself."""
        return len({r.result["dataset"]["fingerprint"] for m in self.methods for r in m.records}) > 1

    @property
    def test_videos(self) -> int:
        return int(self.dataset["videos"][self.protocol["test_split"]])

    @property
    def disclosures(self) -> list[str]:
        """What a reader must know of the data, every line once."""
        return list(
            dict.fromkeys(
                line
                for method in self.methods
                for record in method.records
                for line in (*record.result["dataset"]["disclosures"], *record.result.get("disclosures", ()))
            )
        )

    @property
    def setups(self) -> list[str]:
        """Machine and settings that latencies were taken on; the one with most timings first."""
        counts: dict[str, int] = defaultdict(int)
        for found in (t for m in self.methods for t in m.timings):
            counts[found.setup] += 1
        return sorted(counts, key=lambda setup: (-counts[setup], setup))

    def quality(self, point: Point) -> float:
        """The main metric of a point."""
        return point.metrics[self.metric.name].value

    def scores(self, point: Point) -> np.ndarray:
        """What each test video contributes to the main metric, (seeds, videos); test seeds are averaged."""
        if id(point) not in self._scores:
            method = next(m for m in self.methods if any(p is point for p in m.points))
            found = seed_scores(method.records, self.metric)
            self._scores |= {id(p): found[p.name] for p in method.points}
        return self._scores[id(point)]

    def original(self, point: Point) -> Point:
        """The point, or where it is the default of a method whose kin come before it, the first one's: they are one."""
        method = next(m for m in self.methods if any(p is point for p in m.points))
        if point is not method.default:
            return point
        return min((m for m in self.methods if m.is_kin(method)), key=lambda m: m.budgets).default

    def effect(self, a: Point, b: Point, level: float = LEVEL) -> Effect:
        """How much better point `a` is than `b` (positive: better), over videos and seeds."""
        sign = 1 if self.metric.higher_is_better else -1
        return difference([sign * self.scores(a)], [sign * self.scores(b)], level)


@dataclass
class Report:
    """Everything a report shows."""

    groups: list[Group]
    failures: list[Mapping[str, str]]
    evaluations: list[Record]
    latencies: list[Record]


def collect(work_dirs: Iterable[Path | str], *, allow_mixed: bool = False) -> Report:
    """Read all records of the work directories and group what may be compared.

    Versions of a data set (fingerprints) are groups apart, or one group where `allow_mixed` is on. A record that cannot
    be read is left out, and stands among the failures with its reason.

    Raises:
        BenchError: nothing was recorded.
    """
    folders = [Path(w) for w in work_dirs]
    damaged: dict[Path, str] = {}

    def left_out(path: Path, reason: str) -> None:
        damaged[path] = reason
        say_left_out(path, reason)

    evaluations = read_records(folders, "evaluation", left_out)
    latencies = read_records(folders, "latency", left_out)
    failures = _failures(folders, {str(r.result["key"]) for r in (*evaluations, *latencies)})
    failures += [{"what": f"record {path.name}", "reason": reason} for path, reason in damaged.items()]
    if not evaluations:
        where = ", ".join(map(str, folders))
        why = "".join(f"\n  {f['what']}: {f['reason']}" for f in failures)
        raise BenchError(f"no finished evaluation in {where}; run `bench.py run` first{why}")
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in evaluations:
        parts[_group_key(record, allow_mixed)].append(record)
    groups = [_group(records, latencies) for records in parts.values()]
    groups.sort(key=lambda g: max(str(r.result["created"]) for m in g.methods for r in m.records), reverse=True)
    groups.sort(
        key=lambda g: (g.dataset["title"], g.dataset.get("part") or "", g.dataset["resolution"], str(g.protocol))
    )
    _title(groups)
    _style(groups)
    return Report(groups, failures, evaluations, latencies)


def pareto(costs: Sequence[float], values: Sequence[float], *, higher_is_better: bool = True) -> list[int]:
    """Indices of the points no other point beats in both cost and value, by rising cost."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if not front or sign * values[i] > sign * values[front[-1]]:
            front.append(i)
    return front


def _failures(work_dirs: Iterable[Path], finished: set[str]) -> list[Mapping[str, str]]:
    """Notes of failed cells that no work directory has finished since."""
    found: dict[str, Mapping[str, str]] = {}
    for path in (p for w in work_dirs for p in sorted((w / "records" / "failed").glob("*.json"))):
        try:
            entry = read_json(path, FailureNote)
        except BenchError as error:
            entry = {"what": path.stem, "reason": str(error)}
        if path.stem not in finished:
            found.setdefault(path.stem, {name: entry[name] for name in ("what", "reason")})
    return list(found.values())


def seed_scores(records: Sequence[Record], chosen: Metric) -> dict[str, np.ndarray]:
    """Of every operating point what videos contribute to a metric, (seeds, videos)."""
    found: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        arrays = record.arrays()
        for point in record.result["points"]:
            scores = softmax(arrays[f"{point['prefix']}_logits"])
            found[point["name"]][record.result["seed"]].append(chosen.contributions(scores, arrays["targets"]))
    return {name: np.stack([np.mean(v, axis=0) for v in seeds.values()]) for name, seeds in found.items()}


def fold_sets(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups that are folds of one cross-validation together, every other group alone.

    Of a fold that was recorded with several versions of its data the first, which is the newest, is taken.
    """
    sets: dict[str, list[Group]] = {}
    for group in groups:
        dataset = group.dataset
        about = [dataset["name"], dataset["resolution"], dataset["classes"], _compared(group.protocol)]
        alone = [dataset.get("part"), dataset["fingerprint"]]
        key = digest([*about, group.fold.partition("=")[0]] if group.fold else [*about, *alone])
        if any(group.fold == known.fold for known in sets.get(key, ())):
            key = digest([*about, *alone])
        sets.setdefault(key, []).append(group)
    return list(sets.values())


def _compared(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in protocol.items() if k not in NOT_COMPARED}


def _group_key(record: Record, allow_mixed: bool) -> str:
    dataset = record.result["dataset"]
    version = None if allow_mixed else dataset["fingerprint"]
    compared = _compared(record.result["protocol"])
    return digest([dataset["name"], dataset.get("part"), dataset["resolution"], compared, version])


def _group(records: Sequence[Record], latencies: Sequence[Record]) -> Group:
    notes = _mixed(records)
    kept, superseded = _newest(records)
    if superseded:
        notes.append(f"{superseded} results of older versions are left out.")
    notes += _about_the_data([r.result["dataset"] for r in kept])
    notes += _about_the_weights(kept)
    first = kept[0].result
    methods = _methods(kept, latencies)
    notes += [note for m in methods if (note := _about_the_budgets(m))]
    group = Group(first["dataset"]["title"], "", first["dataset"], first["protocol"], methods, notes)
    methods.sort(key=lambda m: group.quality(m.default), reverse=group.metric.higher_is_better)
    counts = {len(m.seeds) for m in methods}
    if len(counts) > 1:
        notes.append("Methods were trained with different numbers of seeds; see the column Seeds.")
    if group.test_videos < FEWEST_VIDEOS:
        notes.append(
            f"{group.test_videos} test videos: intervals are printed from {FEWEST_VIDEOS} on; "
            "with fewer they would span 40 points and more."
        )
    if first["protocol"].get("limit"):
        notes.append(f"Only the first {first['protocol']['limit']} videos of every split were used (--limit).")
    return group


def _about_the_data(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a data set was left out, is there twice, or cannot be learnt; a few examples of each."""
    notes = []
    for key, told in DATA_NOTES.items():
        values = {" = ".join(v) if isinstance(v, list) else v for d in datasets for v in d.get(key, ())}
        if values:
            shown = ", ".join(sorted(values)[:10]) + (" …" if len(values) > 10 else "")
            notes.append(f"{len(values)} {told}: {shown}")
    contents = {(d["fingerprint"], d["content"]) for d in datasets if "content" in d}
    if len(contents) > len({fingerprint for fingerprint, _ in contents}):
        notes.append("The same pictures in other files (another encoder): results may differ in their last digits.")
    return notes


def _about_the_weights(records: Sequence[Record]) -> list[str]:
    """Of which methods the code, packages or device changed in mid-training."""
    changed: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for stage in record.result["training"]["stages"]:
            changed[record.result["method"]["title"]] |= dict.fromkeys(stage.get("changed_midway", ()))
    return [f"Changed while {title} was trained: {', '.join(what)}." for title, what in changed.items() if what]


def _about_the_budgets(method: Method) -> str:
    """Where the times come from that a method's exits were calibrated for; empty where these are no times."""
    times = [found for r in method.records if (found := r.result.get("segment_times"))]
    if not times:
        return ""
    batch, threads, device = times[0]["batch"], times[0]["threads"], times[0]["device"]["name"]
    disturbed = "; ".join(dict.fromkeys(reason for found in times for reason in found["disturbed"]))
    return (
        f"{method.label}: budgets are shares of the time at batch {batch} on {device}, {threads} "
        f"thread{'s' if threads != 1 else ''}; stops and thresholds were chosen for measured times of segments"
        + (f", taken while the machine was busy ({disturbed})." if disturbed else ".")
    )


def _mixed(records: Sequence[Record]) -> list[str]:
    """Note several fingerprints in one table."""
    by_fingerprint: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_fingerprint[record.result["dataset"]["fingerprint"]].append(record)
    if len(by_fingerprint) == 1:
        return []
    short = [f"{k}: {', '.join(sorted({r.result['method']['title'] for r in v}))}" for k, v in by_fingerprint.items()]
    return [f"Mixed on request: these methods did not see the same data ({'; '.join(short)})."]


def identity(record: Record) -> str:
    """What makes two records seeds of the same thing: the training, and what exits were calibrated for."""
    times = record.result.get("segment_times")
    if times is None:
        return training(record)
    setup = [times[name] for name in ("batch", "dtype", "engine", "memory_format", "threads")]
    return digest([training(record), times["device"]["kind"], times["device"]["fingerprint"], *setup])


def training(record: Record) -> str:
    """What makes two records seeds of one method, whatever its exits were calibrated for."""
    method = record.result["method"]
    settings = [method["name"], method["size"], method["settings"], record.result["initialisation"]]
    return digest([*settings, [stage.get("recipe") for stage in record.result["training"]["stages"]]])


def _newest(records: Sequence[Record]) -> tuple[list[Record], int]:
    """The latest record of every method, seed and test seed, and how many older ones there were."""
    newest: dict[tuple[str, int, int, str], Record] = {}
    for record in sorted(records, key=lambda r: (r.result["method"]["version"], r.result["created"], r.result["key"])):
        result = record.result
        fingerprint = result["dataset"]["fingerprint"]
        newest[identity(record), result["seed"], result["protocol"].get("test_seed", 0), fingerprint] = record
    return list(newest.values()), len(records) - len(newest)


def _methods(records: Sequence[Record], latencies: Sequence[Record]) -> list[Method]:
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(
        records, key=lambda r: (r.result["method"]["name"], budget_label(r.result["protocol"]), r.result["seed"])
    ):
        parts[identity(record)].append(record)
    labels = _labels([found[0] for found in parts.values()])
    methods = []
    for label, found in zip(labels, parts.values(), strict=True):
        keys = {str(r.result["key"]) for r in found}
        model, files = (tuple(timings(latencies, keys, mode)) for mode in ("batch", "file"))
        streams = tuple(stream_timings(latencies, keys))
        methods.append(Method(label, tuple(found), _points(found), model, files, streams))
    return methods


def _points(records: Sequence[Record]) -> tuple[Point, ...]:
    parts: dict[str, list[tuple[Record, Mapping[str, Any]]]] = defaultdict(list)
    for record in records:
        for point in record.result["points"]:
            parts[point["name"]].append((record, point))
    return tuple(_point(runs) for runs in parts.values())


def _point(runs: Sequence[tuple[Record, Mapping[str, Any]]]) -> Point:
    entries = [entry for _, entry in runs]
    first = entries[0]
    accounted = [e["gflops_accounted"]["mean"] for e in entries if e.get("gflops_accounted")]
    components = dict.fromkeys(name for e in entries for name in e["components"])
    return Point(
        name=first["name"],
        knob=first["knob"],
        value=first["value"],
        budget=first["budget"],
        metrics={name: _estimate(runs, name) for name in first["metrics"]},
        gflops=fmean(e["gflops"]["mean"] for e in entries),
        gflops_std=fmean(e["gflops"]["std"] for e in entries),
        accounted=fmean(accounted) if accounted else None,
        components={name: fmean(e["components"].get(name, 0.0) for e in entries) for name in components},
        frames=fmean(e["frames"]["mean"] for e in entries),
        exits=_exits([e["exits"] for e in entries if e["exits"]]),
        runs=tuple(runs),
    )


def _estimate(runs: Sequence[tuple[Record, Mapping[str, Any]]], name: str) -> Estimate:
    """Test seeds of one training seed are averaged first: the spread shown is that of training."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for record, entry in runs:
        by_seed[record.result["seed"]].append(entry["metrics"][name]["value"])
    values = [fmean(v) for v in by_seed.values()]
    return Estimate(
        fmean(values),
        fmean(entry["metrics"][name]["low"] for _, entry in runs),
        fmean(entry["metrics"][name]["high"] for _, entry in runs),
        stdev(values) if len(values) > 1 else None,
    )


def _exits(counts: Sequence[Sequence[int]]) -> tuple[float, ...] | None:
    if not counts:
        return None
    steps = max(map(len, counts))
    total = sum(map(sum, counts))
    return tuple(sum(c[k] for c in counts if k < len(c)) / total for k in range(steps))


def _labels(records: Sequence[Record]) -> list[str]:
    """Titles, with whatever tells methods of the same title apart."""
    facts = [
        {
            **_flat(r.result["method"]["settings"]),
            "size": r.result["method"]["size"],
            "init": r.result["initialisation"],
            "epochs": "+".join(str(s["epochs"]) for s in r.result["training"]["stages"] if not s["shared"]),
            "recipe": digest([s.get("recipe") for s in r.result["training"]["stages"]], 6),
            **_timed_on(r),
        }
        for r in records
    ]
    titles = [f"{r.result['method']['title']}{budget_label(r.result['protocol'])}" for r in records]
    labels = []
    for title, fact in zip(titles, facts, strict=True):
        rivals = [f for t, f in zip(titles, facts, strict=True) if t == title]
        differing = [k for k in fact if len({json.dumps(f.get(k)) for f in rivals}) > 1]
        if len(differing) > 1:  # the recipe's hash only where nothing readable tells them apart
            differing = [k for k in differing if k != "recipe"]
        labels.append(title + (f" ({', '.join(f'{k}={fact[k]}' for k in differing)})" if differing else ""))
    return labels


def _timed_on(record: Record) -> dict[str, Any]:
    """Where segments were timed for budgets in milliseconds."""
    times = record.result.get("segment_times")
    if times is None:
        return {}
    device = times["device"]
    return {"on": device["name"], "machine": device["fingerprint"], "threads": times["threads"]}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _title(groups: Sequence[Group]) -> None:
    """Give every group a title of its own and an anchor; resolution and protocol only where they differ."""
    for i, group in enumerate(groups):
        group.anchor = f"group-{i}"
        rivals = [g for g in groups if g.dataset["name"] == group.dataset["name"]]
        part = [str(group.dataset["part"])] if group.dataset.get("part") else []
        versions = {g.dataset["fingerprint"] for g in rivals if _alike(g, group)}
        if len(versions) > 1:
            part.append(f"data {group.dataset['fingerprint']}")
            group.notes.append(
                f"{len(versions)} versions of this data set (videos, labels, splits or pixels) were recorded; "
                "each has tables of its own, and they are not compared."
            )
        extra = [f"{group.dataset['resolution']} px"] if len({g.dataset["resolution"] for g in rivals}) > 1 else []
        extra += [
            f"{key.replace('_', ' ')} {group.protocol[key]}"
            for key in sorted(set(group.protocol) - set(NOT_COMPARED))
            if len({json.dumps(g.protocol.get(key)) for g in rivals}) > 1
        ]
        group.title = group.dataset["title"] + (f" ({', '.join([*part, *extra])})" if part or extra else "")


def _alike(one: Group, other: Group) -> bool:
    """Whether only the fingerprint of their data keeps two groups of one dataset apart."""
    same = all(one.dataset.get(key) == other.dataset.get(key) for key in ("part", "resolution"))
    return same and _compared(one.protocol) == _compared(other.protocol)


def _style(groups: Sequence[Group]) -> None:
    """The same colour and marker for the same label everywhere."""
    labels = sorted({m.label for g in groups for m in g.methods}, key=str.casefold)
    for method in (m for g in groups for m in g.methods):
        method.style = labels.index(method.label)
