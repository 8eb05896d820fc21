"""Latency records joined to the method and operating point they timed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.measure.launches import (
    by_launch,
    engine_label,
    laziness,
    mean_fill,
    median_interval,
    own_times,
    stream_ratios,
)
from harness.measure.statistics import log_mean_interval
from harness.store.records import Record

BUSY = "†"
"""Beside a figure that was disturbed; `footnote` says by what."""
UNKNOWN = "‡"
"""Beside a figure of a record that does not say whether it was."""
LOAD = re.compile(r"load ([0-9.]+) per core")


@dataclass(frozen=True)
class Timing:
    """One operating point at one batch size on one setup; samples of several seeds pooled."""

    point: str
    batch: int
    setup: str
    """Device, dtype, engine, memory format, threads and kernel settings: only equal ones are compared."""
    records: tuple[Record, ...]

    @property
    def ok(self) -> bool:
        """Whether it was timed; else memory ran out."""
        return self.wall_s.size > 0

    @cached_property
    def wall_s(self) -> np.ndarray:
        """Seconds of every timed forward of one batch."""
        return np.asarray([s for r in self.records for s in r.result["wall_s"]], dtype=float)

    @cached_property
    def videos(self) -> int:
        """Videos in all timed forwards."""
        return int(sum(n for r in self.records for n in r.result["videos"]))

    def ms(self, quantile: float) -> float:
        """A quantile of the milliseconds that one batch takes."""
        return 1e3 * float(np.quantile(self.wall_s, quantile))

    @property
    def videos_per_s(self) -> float:
        return self.videos / float(self.wall_s.sum())

    @property
    def s_per_video(self) -> float:
        """Median seconds of a batch, per video in it."""
        return float(np.median(self.wall_s)) * self.wall_s.size / self.videos

    @cached_property
    def interval_ms(self) -> tuple[float, float] | None:
        """95 % interval of the median over launches; None from one launch."""
        found = median_interval([part for r in self.records for part in by_launch(r.result)])
        return found and (1e3 * found[0], 1e3 * found[1])

    @property
    def launches(self) -> int:
        """Fresh processes that timed it."""
        return sum(len(r.result.get("launches") or [0]) for r in self.records)

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What disturbed it, in words; empty where nothing is known to have done so."""
        return tuple(dict.fromkeys(text for r in self.records for text in r.result.get("disturbed", ())))

    @property
    def watched(self) -> bool:
        """Whether its records say what disturbed it, if anything did."""
        return all("disturbed" in r.result for r in self.records)

    @property
    def mark(self) -> str:
        """`BUSY` or `UNKNOWN`; empty where the machine was quiet as far as it tells."""
        return BUSY if self.disturbed else "" if self.watched else UNKNOWN

    @property
    def note(self) -> str:
        """What a reader must see beside each of its figures: its mark, and how much ran compiled where not all."""
        partly = [label for r in self.records if (label := _compiled(r.result)) not in ("", "compiled")]
        return " ".join(filter(None, [self.mark, *dict.fromkeys(partly)]))

    @property
    def gflops(self) -> float | None:
        """Mean executed GFLOPs per video of what was timed; None where it was not recorded."""
        total = [g for r in self.records for g in r.result["gflops"]]
        return float(sum(total)) / self.videos if total and self.videos else None

    @property
    def peak_memory_bytes(self) -> int | None:
        return max((r.result["peak_memory_bytes"] for r in self.records if r.result["peak_memory_bytes"]), default=None)

    @cached_property
    def laziness(self) -> Mapping[str, float | None]:
        """Of mode `file`: what lazy clips save (harness.measure.launches.laziness)."""
        return laziness([r.result for r in self.records])

    @property
    def phases_ms(self) -> Mapping[str, float]:
        """Milliseconds per video of decode, transform, transfer and model, mean over records."""
        names = dict.fromkeys(name for r in self.records for name in r.result.get("phases_s") or {})
        values = {n: [r.result["phases_s"][n] for r in self.records if n in r.result["phases_s"]] for n in names}
        return {name: 1e3 * float(np.mean(v)) for name, v in values.items()}


@dataclass(frozen=True)
class StreamTiming(Timing):
    """One operating point as a rebatched stream; a sample of `wall_s` is a whole stream."""

    @property
    def _whole(self) -> list[Record]:
        """Those for which memory was enough."""
        return [r for r in self.records if r.result["stream"]]

    @property
    def s_per_video(self) -> float:
        """Mean seconds per video of the stream."""
        return 1 / self.videos_per_s

    @property
    def plain_per_s(self) -> float:
        """Videos per second of the plain loop over the same videos."""
        return self.videos / sum(s for r in self._whole for s in r.result["stream"]["plain_s"])

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """95 % interval over launches of the stream's throughput over the plain loop's; None from one launch."""
        ratios = [ratio for r in self._whole for ratio in stream_ratios(r.result)]
        return log_mean_interval(ratios) if len(ratios) > 1 else None

    def own_ms(self, quantile: float) -> float:
        """A quantile of the milliseconds from taking a video in to its result."""
        own = np.concatenate([part for r in self._whole for part in own_times(r.result)])
        return 1e3 * float(np.quantile(own, quantile))

    @property
    def fill(self) -> float:
        """Mean share of a full batch that was run."""
        return mean_fill([part for r in self._whole for part in r.result["stream"]["batches"]], self.batch)


def timings(latencies: Sequence[Record], evaluations: set[str], mode: str = "batch") -> Iterator[Timing]:
    """The timings, in one mode, of the evaluations with these keys."""
    for parts in _newest(latencies, evaluations, mode):
        yield Timing(*parts)


def stream_timings(latencies: Sequence[Record], evaluations: set[str]) -> Iterator[StreamTiming]:
    """The timings of streams of the evaluations with these keys."""
    for parts in _newest(latencies, evaluations, "stream"):
        yield StreamTiming(*parts)


def _newest(
    latencies: Sequence[Record], evaluations: set[str], mode: str
) -> Iterator[tuple[str, int, str, tuple[Record, ...]]]:
    """Point, batch, setup and records; of each the newest, whatever its number of launches was."""
    parts: dict[tuple[str, int, str], dict[str, Record]] = defaultdict(dict)
    for record in sorted(latencies, key=lambda r: (r.result["created"], r.result["key"])):
        result = record.result
        if result["evaluation"] in evaluations and result.get("mode", "batch") == mode:
            parts[result["point"], result["batch"], setup_label(result)][result["evaluation"]] = record
    for (point, batch, setup), newest in parts.items():
        yield point, batch, setup, tuple(newest.values())


def find(timings: Iterable[Timing], point: str, batch: int, setup: str) -> Timing | None:
    """The one of a point at a batch size on a setup, if it was timed."""
    return next((t for t in timings if (t.point, t.batch, t.setup) == (point, batch, setup)), None)


def joined_notes(timings: Iterable[Timing]) -> str:
    """The notes of several timings that one figure is made from, each once."""
    return " ".join(dict.fromkeys(filter(None, (t.note for t in timings))))


def setup_label(result: Mapping[str, Any]) -> str:
    """What must be equal before two latencies are compared, as a line of text."""
    device = result["device"]
    parts = [
        device["name"],
        f"machine {device['fingerprint']}",
        result["dtype"],
        result["memory_format"].replace("_", " "),
        f"{result['threads']} thread{'s' if result['threads'] != 1 else ''}",
    ]
    parts += [engine] if (engine := engine_of(result)) != "eager" else []
    return ", ".join([*parts, *_kernel_settings(device.get("kernels") or {})])


def engine_of(result: Mapping[str, Any]) -> str:
    """How components ran; records of before engines name the mode of torch.compile."""
    return str(result.get("engine") or (f"torch.compile {result['compile']}" if result["compile"] else "eager"))


def footnote(timings: Iterable[Timing | None]) -> str:
    """What the marks mean that one of these timings bears; else empty."""
    found = [t for t in timings if t is not None]
    unknown = any(t.mark == UNKNOWN for t in found)
    told = [_busy(found), f"{UNKNOWN} not known whether the machine was quiet." if unknown else ""]
    return " ".join(filter(None, told))


def _busy(timings: Iterable[Timing]) -> str:
    reasons = dict.fromkeys(text for t in timings for text in t.disturbed)
    if not reasons:
        return ""
    loads = [float(found[1]) for text in reasons if (found := LOAD.match(text))]
    words = [text for text in reasons if not LOAD.match(text)]
    if loads:
        span = f"{min(loads):.2f}" + (f" to {max(loads):.2f}" if max(loads) > min(loads) else "")
        words.insert(0, f"load {span} per core by other processes")
    return f"{BUSY} taken while the machine was busy: {'; '.join(words)}."


def _compiled(result: Mapping[str, Any]) -> str:
    return engine_label(engine_of(result), result.get("compiled_share"))


def _kernel_settings(kernels: Mapping[str, Any]) -> list[str]:
    """Settings of a GPU's kernels that change how fast and how exactly it computes."""
    if not kernels:
        return []
    tf32 = [name for name in ("convolution", "matmul") if kernels.get(f"tf32_{name}")]
    others = [name.replace("_", " ") for name in ("cudnn_benchmark", "deterministic") if kernels.get(name)]
    return [f"TF32 {' and '.join(tf32)}" if tf32 else "no TF32", *others]
