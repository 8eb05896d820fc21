"""Work in a process of its own: `python -m harness.work.jobs WORK_DIR < request.json`.

Isolated processes keep counting apart from timing, give memory back, and let a killed run leave
nothing behind: a job ends at once when its parent dies. Latencies are one job, which starts processes of its own
(harness.work.timing_session), as does an evaluation that needs times of segments. Progress goes as JSON lines to
the file descriptor BENCH_PROGRESS; the exit status is 0 done, 1 failed (reason in the last line), 75 stopped on
request with its state saved.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import BenchError, StopRequested
from harness.measure.machine import at_work
from harness.plan.units import EvalSpec, LatencySpec, Spec, TrainSpec, read_spec
from harness.work.processes import die_with_parent, told_by_worker, use_threads

STOPPED = 75
_stop = threading.Event()


def main() -> int:
    """Read specs from standard input, do the work one by one, report."""
    die_with_parent(int(os.environ["BENCH_PARENT"]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    request, work_dir = json.load(sys.stdin), Path(sys.argv[1])
    specs = [read_spec(spec) for spec in request["specs"]]
    report = _Reporter(int(os.environ["BENCH_PROGRESS"]), specs[0].key)
    timed = [spec for spec in specs if isinstance(spec, LatencySpec)]
    if timed:
        return _time(timed, work_dir, request, report)
    return _work_through(specs, work_dir, request, report)


def _time(specs: Sequence[LatencySpec], work_dir: Path, request: Mapping[str, Any], report: _Reporter) -> int:
    from harness.work.timing_session import time_all

    def tell(key: str, value: Mapping[str, Any]) -> None:
        report.key = key
        report(value)

    def leave(*_: object) -> None:
        raise StopRequested

    try:
        signal.signal(signal.SIGTERM, leave)  # at once, but not without clearing up
        if _stop.is_set():
            return STOPPED
        went_well = time_all(
            specs, work_dir, command=request["command"], timeout=request["timeout"], report=tell
        )
    except StopRequested:
        return STOPPED
    except BenchError as error:  # of all: the lock, a full disk
        for spec in specs:
            tell(spec.key, {"error": str(error)})
        return 1
    return 0 if went_well else 1


def _work_through(specs: Sequence[Spec], work_dir: Path, request: Mapping[str, Any], report: _Reporter) -> int:
    failed = False
    for spec in specs:
        if _stop.is_set():
            return STOPPED
        report.key = spec.key
        try:
            _work(spec, work_dir, request, report)
        except StopRequested:
            return STOPPED
        except BenchError as error:
            report({"error": told_by_worker(error)})
            failed = True
        except OSError as error:
            with suppress(OSError):
                traceback.print_exc()
            told = f"{error.filename or sys.argv[1]}: {error.strerror or error}"
            report({"error": f"{told}; free space, or see to its permissions, and run again"})
            failed = True
        except Exception as error:  # noqa: BLE001  (the process boundary: every failure becomes a record)
            with suppress(OSError):  # a full disk
                traceback.print_exc()
            report({"error": f"{type(error).__name__}: {told_by_worker(error)}"})
            failed = True
    return STOPPED if _stop.is_set() else int(failed)


def _work(spec: Spec, work_dir: Path, request: Mapping[str, Any], report: _Reporter) -> None:
    times = None
    if isinstance(spec, EvalSpec) and spec.timed_on is not None:
        from harness.work.timing_session import time_segments

        times = time_segments(spec, work_dir, timeout=request["timeout"], told=lambda text: report({"note": text}))
        if times["disturbed"]:
            reasons, place = "; ".join(times["disturbed"]), spec.folder(work_dir)
            advice = f"when it is quiet, remove {place} and run again"
            report({"told": [f"segments were timed while the machine was busy ({reasons}); {advice}"]})
    with at_work(work_dir, on_wait=lambda text: report({"note": text}), stop=_stop.is_set):
        _work_untimed(spec, work_dir, request, report, times)


def _work_untimed(
    spec: Spec, work_dir: Path, request: Mapping[str, Any], report: _Reporter, times: Mapping[str, Any] | None
) -> None:
    use_threads(spec.threads)
    device = request["device"]
    if isinstance(spec, TrainSpec):
        from harness.work.training import train

        train(spec, work_dir, device=device, report=report, stop=_stop.is_set)
    elif isinstance(spec, EvalSpec):
        from harness.measure.recording import record_evaluation

        record_evaluation(
            spec, work_dir, device=device, command=request["command"], report=report, segment_times=times
        )


class _Reporter:
    """Writes progress lines, at most ten a second; an `error` and what is `told` always."""

    def __init__(self, descriptor: int, key: str) -> None:
        self.file = os.fdopen(descriptor, "w", buffering=1)
        self.last = 0.0
        self.key = key
        """Of the unit that is told about."""

    def __call__(self, value: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if value.keys() & {"error", "told"} or now - self.last > 0.1:
            self.last = now
            self.file.write(json.dumps({**value, "key": self.key}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
