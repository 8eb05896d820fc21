"""Throughput of a stream of real videos, rebatched (harness.engine.stream), beside that of the plain loop.

    measured, outputs = measure_stream(recognizer, batches, point_settings, device=device)

Both run the same videos in the same process, in turns there and back, so that their ratio is not what the machine did
meanwhile. The clock is the model's own: clips lie in the host's memory, and it stands still while they are moved.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from harness.compat.memory import is_out_of_memory
from harness.contract.declarations import EMPTY
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.trace import Trace
from harness.engine.forms import Forms
from harness.engine.stream import Rebatching, Result, whole_trace
from harness.measure.latency import (
    GPU_WARMUP_S,
    Costs,
    Output,
    Unrecorded,
    conditions_told,
    device_conditions,
    forms_of,
    forward_of,
    no_garbage_collection,
    peak_host_allocation,
    refuse_counter,
    release,
    to_device,
    videos_of,
    work_told,
    working_conditions,
)
from harness.measure.machine import OthersMeter

LEAST_PASSES = 2
"""Timed in a launch, of the stream and of the plain loop each: there and back."""


def measure_stream(
    recognizer: EfficientRecognizer,
    batches: Sequence[Clips],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    max_wait_s: float,
    min_seconds: float = 1.0,
    costs: Costs | None = None,
    test_seed: int | None = None,
    memory: bool = True,
) -> tuple[dict[str, Any], Output | None]:
    """Time streams of the videos in `batches`, and the plain loop over them.

    Args:
        recognizer: `harness.measure.latency.prepared`.
        batches: Collated real inputs on the host, all of one size, which is the stream's; a pass is all of them.
        point_settings: Settings of the operating point.
        device: Where the recognizer is.
        max_wait_s: See `Rebatching`.
        min_seconds: Time spent in timed streams, at least.
        costs, test_seed, memory: As of `harness.measure.latency.measure_latency`.

    Returns:
        As `measure_latency`, a sample being a whole pass, and `stream` (harness.store.records.LATENCY_SCHEMA). And what
        the last timed stream said of its videos; None where memory ran out.

    Raises:
        BenchError: a counter is active in this thread.
    """
    refuse_counter()
    target = torch.device(device)
    before = device_conditions(target)
    runner, forms = _Runner(recognizer, batches, point_settings, target, max_wait_s, test_seed), forms_of(recognizer)
    try:
        passes = _time(runner, forms, min_seconds)
        after = working_conditions(runner.forward, batches[0], target)
        peak = _peak(runner, target) if memory else None
        status = "ok"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        passes, peak, status = _Passes(), None, "out of memory"
    if status != "ok":
        release(target)
        after = device_conditions(target)
    number = sum(map(videos_of, batches))
    timed = number * len(passes.wall_s)
    phases_s = {"transfer": passes.moving_s / timed / 2, "model": sum(passes.wall_s) / timed} if timed else {}
    measured = {
        "status": status,
        "wall_s": passes.wall_s,
        "device_s": None,
        "videos": [number] * len(passes.wall_s),
        **work_told(forms, passes.traces, costs),
        "phases_s": phases_s,
        "peak_memory_bytes": peak,
        "warmup": passes.warmup,
        "unprepared": passes.unprepared,
        "others": passes.others,
        **conditions_told(before, after),
        "stream": {
            "max_wait_s": max_wait_s,
            "own_s": passes.own_s,
            "plain_s": passes.plain_s,
            "batches": [{"exit": exit, "sizes": dict(sizes)} for exit, sizes in passes.sizes.items()],
        },
    }
    return measured, _output(passes.last) if passes.last else None


class _Clock:
    """Seconds, but for those in which clips are moved to the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.moving_s = device, 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self.moving_s

    def moved(self, batches: Sequence[Clips]) -> Iterator[Clips]:
        for batch in batches:
            began = time.perf_counter()
            clips = to_device(batch, self.device)
            self.moving_s += time.perf_counter() - began if self.device.type == "cuda" else 0.0
            yield clips


class _Runner:
    """One pass over all batches, as a stream or as the plain loop; every result is fetched by the host."""

    def __init__(
        self,
        recognizer: EfficientRecognizer,
        batches: Sequence[Clips],
        settings: Mapping[str, Any],
        device: torch.device,
        max_wait_s: float,
        test_seed: int | None,
    ) -> None:
        self.recognizer, self.batches, self.settings, self.max_wait_s = recognizer, batches, settings, max_wait_s
        self.drawn = test_seed is not None
        self.generator = torch.Generator(device).manual_seed(test_seed) if test_seed is not None else None
        self.forward = forward_of(recognizer, settings, device, test_seed)
        self.clock = _Clock(device)

    def stream(self, trace: Callable[[int], Trace]) -> tuple[float, list[Result], dict[int, Counter[int]]]:
        """Seconds, results, and sizes of the batches that were run up to each exit."""
        rebatching = Rebatching(
            self.recognizer,
            self.settings,
            batch=videos_of(self.batches[0]),
            max_wait_s=self.max_wait_s,
            trace=trace,
            generator=self.generator,
            clock=self.clock,
        )
        began = self.clock()
        results = list(rebatching.results(self.clock.moved(self.batches)))
        return self.clock() - began, results, dict(zip(rebatching.stops, rebatching.executed, strict=True))

    def plain(self) -> float:
        """Seconds."""
        began = self.clock()
        for clips in self.clock.moved(self.batches):
            self.forward(clips, Unrecorded(videos_of(clips))).cpu()
        return self.clock() - began


@dataclass
class _Passes:
    """What the timed passes of one launch gave."""

    wall_s: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    own_s: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    """Of an untimed stream of the same videos, unless decisions are drawn."""
    sizes: dict[int, Counter[int]] = field(default_factory=dict)
    last: list[Result] = field(default_factory=list)
    warmup: int = 0
    unprepared: int = 0
    moving_s: float = 0.0
    others: float | None = None


def _time(runner: _Runner, forms: Forms, min_seconds: float) -> _Passes:
    passes, on_gpu = _Passes(), runner.clock.device.type == "cuda"

    def warm_up() -> Trace:
        _, results, sizes = runner.stream(Trace)
        runner.plain()
        passes.warmup += sum(tally.total() for tally in sizes.values()) + len(runner.batches)
        return whole_trace(results)

    with forms.learning():
        untimed = warm_up()
    began = time.perf_counter()
    while on_gpu and time.perf_counter() - began < GPU_WARMUP_S:
        warm_up()
    unprepared = forms.unprepared

    def stream() -> None:
        seconds, results, sizes = runner.stream(Trace if runner.drawn else Unrecorded)
        passes.wall_s.append(seconds)
        passes.own_s += [result.seconds for result in results]
        passes.traces.append(whole_trace(results) if runner.drawn else untimed)
        for exit, tally in sizes.items():
            passes.sizes.setdefault(exit, Counter()).update(tally)
        passes.last = results

    def plain() -> None:
        passes.plain_s.append(runner.plain())

    runner.clock.moving_s = 0.0
    with no_garbage_collection():
        others = OthersMeter()
        for number in count():
            if number >= LEAST_PASSES and sum(passes.wall_s) >= min_seconds:
                break
            for turn in (stream, plain) if number % 2 == 0 else (plain, stream):
                turn()
        passes.others = others.share()
    passes.moving_s = runner.clock.moving_s
    passes.unprepared = forms.unprepared - unprepared
    return passes


def _peak(runner: _Runner, device: torch.device) -> int:
    """Most bytes of tensors alive at once over one more stream: weights, what was taken in and what waits."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        runner.stream(Unrecorded)
        return int(torch.cuda.max_memory_allocated(device))
    resident = [*runner.recognizer.parameters(), *runner.recognizer.buffers()]
    return sum(t.numel() * t.element_size() for t in resident) + peak_host_allocation(lambda: runner.stream(Unrecorded))


def _output(results: Sequence[Result]) -> Output:
    return Output(torch.stack([result.logits for result in results]), whole_trace(results).exit_step)
