"""Latency of `infer` on real inputs: host wall clock and device events of the same runs, raw samples kept.

    with prepared(recognizer, device="cuda", dtype="bfloat16", engine="graphs") as device:
        measured = measure_latency(recognizer, batches, point_settings, device=device)

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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from harness.compat.memory import is_out_of_memory
from harness.contract.declarations import EMPTY, ClipRequest
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.decode import decode
from harness.data.videos import VideoSet
from harness.engine.forms import Forms, engaged
from harness.engine.memory_format import MEMORY_FORMATS, set_memory_format
from harness.engine.precision import DTYPES, in_precision
from harness.errors import BenchError, UsageError, unknown
from harness.measure.machine import OthersMeter, conditions, fingerprint, machine, slowed
from harness.measure.views import Viewed, joined, view_datasets

PHASES = ("decode", "transform", "transfer", "model")
GPU_WARMUP_S = 0.5
PEAK_BATCHES = 2
"""Batches whose peak memory is measured: those for which most was executed."""


@dataclass
class Samples:
    """What the timed forwards gave, in order."""

    wall_s: list[float] = field(default_factory=list)
    device_s: list[float] | None = None
    transfer_s: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    """A trace of each forward's work: of an untimed forward of the same batch, unless decisions are drawn."""
    outputs: dict[int, Output] = field(default_factory=dict)
    """Batch -> what its last timed forward said."""
    warmup: int = 0
    unprepared: int = 0
    """Calls of components in timed forwards that no form was prepared for."""
    others: float | None = None
    """Share of the processor that other processes took meanwhile."""


@dataclass(frozen=True)
class Output:
    """What a forward said of its videos."""

    logits: Tensor
    """(B, C)."""
    exit_step: np.ndarray | None
    """(B,); None for a method without exits."""


class Unrecorded(Trace):
    """A trace that counts nothing: the harness's bookkeeping is not the method's work."""

    def work(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
Forward = Callable[[Clips, Trace], Tensor]
Costs = Callable[[Trace], Mapping[str, np.ndarray]]
"""Component -> executed GFLOPs per video (B,) of a trace, as of harness.measure.cost_table."""


@contextlib.contextmanager
def prepared(
    recognizer: EfficientRecognizer,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    engine: str = "eager",
    memory_format: str = "channels_last",
    table: Path | None = None,
) -> Iterator[torch.device]:
    """The recognizer on `device`, in eval mode, computing as it is to be timed; its weights are restored at the end.

    Args:
        recognizer: With its weights.
        device: `cpu`, `cuda`, `cuda:N`.
        dtype: Other than float32: the heavy networks' weights are converted once, the rest stays in float32
            (harness.engine.precision).
        engine: How components run (harness.engine.forms).
        memory_format: Of the weights.
        table: Folder of measured row times; None: they are measured anew.

    Raises:
        UsageError: unknown dtype, engine or memory format, no such device.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if memory_format not in MEMORY_FORMATS:
        raise unknown("memory format", memory_format, MEMORY_FORMATS)
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is usable here; `bench.py doctor` says why, --device cpu times the CPU")
    recognizer.to(target).eval()
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_precision(recognizer, dtype))
        set_memory_format(recognizer, memory_format)
        context = {
            "machine": fingerprint(),
            "device": target.type,
            "dtype": dtype,
            "memory_format": memory_format,
            "threads": torch.get_num_threads(),
        }
        stack.enter_context(engaged(recognizer, engine, context=context, table=table))
        yield target


def measure_latency(
    recognizer: EfficientRecognizer | Viewed,
    batches: Sequence[Clips],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    min_iterations: int = 20,
    min_seconds: float = 1.0,
    warmup: int = 5,
    costs: Costs | None = None,
    test_seed: int | None = None,
    memory: bool = True,
) -> tuple[dict[str, Any], list[Output]]:
    """Time `recognizer.infer` on `batches`.

    Args:
        recognizer: `prepared`; `Viewed` where a sample is a forward of each of several views.
        batches: Collated real inputs on the host, uint8 (B, T, 3, H, W) per request; of several views `joined`.
        point_settings: Settings of the operating point.
        device: Where the recognizer is.
        min_iterations: Timed forwards, at least; whole rounds over all batches are run.
        min_seconds: Time spent in timed forwards, at least.
        warmup: Untimed forwards before, at least, after one of every batch that forms are prepared by; a GPU works
            for `GPU_WARMUP_S`.
        costs: Executed GFLOPs of each component per video (B,), of a trace (the cost table's).
        test_seed: Of the generator that decisions are drawn from; None: the likeliest are taken.
        memory: Measure the peak memory too.

    Returns:
        The fields of `harness.store.records.LATENCY_SCHEMA` that one launch measures (status, wall_s, device_s,
        videos, gflops, compiled_share, forms, phases_s of transfer and model, peak_memory_bytes), and of an entry of
        its `launches`: warmup, prepare_s, unprepared, others, slowed, clocks; prepare_s and forms are of all that ran
        in this process. Where memory ran out the lists are empty. And what the last timed forward of each batch said.

    Raises:
        UsageError: no batches, or fewer than no seconds.
        BenchError: a counter (any torch dispatch mode) is active in this thread.
    """
    if not batches:
        raise UsageError("no batches to time; the split is empty or --limit is 0")
    if min_seconds < 0 or min_iterations < 1:
        raise UsageError(f"{min_seconds:g} s and {min_iterations} forwards: a timing takes at least 0 s and 1 forward")
    refuse_counter()
    target = torch.device(device)
    before = device_conditions(target)
    forward = forward_of(recognizer, point_settings, target, test_seed)
    forms = forms_of(recognizer)
    try:
        drawn = test_seed is not None
        samples = _time(forward, forms, batches, target, min_iterations, min_seconds, warmup, drawn=drawn)
        after = working_conditions(forward, batches[0], target)
        heaviest = sorted(range(len(batches)), key=lambda i: -_rows(samples.traces[i]))[:PEAK_BATCHES]
        peak = _peak_memory(forward, recognizer, [batches[i] for i in heaviest], target) if memory else None
        status = "ok"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        samples, peak, status = Samples(device_s=[] if target.type == "cuda" else None), None, "out of memory"
    if status != "ok":
        release(target)
        after = device_conditions(target)
    videos = [trace.videos for trace in samples.traces]
    measured = {
        "status": status,
        "wall_s": samples.wall_s,
        "device_s": samples.device_s,
        "videos": videos,
        **work_told(forms, samples.traces, costs),
        "phases_s": _model_phases(samples, sum(videos)),
        "peak_memory_bytes": peak,
        "warmup": samples.warmup,
        "unprepared": samples.unprepared,
        "others": samples.others,
        **conditions_told(before, after),
    }
    return measured, [samples.outputs[i] for i in sorted(samples.outputs)]


def phases(
    recognizer: EfficientRecognizer | Viewed,
    videos: VideoSet,
    split: str,
    requests: Sequence[ClipRequest],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    count: int = 8,
    views: str = "centre",
) -> dict[str, Any]:
    """Where the time of a video goes from file to logits, for `count` videos spread over `split`, one by one.

    Nothing comes from a cache: every video is decoded again. The first one is a warm-up of all phases. With several
    `views` (then the recognizer is `Viewed`) transform, transfer and model are of all of them, decode is once.

    Returns:
        `phases_s`: decode, transform (resize, crop, collate), transfer and model, mean seconds per video;
        `frames_decoded`: frames that the decoder decoded per video to reach those that were asked for.
    """
    target = torch.device(device)
    datasets = view_datasets(videos, split, requests, views, cache_bytes=0)
    number = len(datasets[0])
    chosen = np.linspace(0, number - 1, min(count, number)).round().astype(int).tolist()
    forward = forward_of(recognizer.to(target).eval(), point_settings, target, None)
    _loaded_forward(datasets, chosen[0], forward, target)
    runs = [_loaded_forward(datasets, index, forward, target) for index in chosen]
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
            "deterministic": torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic,
        }
    return facts


def device_conditions(device: torch.device) -> dict[str, Any]:
    """Clocks, load and temperature now."""
    return conditions(gpu=gpu_id(device))


def gpu_id(device: torch.device) -> str | None:
    """The identity by which nvidia-smi knows a GPU; None for another device."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def release(device: torch.device) -> None:
    """Give cached memory back after a failed allocation."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def refuse_counter() -> None:
    """Raise BenchError where a counter (any torch dispatch mode) is active in this thread."""
    if _get_current_dispatch_mode() is not None:
        raise BenchError("a counter is active: count multiply-accumulates in another process than timing")


def to_device(clips: Clips, device: torch.device) -> dict[str, Tensor]:
    """A batch on the device; returns when it is there."""
    moved = {name: value.to(device, non_blocking=True) for name, value in clips.items()}
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return moved


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loaded_forward(
    datasets: Sequence[ClipDataset], index: int, forward: Forward, device: torch.device
) -> dict[str, float]:
    """Seconds of each phase for one video from file to logits, and the frames that its decoder decoded."""
    marks = [time.perf_counter()]
    items = [dataset[index] for dataset in datasets]
    clips = joined([collate([item])["inputs"] for item in items])
    marks.append(time.perf_counter())
    moved = to_device(clips, device)
    marks.append(time.perf_counter())
    forward(moved, Trace(1))
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    marks.append(time.perf_counter())
    wanted = sorted(set().union(*items[0]["data_samples"].metainfo["frame_indices"].values()))
    tally: Counter[str] = Counter()
    decode(datasets[0].entries[index].path, wanted, template=datasets[0].card.template, tally=tally)
    marks.append(time.perf_counter())
    loading, transfer, model, decoding = np.diff(marks).tolist()
    transform = max(0.0, loading - len(datasets) * decoding)  # each view's dataset has decoded
    phases_s = dict(zip(PHASES, (decoding, transform, transfer, model), strict=True))
    return {**phases_s, "frames": float(tally["frames"])}


def forward_of(
    recognizer: EfficientRecognizer | Viewed, settings: Mapping[str, Any], device: torch.device, test_seed: int | None
) -> Forward:
    """What is timed: `infer` on clips that are on the device; decisions are drawn where there is a seed."""
    generator = None if test_seed is None else torch.Generator(device).manual_seed(test_seed)

    def forward(clips: Clips, trace: Trace) -> Tensor:
        with torch.inference_mode():
            return recognizer.infer(clips, settings, trace=trace, generator=generator)

    return forward


def _time(
    forward: Forward,
    forms: Forms,
    batches: Sequence[Clips],
    device: torch.device,
    min_iterations: int,
    min_seconds: float,
    warmup: int,
    *,
    drawn: bool,
) -> Samples:
    samples = Samples(device_s=[] if device.type == "cuda" else None)
    traces = _learn(forward, forms, batches, device)
    samples.warmup = len(traces) + _warm_up(forward, batches, device, warmup)
    before = forms.unprepared
    timed = _timed_cuda if device.type == "cuda" else _timed_host
    with no_garbage_collection():
        others = OthersMeter()
        while len(samples.wall_s) < min_iterations or sum(samples.wall_s) < min_seconds:
            for number, batch in enumerate(batches):
                began = time.perf_counter()
                clips = to_device(batch, device)
                samples.transfer_s.append(time.perf_counter() - began if device.type == "cuda" else 0.0)
                trace = (Trace if drawn else Unrecorded)(videos_of(clips))
                logits = timed(forward, clips, trace, device, samples)
                samples.traces.append(trace if drawn else traces[number])
                samples.outputs[number] = Output(logits.clone(), trace.exit_step)  # a CUDA graph writes there again
        samples.others = others.share()
    samples.unprepared = forms.unprepared - before
    return samples


def _learn(forward: Forward, forms: Forms, batches: Sequence[Clips], device: torch.device) -> list[Trace]:
    """One forward of each batch, which its forms are prepared by; their traces."""
    traces = []
    with forms.learning():
        for batch in batches:
            clips = to_device(batch, device)
            traces.append(Trace(videos_of(clips)))
            forward(clips, traces[-1])
    return traces


def learn(recognizer: EfficientRecognizer, batches: Sequence[Clips], point_settings: Mapping[str, Any]) -> None:
    """Prepare the forms of a `prepared` recognizer for what a point does on `batches`."""
    device = recognizer.mean.device
    _learn(forward_of(recognizer, point_settings, device, None), forms_of(recognizer), batches, device)


def work_told(forms: Forms, traces: Sequence[Trace], costs: Costs | None) -> dict[str, Any]:
    """The fields gflops, of each sample, compiled_share, of all (None where all run eagerly), prepare_s and forms."""
    parts = [{name: float(np.sum(macs)) for name, macs in costs(trace).items()} for trace in traces] if costs else []
    gflops, compiled = [sum(part.values()) for part in parts], forms.compiled()
    inside = sum(macs for part in parts for name, macs in part.items() if name in compiled)
    share = None
    if costs is not None and forms.engine != "eager":
        share = inside / sum(gflops) if any(gflops) else 0.0
    return {"gflops": gflops, "compiled_share": share, "prepare_s": forms.prepare_s, "forms": forms.told()}


def conditions_told(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `slowed` and `clocks`, of the device's conditions before and after."""
    return {"slowed": slowed(before, after), "clocks": {"before": before, "after": after}}


def _warm_up(forward: Forward, batches: Sequence[Clips], device: torch.device, least: int) -> int:
    """Untimed forwards: `least`, on a GPU until its clocks are up; how many these were."""
    began, done = time.perf_counter(), 0
    seconds = GPU_WARMUP_S if device.type == "cuda" else 0.0
    while done < least or time.perf_counter() - began < seconds:
        clips = to_device(batches[done % len(batches)], device)
        forward(clips, Unrecorded(videos_of(clips)))
        done += 1
    return done


def forms_of(recognizer: EfficientRecognizer | Viewed) -> Forms:
    """What `prepared` has given the recognizer."""
    forms = (recognizer.recognizer if isinstance(recognizer, Viewed) else recognizer).forms
    assert isinstance(forms, Forms), "what is timed is `prepared`"
    return forms


def _timed_host(forward: Forward, clips: Clips, trace: Trace, device: torch.device, samples: Samples) -> Tensor:
    began = time.perf_counter()
    logits = forward(clips, trace)
    samples.wall_s.append(time.perf_counter() - began)
    return logits


def _timed_cuda(forward: Forward, clips: Clips, trace: Trace, device: torch.device, samples: Samples) -> Tensor:
    """The stream is idle before; waiting for the closing event is the only synchronisation of ours."""
    stream = torch.cuda.current_stream(device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began = time.perf_counter()
    start.record(stream)
    logits = forward(clips, trace)
    end.record(stream)
    end.synchronize()
    samples.wall_s.append(time.perf_counter() - began)
    assert samples.device_s is not None
    samples.device_s.append(start.elapsed_time(end) / 1e3)
    return logits


def working_conditions(forward: Forward, batch: Clips, device: torch.device) -> dict[str, Any]:
    """`device_conditions` while the device works, after the timed forwards: at rest a GPU lowers its clocks at once."""
    clips = to_device(batch, device)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(device_conditions, device)
        while device.type == "cuda" and not found.done():
            forward(clips, Unrecorded(videos_of(clips)))
        return found.result()


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
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
    forward: Forward, recognizer: nn.Module, batches: Sequence[Clips], device: torch.device
) -> int:
    """Most bytes of tensors alive at once, weights and one batch included, over one more forward of each batch."""
    return max(_peak_of(forward, recognizer, batch, device) for batch in batches)


def _peak_of(
    forward: Forward, recognizer: nn.Module, batch: Clips, device: torch.device
) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        forward(to_device(batch, device), Unrecorded(videos_of(batch)))
        return int(torch.cuda.max_memory_allocated(device))
    resident = [*recognizer.parameters(), *recognizer.buffers(), *batch.values()]
    peak = peak_host_allocation(lambda: forward(batch, Unrecorded(videos_of(batch))))
    return sum(t.numel() * t.element_size() for t in resident) + peak


def peak_host_allocation(work: Callable[[], Any]) -> int:
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


def _rows(trace: Trace) -> float:
    """Rows of all kinds of work that a forward executed."""
    return float(sum(rows.sum() for rows in trace.counts.values()))


def videos_of(clips: Clips) -> int:
    """B of a batch."""
    return int(next(iter(clips.values())).shape[0])
