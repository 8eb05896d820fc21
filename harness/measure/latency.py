"""Latency of `infer` on real inputs: host wall clock and device events of the same runs, raw samples kept.

One forward of one batch is one sample. The batches are real videos, since easy and hard ones differ for
a method that adapts; they are run round after round, each equally often, until both a number of
forwards and a time are reached. Loading a batch onto the device is timed apart. Nothing is retried: a
batch that does not fit is a result (`out of memory`), not a smaller batch.

Hold `harness.measure.machine.machine_lock` around a measurement, and count multiply-accumulates in another
process: a counter that merely ran before slows compiled code (pytorch #140909).
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from harness.compat.memory import is_out_of_memory
from harness.contract.declarations import EMPTY, ClipRequest
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.decode import decode
from harness.data.videos import VideoSet
from harness.errors import BenchError, UsageError
from harness.layers.memory_format import set_memory_format
from harness.measure.machine import conditions, fingerprint, machine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FORMATS = ("channels_last", "contiguous")
PHASES = ("decode", "transform", "transfer", "model")
GPU_WARMUP_S = 0.5


@dataclass
class Samples:
    """What the timed forwards gave, in order."""

    wall_s: list[float] = field(default_factory=list)
    device_s: list[float] | None = None
    transfer_s: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    warmup: int = 0


def measure_latency(
    recognizer: EfficientRecognizer,
    batches: Sequence[Clips],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    compile: str | None = None,
    memory_format: str = "channels_last",
    min_iterations: int = 20,
    min_seconds: float = 1.0,
    warmup: int = 5,
    gflops: Callable[[Trace], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Time `recognizer.infer` on `batches`; the recognizer is left on `device` in eval mode.

    Args:
        recognizer: With its weights.
        batches: Collated real inputs on the host, uint8 (B, T, 3, H, W) per request.
        point_settings: Settings of the operating point.
        device: `cpu`, `cuda`, `cuda:N`.
        dtype: Other than float32: autocast (weights stay float32, as in evaluation).
        compile: Mode of `torch.compile` for the recognizer's own modules (`default`,
            `reduce-overhead`, `max-autotune`); None runs eagerly.
        memory_format: Of the weights.
        min_iterations: Timed forwards, at least; whole rounds over all batches are run.
        min_seconds: Time spent in timed forwards, at least.
        warmup: Untimed forwards before, at least; every batch is seen once, and a GPU works for
            `GPU_WARMUP_S`.
        gflops: Executed GFLOPs per video (B,) of a trace (from the cost table).

    Returns:
        The measured fields of `harness.store.records.LATENCY_SCHEMA`: status, wall_s, device_s, videos, gflops,
        phases_s (transfer and model, seconds per video), peak_memory_bytes, warmup, dtype, compile,
        memory_format, threads, device. Where memory ran out the lists are empty.

    Raises:
        UsageError: unknown dtype or memory format, no batches, no such device.
        BenchError: a counter (any torch dispatch mode) is active in this thread.
    """
    target = _check(batches, device, dtype, memory_format)
    before = device_conditions(target)
    with _prepared(recognizer, target, compile, memory_format):
        forward = _forward(recognizer, point_settings, target, dtype)
        try:
            samples = _time(forward, batches, target, min_iterations, min_seconds, warmup)
            peak = _peak_memory(forward, recognizer, batches, target)
            status = "ok"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            samples, peak, status = Samples(device_s=[] if target.type == "cuda" else None), None, "out of memory"
    if status != "ok":
        release(target)
    videos = [trace.videos for trace in samples.traces]
    return {
        "status": status,
        "wall_s": samples.wall_s,
        "device_s": samples.device_s,
        "videos": videos,
        "gflops": [float(np.sum(gflops(t))) for t in samples.traces] if gflops else [],
        "phases_s": _model_phases(samples, sum(videos)),
        "peak_memory_bytes": peak,
        "warmup": samples.warmup,
        "dtype": dtype,
        "compile": compile,
        "memory_format": memory_format,
        "threads": torch.get_num_threads(),
        "device": {**describe(target), "clocks": {"before": before, "after": device_conditions(target)}},
    }


def phases(
    recognizer: EfficientRecognizer,
    videos: VideoSet,
    split: str,
    requests: Sequence[ClipRequest],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    batch: int = 1,
    count: int = 8,
) -> dict[str, Any]:
    """Where the time of a video goes from file to logits, for `count` videos spread over `split`.

    Nothing comes from a cache: every video is decoded again. The first batch is a warm-up of all phases.

    Returns:
        `phases_s`: decode, transform (resize, crop, collate), transfer and model, mean seconds per video;
        `frames_decoded`: distinct frames asked of the decoder per video.
    """
    target = torch.device(device)
    dataset = ClipDataset(videos, split, requests, train=False, seed=0, cache_bytes=0)
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    groups = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
    forward = _forward(recognizer.to(target).eval(), point_settings, target, "float32")
    _loaded_forward(dataset, groups[0], forward, target)
    runs = [_loaded_forward(dataset, group, forward, target) for group in groups]
    return {
        "phases_s": {name: sum(run[name] for run in runs) / len(chosen) for name in PHASES},
        "frames_decoded": sum(run["frames"] for run in runs) / len(chosen),
    }


def describe(device: str | torch.device) -> dict[str, Any]:
    """Name, kind, machine fingerprint, driver and kernel settings of a device, for records."""
    target = torch.device(device)
    here = machine()
    cuda = target.type == "cuda"
    facts: dict[str, Any] = {
        "name": torch.cuda.get_device_name(target) if cuda else here.cpu,
        "kind": target.type,
        "fingerprint": fingerprint(),
        "driver": here.driver if cuda else None,
    }
    if cuda:
        facts["kernels"] = {
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32_convolution": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def device_conditions(device: torch.device) -> dict[str, Any]:
    """Clocks, load and temperature now."""
    if device.type != "cuda":
        return conditions()
    return conditions(gpu=f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def summary(measured: Mapping[str, Any], *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Median with its 95 % bootstrap interval, p90, p95, p99 (ms per batch) and videos per second."""
    wall = np.asarray(measured["wall_s"], dtype=np.float64)
    if not wall.size:
        return {}
    draws = np.random.default_rng(seed).choice(wall, (resamples, wall.size))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    marks = dict(zip(("median", "p90", "p95", "p99"), np.quantile(wall, (0.5, 0.9, 0.95, 0.99)), strict=True))
    times = {f"{name}_ms": 1e3 * float(value) for name, value in {**marks, "low": low, "high": high}.items()}
    return {**times, "videos_per_s": float(np.sum(measured["videos"]) / wall.sum())}


def release(device: torch.device) -> None:
    """Give cached memory back after a failed allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_device(clips: Clips, device: torch.device) -> dict[str, Tensor]:
    """A batch on the device; returns when it is there."""
    moved = {name: value.to(device, non_blocking=True) for name, value in clips.items()}
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return moved


def _loaded_forward(
    dataset: ClipDataset, indices: Sequence[int], forward: Callable[[Clips], Trace], device: torch.device
) -> dict[str, float]:
    """Seconds of each phase for one batch from file to logits, and the distinct frames it decoded."""
    marks = [time.perf_counter()]
    items = [dataset[i] for i in indices]
    clips = collate(items)["inputs"]
    marks.append(time.perf_counter())
    moved = to_device(clips, device)
    marks.append(time.perf_counter())
    forward(moved)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    marks.append(time.perf_counter())
    wanted = [sorted(set().union(*item["data_samples"].metainfo["frame_indices"].values())) for item in items]
    for i, frames in zip(indices, wanted, strict=True):
        decode(dataset.entries[i].path, frames, template=dataset.card.template)
    marks.append(time.perf_counter())
    loading, transfer, model, decoding = np.diff(marks).tolist()
    phases_s = dict(zip(PHASES, (decoding, max(0.0, loading - decoding), transfer, model), strict=True))
    return {**phases_s, "frames": float(sum(map(len, wanted)))}


def _check(batches: Sequence[Clips], device: str | torch.device, dtype: str, memory_format: str) -> torch.device:
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if memory_format not in MEMORY_FORMATS:
        raise UsageError(f"unknown memory format {memory_format!r}; known: {', '.join(MEMORY_FORMATS)}")
    if not batches:
        raise UsageError("no batches to time; the split is empty or --limit is 0")
    if _get_current_dispatch_mode() is not None:
        raise BenchError("a counter is active: count multiply-accumulates in another process than timing")
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is usable here; `bench.py doctor` says why, --device cpu times the CPU")
    return target


@contextlib.contextmanager
def _prepared(
    model: EfficientRecognizer, device: torch.device, compile: str | None, memory_format: str
) -> Iterator[None]:
    model.to(device).eval()
    set_memory_format(model, memory_format)
    children = list(model.children()) if compile else []
    for child in children:
        child.compile(mode=compile)
    try:
        yield
    finally:
        for child in children:
            child._compiled_call_impl = None


def _forward(
    recognizer: EfficientRecognizer, settings: Mapping[str, Any], device: torch.device, dtype: str
) -> Callable[[Clips], Trace]:
    def forward(clips: Clips) -> Trace:
        trace = Trace(next(iter(clips.values())).shape[0])
        with torch.inference_mode(), torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
            recognizer.infer(clips, settings, trace=trace)
        return trace

    return forward


def _time(
    forward: Callable[[Clips], Trace],
    batches: Sequence[Clips],
    device: torch.device,
    min_iterations: int,
    min_seconds: float,
    warmup: int,
) -> Samples:
    samples = Samples(device_s=[] if device.type == "cuda" else None)
    samples.warmup = _warm_up(forward, batches, device, warmup)
    timed = _timed_cuda if device.type == "cuda" else _timed_host
    with _no_garbage_collection():
        while len(samples.wall_s) < min_iterations or sum(samples.wall_s) < min_seconds:
            for batch in batches:
                began = time.perf_counter()
                clips = to_device(batch, device)
                samples.transfer_s.append(time.perf_counter() - began if device.type == "cuda" else 0.0)
                timed(forward, clips, device, samples)
    return samples


def _warm_up(forward: Callable[[Clips], Trace], batches: Sequence[Clips], device: torch.device, least: int) -> int:
    """Untimed forwards: `least`, each batch once, and on a GPU until its clocks are up; returns how many."""
    began, done = time.perf_counter(), 0
    seconds = GPU_WARMUP_S if device.type == "cuda" else 0.0
    while done < max(least, len(batches)) or time.perf_counter() - began < seconds:
        clips = to_device(batches[done % len(batches)], device)
        forward(clips)
        done += 1
    return done


def _timed_host(forward: Callable[[Clips], Trace], clips: Clips, device: torch.device, samples: Samples) -> None:
    began = time.perf_counter()
    trace = forward(clips)
    samples.wall_s.append(time.perf_counter() - began)
    samples.traces.append(trace)


def _timed_cuda(forward: Callable[[Clips], Trace], clips: Clips, device: torch.device, samples: Samples) -> None:
    """The stream is idle before; waiting for the closing event is the only synchronisation of ours."""
    stream = torch.cuda.current_stream(device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began = time.perf_counter()
    start.record(stream)
    trace = forward(clips)
    end.record(stream)
    end.synchronize()
    samples.wall_s.append(time.perf_counter() - began)
    assert samples.device_s is not None
    samples.device_s.append(start.elapsed_time(end) / 1e3)
    samples.traces.append(trace)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """As timeit: a collection would fall on some forwards only."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _peak_memory(
    forward: Callable[[Clips], Trace], recognizer: EfficientRecognizer, batches: Sequence[Clips], device: torch.device
) -> int:
    """Most bytes of tensors alive at once, weights and one batch included, over one more round."""
    return max(_peak_of(forward, recognizer, batch, device) for batch in batches)


def _peak_of(
    forward: Callable[[Clips], Trace], recognizer: EfficientRecognizer, batch: Clips, device: torch.device
) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        forward(to_device(batch, device))
        return int(torch.cuda.max_memory_allocated(device))
    resident = [*recognizer.parameters(), *recognizer.buffers(), *batch.values()]
    return sum(t.numel() * t.element_size() for t in resident) + _peak_host_allocation(lambda: forward(batch))


def _peak_host_allocation(work: Callable[[], Any]) -> int:
    """Peak of what torch's CPU allocator handed out while `work` ran, from the profiler's memory events."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to stderr that there is no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    events = [e for e in results.events() if e.name() == "[memory]"] if results is not None else []
    steps = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(max(np.cumsum(steps), default=0))


def _model_phases(samples: Samples, videos: int) -> dict[str, float]:
    if not videos:
        return {}
    return {"transfer": sum(samples.transfer_s) / videos, "model": sum(samples.wall_s) / videos}
