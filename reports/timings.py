"""Latency records joined to the method and operating point they timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.store.records import Record


@dataclass(frozen=True)
class Timing:
    """One operating point at one batch size on one setup; samples of several seeds pooled."""

    point: str
    batch: int
    setup: str
    """Device, dtype, compile mode, memory format and threads: only equal ones are compared."""
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

    @property
    def gflops(self) -> float | None:
        """Mean executed GFLOPs per video of what was timed; None where it was not recorded."""
        total = [g for r in self.records for g in r.result["gflops"]]
        return float(sum(total)) / self.videos if total and self.videos else None

    @property
    def peak_memory_bytes(self) -> int | None:
        return max((r.result["peak_memory_bytes"] for r in self.records if r.result["peak_memory_bytes"]), default=None)

    @property
    def phases_ms(self) -> Mapping[str, float]:
        """Milliseconds per video of decode, transform, transfer and model, mean over records."""
        names = dict.fromkeys(name for r in self.records for name in r.result.get("phases_s") or {})
        values = {n: [r.result["phases_s"][n] for r in self.records if n in r.result["phases_s"]] for n in names}
        return {name: 1e3 * float(np.mean(v)) for name, v in values.items()}


def timings(latencies: Sequence[Record], evaluations: set[str]) -> Iterator[Timing]:
    """The timings of the evaluations with these keys."""
    parts: dict[tuple[str, int, str], list[Record]] = defaultdict(list)
    for record in latencies:
        result = record.result
        if result["evaluation"] in evaluations:
            parts[result["point"], result["batch"], setup_label(result)].append(record)
    for (point, batch, setup), records in parts.items():
        yield Timing(point, batch, setup, tuple(records))


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
    return ", ".join([*parts, f"compiled ({result['compile']})"] if result["compile"] else parts)


def summary(result: Mapping[str, Any], resamples: int = 1000) -> dict[str, float | None]:
    """Median per batch with its 95 % bootstrap interval, p90, p95, p99 (ms) and videos per second; None: not timed."""
    wall = np.asarray(result["wall_s"], dtype=float)
    names = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "median_low_ms", "median_high_ms", "videos_per_s")
    if not wall.size:
        return dict.fromkeys(names)
    draws = np.random.default_rng(0).choice(wall, (resamples, wall.size))
    times = [*np.quantile(wall, (0.5, 0.9, 0.95, 0.99)), *np.quantile(np.median(draws, axis=1), (0.025, 0.975))]
    values = [*(1e3 * float(t) for t in times), float(sum(result["videos"]) / wall.sum())]
    return dict(zip(names, values, strict=True))
