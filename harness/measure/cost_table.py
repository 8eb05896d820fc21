"""From a trace to GFLOPs: each kind of work is measured once, a dataset's cost is trace x table.

    table, check = measure(recognizer, batches, [{}])       # meter on a few batches
    trace = Trace(videos); recognizer.infer(clips, trace=trace)
    table.gflops(trace)                                     # (videos,), 1e9 multiply-accumulates

A row (one frame, one patch, one time step) of one (component, variant, shape) costs the same wherever it
runs; `CostTable.of` refuses measurements that say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.contract.declarations import EMPTY
from harness.contract.trace import EventKey, Trace
from harness.errors import BenchError
from harness.measure.audit import audited

CONSTANT = 1e-6
"""Largest relative difference between two measurements of one kind of work."""
AGREEMENT = 0.005
"""Largest relative difference between a whole count and trace x table."""
GIGA = 1e9

Clips = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class CostTable:
    """Multiply-accumulates per row of every kind of work."""

    macs: Mapping[EventKey, float]

    @classmethod
    def of(cls, traces: Iterable[Trace]) -> CostTable:
        """Build it from traces that ran with a meter; raises BenchError where a cost is not constant."""
        macs: dict[EventKey, float] = {}
        for trace in traces:
            for key, measured in trace.macs.items():
                for total, rows in measured:
                    _add_constant(macs, key, total / rows)
        return cls(macs)

    def merged(self, other: CostTable) -> CostTable:
        """Both tables as one; raises BenchError where they contradict each other."""
        macs = dict(self.macs)
        for key, value in other.macs.items():
            _add_constant(macs, key, value)
        return CostTable(macs)

    def missing(self, trace: Trace) -> list[EventKey]:
        """Kinds of work in `trace` that the table does not hold."""
        return [key for key, counts in trace.counts.items() if counts.any() and key not in self.macs]

    def gflops(self, trace: Trace, *, training_only: bool = False) -> np.ndarray:
        """Executed GFLOPs per video, (videos,); training-only parts count only where asked for."""
        parts = self.components(trace, training_only=training_only)
        return np.sum(list(parts.values()), axis=0) if parts else np.zeros(trace.videos)

    def gflops_accounted(self, trace: Trace) -> np.ndarray:
        """GFLOPs per video by the paper's accounting: without what ran although the paper does not count it.

        Raises:
            BenchError: More than what ran is subtracted, or less than nothing.
        """
        executed, saved = self.gflops(trace), np.zeros(trace.videos)
        for reason, macs in trace.accounted.items():
            saved = saved + macs / GIGA
            if np.any(macs < 0) or np.any(saved > executed * (1 + CONSTANT)):
                raise BenchError(
                    f"trace.accounted subtracts {np.max(np.abs(macs)) / GIGA:.6g} GFLOPs of a video for {reason!r}, "
                    "more than ran or less than nothing; it holds MACs that ran and that the paper leaves out"
                )
        return executed - saved

    def components(self, trace: Trace, *, training_only: bool = False) -> dict[str, np.ndarray]:
        """Component -> executed GFLOPs per video, (videos,), in the order in which they first ran."""
        if unknown := self.missing(trace):
            names = ", ".join(key.label() for key in unknown)
            raise BenchError(f"the cost table lacks {names}; measure a batch in which that work occurs")
        parts: dict[str, np.ndarray] = {}
        for key, counts in trace.counts.items():
            if (training_only or not key.training_only) and key in self.macs:
                done = counts * self.macs[key] / GIGA
                parts[key.component] = parts.get(key.component, 0.0) + done
        return parts

    def rows(self) -> list[dict[str, Any]]:
        """The table as it stands in a record (`cost.table`)."""
        return [{**key._asdict(), "shape": list(key.shape), "macs": value} for key, value in self.macs.items()]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> CostTable:
        """Inverse of `rows`."""
        keys = {}
        for row in rows:
            key = EventKey(row["component"], row["variant"], tuple(row["shape"]), row["training_only"])
            keys[key] = float(row["macs"])
        return cls(keys)


def metered(
    recognizer: Any,
    clips: Clips,
    point: Mapping[str, Any] = EMPTY,
    *,
    device: torch.device | str | None = None,
    training_parts: bool = False,
    generator: torch.Generator | None = None,
    observe: Callable[[EventKey], AbstractContextManager[object]] | None = None,
) -> tuple[Trace, float]:
    """Run `infer` on one batch under the audit: the trace with its measurements, and all MACs that ran.

    `observe` is entered around every component's call, see `Trace`.

    Raises:
        BenchError: see `harness.measure.audit.audited`.
    """
    device = torch.device(device) if device is not None else recognizer.mean.device
    on_device = {name: clip.to(device) for name, clip in clips.items()}
    was_training = recognizer.training
    recognizer.eval()
    try:
        done = audited(
            recognizer, on_device, point, generator=generator, training_parts=training_parts, observe=observe
        )
    finally:
        recognizer.train(was_training)
    return done.trace, done.macs


def measure(
    recognizer: Any,
    batches: Sequence[Clips] | Callable[[Mapping[str, Any]], Iterable[Clips]],
    points: Iterable[Mapping[str, Any]] = (EMPTY,),
    device: torch.device | str | None = None,
    *,
    training_parts: bool = False,
) -> tuple[CostTable, dict[str, float]]:
    """Measure the cost table on a few batches, and check whole counts against trace x table.

    Args:
        recognizer: On its device already; runs in eval mode.
        batches: Clips (uint8, as collated) that are run at every point; or, where points want different
            clips, a function from a point's settings to the batches for it. Together they should meet every
            kind of work the evaluation will; `CostTable.missing` names what they did not.
        points: Settings of the operating points.

    Returns:
        The table and the check `{videos, max_relative_difference}` of the record.

    Raises:
        BenchError: a cost per row is not constant, or the audit refuses the forward.
    """
    runs = [
        metered(recognizer, clips, point, device=device, training_parts=training_parts)
        for point in points
        for clips in (batches(point) if callable(batches) else batches)
    ]
    table = CostTable.of(trace for trace, _ in runs)
    return table, whole_check(table, runs, type(recognizer).__name__)


def whole_check(table: CostTable, runs: Iterable[tuple[Trace, float]], name: str) -> dict[str, float]:
    """Compare whole counts (trace, MACs that ran) with trace x table; raises BenchError above 0.5 %."""
    videos, worst = 0, 0.0
    for trace, total in runs:
        told = float(table.gflops(trace, training_only=True).sum()) * GIGA
        difference = abs(total - told) / max(total, told, 1.0)
        videos, worst = videos + trace.videos, max(worst, difference)
        if difference > AGREEMENT:
            raise BenchError(
                f"{name}.infer ran {total / GIGA:.6g} GFLOPs on {trace.videos} videos, its trace tells of "
                f"{told / GIGA:.6g} ({difference:.1%} apart); put all costly work into components"
            )
    return {"videos": videos, "max_relative_difference": worst}


def _videos(clips: Clips) -> int:
    return int(next(iter(clips.values())).shape[0])


def _add_constant(macs: dict[EventKey, float], key: EventKey, value: float) -> None:
    known = macs.setdefault(key, value)
    if abs(known - value) > CONSTANT * max(abs(known), abs(value)):
        raise BenchError(
            f"a row of {key.label()} cost {known:.8g} MACs once and {value:.8g} another time; name in the component's "
            "variant or shape what its cost depends on, or count its rows"
        )
