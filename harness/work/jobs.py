"""Work in a process of its own: `python -m harness.work.jobs WORK_DIR < request.json`.

Isolated processes keep counting apart from timing, give memory back, and let a killed run leave
nothing behind: a job ends at once when its parent dies. Progress goes as JSON lines to the file
descriptor BENCH_PROGRESS; the exit status is 0 done, 1 failed (reason in the last line), 75 stopped on
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import BenchError, StopRequested
from harness.plan.units import EvalSpec, LatencySpec, TrainSpec, read_spec

STOPPED = 75
_stop = threading.Event()


def main() -> int:
    """Read specs from standard input, do the work one by one, report."""
    die_with_parent(int(os.environ["BENCH_PARENT"]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    request = json.load(sys.stdin)
    report = _Reporter(int(os.environ["BENCH_PROGRESS"]))
    failed = False
    for spec in map(read_spec, request["specs"]):
        report.key = spec.key
        try:
            _work(spec, Path(sys.argv[1]), request, report)
        except StopRequested:
            return STOPPED
        except BenchError as error:
            report({"error": str(error)})
            failed = True
        except Exception as error:  # noqa: BLE001  (the process boundary: every failure becomes a record)
            traceback.print_exc()
            report({"error": f"{type(error).__name__}: {error}"})
            failed = True
        if _stop.is_set():
            return STOPPED
    return 1 if failed else 0


def _work(spec: Any, work_dir: Path, request: Mapping[str, Any], report: _Reporter) -> None:
    import torch

    device = request["device"]
    if isinstance(spec, TrainSpec):
        torch.set_num_threads(spec.training["threads"])
        from harness.work.training import train

        train(spec, work_dir, device=device, report=report, stop=_stop.is_set)
    elif isinstance(spec, EvalSpec):
        torch.set_num_threads(spec.protocol["threads"])
        from harness.measure.recording import record_evaluation

        record_evaluation(spec, work_dir, device=device, command=request["command"], report=report)
    elif isinstance(spec, LatencySpec):
        torch.set_num_threads(spec.threads)
        from harness.measure.recording import record_latency

        record_latency(spec, work_dir, command=request["command"], report=report)


def die_with_parent(parent: int) -> None:
    """End this process when `parent` is gone: at once on Linux, within a second elsewhere."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class _Reporter:
    """Writes progress lines, at most ten a second."""

    def __init__(self, descriptor: int) -> None:
        self.file = os.fdopen(descriptor, "w", buffering=1)
        self.last = 0.0
        self.key = ""

    def __call__(self, value: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if "error" in value or now - self.last > 0.1:
            self.last = now
            self.file.write(json.dumps({**value, "key": self.key}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
