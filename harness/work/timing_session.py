"""Timing all that a run asks for: fresh processes, models interleaved, on a machine as quiet as can be. No torch.

The segments of one evaluation are timed likewise, by a single process, before exits are calibrated for milliseconds.

One session holds the machine's lock. In each of its rounds every model is launched once, in a process of its own that
times all its points and batch sizes; the next round goes through them the other way round. So what the machine does
meanwhile falls on all of them, and the luck of one start (where memory lies, which kernels are chosen) on none.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import BenchError
from harness.measure.launches import check_outputs, disturbances, merged
from harness.measure.machine import machine_lock, visible_gpu, wait_until_quiet
from harness.measure.provenance import now, provenance
from harness.plan.units import EvalSpec, LatencySpec, to_plain
from harness.store.records import commit_record
from harness.work.processes import how_ended

SCRATCH = "focusbench-timing-"
Report = Callable[[str, Mapping[str, Any]], None]
"""Key of a spec, and what is said of it."""
Work = Callable[["Model", bool, int], Mapping[str, Any]]
"""A model, whether it is examined, the launch -> answers by key; `Workers.__call__`."""


@dataclass
class Model:
    """An evaluated model as it computes, and what is timed of it."""

    specs: list[LatencySpec]
    number: int
    launches: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """Key -> what each launch measured."""
    examined: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason."""

    @property
    def todo(self) -> list[LatencySpec]:
        """What is worth another launch: neither failed nor out of memory."""
        return [
            spec
            for spec in self.specs
            if spec.key not in self.failed
            and all(launch["status"] == "ok" for launch in self.launches.get(spec.key, ()))
        ]

    def take(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """What a process found, by key; what failed is noted."""
        self.failed |= {key: answer["error"] for key, answer in answers.items() if "error" in answer}
        return {key: answer["found"] for key, answer in answers.items() if "found" in answer}


def time_all(
    specs: Sequence[LatencySpec], work_dir: Path, *, command: str, timeout: float | None, report: Report
) -> bool:
    """Time `specs` and commit their records; says whether all went well. Failures are reported with their reason."""
    models = by_model(specs)
    limit, threads = max(spec.quiet_wait_s for spec in specs), min(spec.threads for spec in specs)

    def told(text: str) -> None:
        report(specs[0].key, {"note": text})

    with _machine_held(work_dir, limit, threads, specs[0].device, told) as (beside, scratch, patience):
        run_session(models, Workers(work_dir, scratch, timeout), patience, report)
    for model in models:
        for spec in (s for s in model.specs if s.key not in model.failed):
            examined, launches = model.examined.get(spec.key, {}), model.launches[spec.key]
            try:
                record(spec, work_dir, launches, examined=examined, beside=beside, command=command)
            except BenchError as error:
                model.failed[spec.key] = str(error)
        for key, reason in model.failed.items():
            report(key, {"error": reason})
    return not any(model.failed for model in models)


def time_segments(
    spec: EvalSpec, work_dir: Path, *, timeout: float | None, told: Callable[[str], None]
) -> dict[str, Any]:
    """Times of the segments of a trained method: `segment_times` of the record of `spec`, and the `sources` behind it.

    Args:
        spec: An evaluation with budgets in milliseconds.
        work_dir: Where its artifacts lie.
        timeout: Seconds after which the process that times is ended.
        told: Called with what is waited for, and when timing begins.

    Raises:
        BenchError: nothing could be timed, with the reason.
    """
    assert spec.timed_on is not None
    device = spec.timed_on["device"]
    with _machine_held(work_dir, spec.quiet_wait_s, spec.threads, device, told) as (beside, scratch, patience):
        gpu_others = patience()
        told("timing segments")
        answer = Workers(work_dir, scratch, timeout).answers([spec], scratch / "segments.json")[spec.key]
    if "error" in answer:
        raise BenchError(f"timing segments: {answer['error']}")
    found = {**answer["found"], "gpu_others": gpu_others}
    return {**found, "disturbed": disturbances([found], beside)}


@contextmanager
def _machine_held(
    work_dir: Path, limit_s: float, threads: int, device: str, told: Callable[[str], None]
) -> Iterator[tuple[str | None, Path, Patience]]:
    """Hold the machine's lock: who else is at work, a folder for answers, and what is left of the limit of waiting."""
    began = time.monotonic()
    with machine_lock(work_dir, patience_s=limit_s, on_wait=told) as beside, _scratch_folder() as scratch:
        left = max(0.0, limit_s - (time.monotonic() - began)) if beside is None else 0.0
        gpu = visible_gpu() if device.startswith("cuda") else None
        yield beside, scratch, Patience(left, threads, gpu, told)


def by_model(specs: Sequence[LatencySpec]) -> list[Model]:
    """The specs of each setup together, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[LatencySpec]] = {}
    for spec in specs:
        groups.setdefault(spec.setup, []).append(spec)
    return [Model(group, number) for number, group in enumerate(groups.values())]


def run_session(
    models: Sequence[Model], work: Work, patience: Callable[[], float | None], report: Report
) -> None:
    """Examine the models that need it, then launch them round by round, there and back."""
    for model in models:
        if model.specs[0].engine != "eager" or model.specs[0].dtype != "float32":
            report(model.specs[0].key, {"note": "examining"})
            model.examined = model.take(work(model, True, 0))
    launches = max(int(spec.options.get("launches", 1)) for model in models for spec in model.specs)
    for launch in range(launches):
        for model in models if launch % 2 == 0 else reversed(models):
            if not model.todo:
                continue
            report(model.todo[0].key, {"note": f"launch {launch + 1} of {launches}"})
            gpu_others = patience()
            for key, found in model.take(work(model, False, launch)).items():
                model.launches.setdefault(key, []).append({**found, "gpu_others": gpu_others})


class Patience:
    """Waits for a quiet machine before each launch; one limit for all of them."""

    def __init__(self, limit_s: float, threads: int, gpu: str | None, on_wait: Callable[[str], None]) -> None:
        self.left, self.threads, self.gpu, self.on_wait = limit_s, threads, gpu, on_wait

    def __call__(self) -> float | None:
        """Share of its time that the GPU works for others when waiting ends; None where it is not known."""
        quiet = wait_until_quiet(self.left, threads=self.threads, gpu=self.gpu, on_wait=self.on_wait)
        self.left -= quiet.waited_s
        return quiet.gpu_others


@dataclass
class Workers:
    """Runs a process of `harness.work.timing_worker` and waits for it without using the processor."""

    work_dir: Path
    scratch: Path
    timeout: float | None
    """Seconds after which a process is ended."""

    def __call__(self, model: Model, examine: bool, launch: int) -> Mapping[str, Any]:
        """Answers by key: what was `found`, or the `error`."""
        out, arrays = (self.scratch / f"{model.number}.{ending}" for ending in ("json", "npz"))
        specs = model.specs if examine else model.todo
        return self.answers(specs, out, examine=examine, first=launch == 0, arrays=str(arrays))

    def answers(self, specs: Sequence[LatencySpec | EvalSpec], out: Path, **asked: Any) -> Mapping[str, Any]:
        """Answers by key of one process to a request (harness.work.timing_worker), by way of the file `out`."""
        out.unlink(missing_ok=True)
        request = {"specs": [to_plain(spec) for spec in specs], "out": str(out), **asked}
        threads = str(specs[0].threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.work.timing_worker", str(self.work_dir)],
            stdin=subprocess.PIPE,
            env=os.environ
            | {"BENCH_PARENT": str(os.getpid()), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(self.timeout, end) if self.timeout is not None else None
        if alarm is not None:
            alarm.start()
        try:
            process.communicate(json.dumps(request).encode())
        finally:
            process.kill()  # does nothing to one that has ended
            if alarm is not None:
                alarm.cancel()
        if out.exists():
            answers: Mapping[str, Any] = json.loads(out.read_text())
            return answers
        code = process.returncode
        reason = f"took longer than --timeout {self.timeout:g} s" if late.is_set() else f"the launch {how_ended(code)}"
        return {spec.key: {"error": reason} for spec in specs}


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for what processes answer; killed sessions' go: only the holder of the machine's lock has one."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def record(
    spec: LatencySpec,
    work_dir: Path,
    launches: Sequence[Mapping[str, Any]],
    *,
    examined: Mapping[str, Any],
    beside: str | None,
    command: str,
) -> None:
    """Commit the record of `spec`.

    Args:
        launches: What each launch measured (harness.measure.timing.time_launch), in order.
        examined: `precision` (harness.measure.timing.examine).
        beside: Who else of this project was at work on the machine meanwhile.

    Raises:
        BenchError: the timed forwards did not say what the evaluation said.
    """
    check_outputs(f"{spec.method} at {spec.point}", [launch["outputs"] for launch in launches])
    result = {
        **merged(launches, beside),
        "precision": examined.get("precision"),
        "kind": "latency",
        "key": spec.key,
        "created": now(),
        "evaluation": spec.evaluation,
        "method": {"name": spec.method, "size": spec.size},
        "seed": spec.seed,
        "point": spec.point,
        "batch": spec.batch,
        "mode": spec.mode,
        "dtype": spec.dtype,
        "compile": None,
        "engine": spec.engine,
        "memory_format": spec.memory_format,
        "options": dict(spec.options),
        "provenance": provenance(shlex.split(command)),
    }
    commit_record(spec.folder(work_dir), result)
