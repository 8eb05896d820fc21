"""Where the time of a forward goes: seconds per component of a method, and a torch.profiler trace.

The components are the method's own; what runs outside them is shown as `(outside)`.
Timing a call waits for the device on both sides, so the sum is above an undisturbed forward: use it
for shares, and `harness.measure.latency` for latency.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, record_function

from harness.contract.declarations import EMPTY
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.trace import EventKey, Trace
from harness.errors import BenchError
from harness.measure.glue import Glue, glue, line
from harness.measure.latency import to_device, wait

OUTSIDE = "(outside)"
WARMUP = 3


@dataclass(frozen=True)
class ComponentTime:
    """Mean over the profiled forwards of one batch."""

    component: str
    variant: str
    shape: tuple[int, ...]
    calls: float
    """Per forward."""
    rows: float
    """Rows executed per forward."""
    seconds: float
    """Per forward, host clock, the device's work included."""
    share: float
    """Of the whole forward."""


@dataclass(frozen=True)
class Profile:
    """What `profile` found."""

    components: tuple[ComponentTime, ...]
    """Longest first; at the end what ran outside."""
    forward_s: float
    """Mean seconds of a forward with timed calls."""
    undisturbed_s: float
    """Mean seconds of a forward without."""
    glue: Glue
    """The forward beside its components alone."""
    trace_file: Path
    """For chrome://tracing or ui.perfetto.dev."""


@dataclass
class _Clock:
    """Seconds of the calls that it observes."""

    device: torch.device
    seconds: dict[EventKey, float] = field(default_factory=dict)
    calls: dict[EventKey, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, key: EventKey) -> Iterator[None]:
        with record_function(key.label()):
            wait(self.device)
            began = time.perf_counter()
            yield
            wait(self.device)
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - began
            self.calls[key] = self.calls.get(key, 0) + 1


def profile(
    recognizer: EfficientRecognizer,
    clips: Clips,
    point_settings: Mapping[str, Any] = EMPTY,
    out: Path | str = "trace.json",
    *,
    device: str | torch.device = "cpu",
    repeats: int = 10,
) -> Profile:
    """Profile `infer` on one batch.

    Args:
        recognizer: With its weights; left on `device` in eval mode.
        clips: A collated batch.
        point_settings: Settings of the operating point.
        out: Where the profiler's trace goes (.json, or .json.gz for a compressed one).
        device: `cpu` or `cuda`.
        repeats: Forwards that are averaged.
    """
    target = torch.device(device)
    recognizer.to(target).eval()
    batch = to_device(clips, target)
    videos = next(iter(batch.values())).shape[0]

    def forward(trace: Trace) -> float:
        wait(target)
        began = time.perf_counter()
        with torch.inference_mode():
            recognizer.infer(batch, point_settings, trace=trace)
        wait(target)
        return time.perf_counter() - began

    for _ in range(WARMUP):
        forward(Trace(videos, observe=_Clock(target)))
    undisturbed = float(np.mean([forward(Trace(videos)) for _ in range(repeats)]))
    clock = _Clock(target)
    traces = [Trace(videos, observe=clock) for _ in range(repeats)]
    timed = float(np.mean([forward(trace) for trace in traces]))
    path = _chrome_trace(lambda: forward(Trace(videos, observe=_Clock(target))), target, Path(out))
    found = glue(recognizer, clips, point_settings, device=target)
    return Profile(_components(clock, traces, timed), timed, undisturbed, found, path)


def table(found: Profile) -> str:
    """The profile as aligned text, with what runs outside components last, and the glue."""
    rows = [("component", "variant", "shape", "calls", "rows", "ms", "share")]
    rows += [
        (c.component, c.variant, "x".join(map(str, c.shape)), f"{c.calls:g}", f"{c.rows:g}", f"{1e3 * c.seconds:.3f}",
         f"{c.share:.1%}")
        for c in found.components
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"undisturbed forward: {1e3 * found.undisturbed_s:.3f} ms; trace: {found.trace_file}", line(found.glue)]
    return "\n".join(lines)


def _components(clock: _Clock, traces: Sequence[Trace], forward_s: float) -> tuple[ComponentTime, ...]:
    repeats = len(traces)
    found = []
    for key in clock.seconds:
        seconds, calls = clock.seconds[key] / repeats, clock.calls[key] / repeats
        rows = sum(float(trace.counts[key].sum()) for trace in traces if key in trace.counts) / repeats
        found.append(ComponentTime(key.component, key.variant, key.shape, calls, rows, seconds, seconds / forward_s))
    found.sort(key=lambda c: -c.seconds)
    outside = max(0.0, forward_s - sum(c.seconds for c in found))
    return (*found, ComponentTime(OUTSIDE, "", (), 1, 0, outside, outside / forward_s))


def _chrome_trace(forward: Callable[[], object], device: torch.device, path: Path) -> Path:
    """One forward under torch.profiler, with every call labelled, written to `path`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to stderr that there is no GPU
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("wb").close()  # the profiler does not say where it could not write
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        forward()
    profiler.export_chrome_trace(str(path))
    if not path.is_file() or not path.stat().st_size:  # the profiler says nothing where it could not write
        raise BenchError(f"cannot write {path}: the disk may be full; choose another --out")
    return path
