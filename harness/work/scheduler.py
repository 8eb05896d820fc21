"""Doing planned work: dependencies, side by side, killable at any moment, never twice. No torch.

Each unit runs as a process of `harness.work.jobs`. Finished units are found by their key and not repeated;
failed ones leave a record with the reason and are tried again by the next run. SIGTERM and SIGINT let
every job save its epoch and leave; a second one ends them at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import BenchError
from harness.plan.units import EvalSpec, LatencySpec, Spec, TrainSpec, to_plain
from harness.store import artifacts, sources
from harness.store.files import write_json
from harness.store.records import read_record
from harness.store.work_dir import failure_file, locked, set_aside
from harness.work.jobs import STOPPED
from harness.work.processes import how_ended

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
"""glibc keeps freed memory instead of returning it after every operator: about a fifth of a CPU training step."""
Notify = Callable[["Task"], None]


@dataclass
class Task:
    """One unit of work and where it stands."""

    spec: Spec
    needs: tuple[str, ...]
    status: str = "waiting"
    """waiting, running, done, cached, stale (kept), failed, blocked, stopped."""
    reason: str = ""
    stale: tuple[str, ...] = ()
    """What has changed since a result was made, or an unfinished training begun."""
    damage: str = ""
    """What is wrong with the files that are there: they are set aside, and the work is done anew."""
    notes: list[str] = field(default_factory=list)
    """What its reader must know: what was set aside and where, which damage was mended."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def why(self) -> str:
        """Why it is, or should be, done again; empty where nothing was there or all of it holds."""
        more = f" and {len(self.stale) - 4} more" if len(self.stale) > 4 else ""
        return self.damage or (f"changed since: {', '.join(self.stale[:4])}{more}" if self.stale else "")

    @property
    def finished(self) -> bool:
        return self.status in ("done", "cached", "stale")

    @property
    def over(self) -> bool:
        return self.finished or self.status in ("failed", "blocked", "stopped")


@dataclass
class _Process:
    tasks: list[Task]
    popen: subprocess.Popen[bytes]
    pipe: int
    log: Path
    asked: float | None = None
    rest: bytes = b""
    closed: bool = False

    def lines(self) -> Iterator[dict[str, Any]]:
        """Progress that came in since the last call."""
        while True:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                break
            if not data:
                self.closed = True
                break
            *whole, self.rest = (self.rest + data).split(b"\n")
            yield from (json.loads(line) for line in whole if line)


class Scheduler:
    """Runs tasks below one work directory.

    Args:
        work_dir: Root of the results; locked while running.
        device: `cpu` or `cuda`, for training and evaluation.
        jobs: Processes side by side (what times runs alone).
        command: The command line, for the records.
        notify: Called whenever a task's status or progress changes.
        timeout: Seconds after which a job is ended and counted as failed.
        keep_stale: Keep results, and go on with trainings, that rest on other code or packages, or another device.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        device: str,
        jobs: int,
        command: str,
        notify: Notify = lambda _: None,
        timeout: float | None = None,
        keep_stale: bool = False,
    ) -> None:
        self.work_dir, self.device, self.jobs, self.command = work_dir, device, jobs, command
        self.notify, self.timeout, self.keep_stale = notify, timeout, keep_stale
        self.tasks: dict[str, Task] = {}
        self.running: list[_Process] = []
        self.stopping = 0
        self.force = False

    def add(self, specs: Sequence[Spec]) -> None:
        """Add work; a key that is there already is shared."""
        for spec in specs:
            if spec.key not in self.tasks:
                self.tasks[spec.key] = Task(spec, spec.needs)

    def look(self, *, force: bool = False) -> None:
        """Find what is finished already; with `force`, forget it."""
        self.force = force
        if force:
            return
        for task in self.tasks.values():
            if task.status == "waiting":
                self._look_at(task)
                if task.finished:
                    self.notify(task)
        for task in self._ordered():
            inputs = [self.tasks[n] for n in task.needs if n in self.tasks]
            if task.status in ("cached", "stale") and any(t.status not in ("cached", "stale") for t in inputs):
                task.status, task.stale = "waiting", ("its inputs",)
                self.notify(task)

    def _look_at(self, task: Task) -> None:
        """Whether a task is finished, and what has changed since; damage is noted, and mended when its turn comes."""
        try:
            found = _finished(self.work_dir, task.spec)
            if found is None and isinstance(task.spec, TrainSpec):
                begun = artifacts.begun(self.work_dir, task.key)
                task.stale = () if begun is None else tuple(sources.changed(begun, self.device))
        except BenchError as error:
            task.damage = str(error)
            return
        if found is not None:
            task.stale = tuple(sources.changed(found, self.device))
            task.status = "cached" if not task.stale else "stale" if self.keep_stale else "waiting"

    def run(self) -> None:
        """Work until nothing can be done any more, or until asked to stop."""
        for task in self.tasks.values():
            if task.finished and isinstance(task.spec, TrainSpec):
                with suppress(OSError):
                    artifacts.drop_epochs(self.work_dir, task.key)  # a kill may have come between commit and this
        with self._signals():
            try:
                while True:
                    self._block()
                    if not self.stopping:
                        self._start()
                    if not self.running:
                        if self.stopping or not self._ready():
                            break
                        continue
                    closing = any(p.closed for p in self.running)
                    # asleep until a job speaks or ends: a busy parent would disturb what is being timed
                    select.select([p.pipe for p in self.running if not p.closed], [], [], 0.1 if closing else 1.0)
                    self._poll()
            finally:
                for process in self.running:
                    process.popen.kill()
                    process.popen.wait()

    def _ordered(self) -> list[Task]:
        """Tasks after their needs; among the ready ones, those with the longest chain behind them first."""
        depth: dict[str, int] = {}
        for task in reversed(self.tasks.values()):
            depth.setdefault(task.key, 0)
            for need in task.needs:
                depth[need] = max(depth.get(need, 0), depth[task.key] + 1)
        return sorted(self.tasks.values(), key=lambda t: -depth[t.key])

    def _block(self) -> None:
        for task in self.tasks.values():
            if task.status != "waiting":
                continue
            bad = [
                n for n in task.needs if n in self.tasks and self.tasks[n].status in ("failed", "blocked", "stopped")
            ]
            if bad:
                origin = self.tasks[bad[0]]
                task.status = "blocked" if origin.status != "stopped" else "stopped"
                task.reason = origin.reason if origin.status == "blocked" else f"{origin.spec.label()}: {origin.reason}"
                self.notify(task)

    def _start(self) -> None:
        timing = any(_times(p.tasks[0].spec) for p in self.running)
        ready = self._ready()
        work = [t for t in ready if not _times(t.spec)]
        for task in work[: 0 if timing else self.jobs - len(self.running)]:
            self._launch([task])
        if not self.running and not work and ready:
            evaluations = [t for t in ready if isinstance(t.spec, EvalSpec)]
            self._launch(evaluations[:1] or ready)  # one job times all latencies: models are interleaved

    def _ready(self) -> list[Task]:
        """What waits for nothing but its turn."""
        waiting = [t for t in self._ordered() if t.status == "waiting"]
        return [t for t in waiting if all(self.tasks[n].finished for n in t.needs if n in self.tasks)]

    def _launch(self, tasks: list[Task]) -> None:
        try:
            for task in tasks:
                self._make_room(task)
            self.running.append(self._spawn(tasks))
        except (BenchError, OSError) as error:
            for task in tasks:
                self._fail(task, f"could not be started: {error}")
                self.notify(task)
            return
        for task in tasks:
            task.status, task.started = "running", time.monotonic()
            self.notify(task)

    def _spawn(self, tasks: list[Task]) -> _Process:
        task = tasks[0]
        log = self.work_dir / "logs" / f"{task.key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(task.spec.threads)
        read_end, write_end = os.pipe()
        environment = {
            **MALLOC,
            **os.environ,
            "BENCH_PARENT": str(os.getpid()),
            "BENCH_PROGRESS": str(write_end),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(sources.ROOT), os.environ.get("PYTHONPATH")])),
        }
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        try:
            with log.open("wb") as output:
                popen = subprocess.Popen(
                    [sys.executable, "-m", "harness.work.jobs", str(self.work_dir)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=(write_end,),
                    start_new_session=True,
                )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        request = {
            "specs": [to_plain(t.spec) for t in tasks],
            "device": self.device,
            "command": self.command,
            "timeout": self.timeout,
        }
        assert popen.stdin is not None
        try:
            popen.stdin.write(json.dumps(request).encode())
            popen.stdin.close()
        except BrokenPipeError:
            pass  # the job ended already; its exit status says why
        os.set_blocking(read_end, False)
        return _Process(tasks, popen, read_end, log)

    def _make_room(self, task: Task) -> None:
        """Set aside what is done again, so that only new work can count as done; begun trainings go on."""
        if isinstance(task.spec, TrainSpec):
            place, commit = artifacts.folder(self.work_dir, task.key), "artifact.json"
            goes_on = not self.force and not task.damage and (self.keep_stale or not task.stale)
        else:
            place, commit, goes_on = task.spec.folder(self.work_dir), "result.json", True
        if place.exists() and ((place / commit).exists() or not goes_on):
            where = set_aside(self.work_dir, place)
            task.notes.append(f"{task.why or 'made again'}; what was there is set aside in {where}")

    def _poll(self) -> None:
        for process in list(self.running):
            self._listen(process)
            code = process.popen.poll()
            if code is None:
                self._ask_to_leave(process)
                continue
            self._listen(process)
            self.running.remove(process)
            os.close(process.pipe)
            for task in process.tasks:
                task.seconds = time.monotonic() - task.started
                self._settle(task, code, process)
                self.notify(task)

    def _listen(self, process: _Process) -> None:
        for line in process.lines():
            task = self.tasks[line.pop("key")]
            task.notes += line.pop("told", [])
            task.progress = {**task.progress, **line}
            self.notify(task)

    def _ask_to_leave(self, process: _Process) -> None:
        now = time.monotonic()
        timing = isinstance(process.tasks[0].spec, LatencySpec)  # ends its own processes that take too long
        if self.timeout is not None and not timing and now - process.tasks[0].started > self.timeout:
            process.popen.kill()
            for task in process.tasks:
                if not _is_finished(self.work_dir, task.spec):
                    task.progress = {"error": f"took longer than --timeout {self.timeout:g} s"}
        leaves = timing or isinstance(process.tasks[0].spec, TrainSpec)
        if self.stopping >= 2 or (self.stopping and not leaves):
            process.popen.kill()  # nothing half done is worth keeping
        elif self.stopping and process.asked is None:
            process.asked = now
            process.popen.send_signal(signal.SIGTERM)
            what = "timings that are not finished are lost" if timing else "finishing its epoch, then leaving"
            task = process.tasks[0]  # a session of timings is told of once
            task.notes.append(f"{what}; a second Ctrl-C ends it at once")
            self.notify(task)

    def _settle(self, task: Task, code: int, process: _Process) -> None:
        if "error" not in task.progress and _is_finished(self.work_dir, task.spec):
            task.status = "done"
            with suppress(OSError):  # the next report looks for the result first
                failure_file(self.work_dir, task.key).unlink(missing_ok=True)
                if code == 0:
                    process.log.unlink(missing_ok=True)
        elif code == STOPPED or (self.stopping and "error" not in task.progress):
            task.status, task.reason = "stopped", "stopped on request; run the same command again to go on"
        else:
            how = how_ended(code)
            if -code == signal.SIGKILL:
                how += ", most likely because memory ran out (--jobs 1 or a smaller stage.batch_size takes less)"
            self._fail(task, str(task.progress.get("error", f"the job {how}; see {process.log}")), process.log)

    def _fail(self, task: Task, reason: str, log: Path | None = None) -> None:
        task.status, task.reason = "failed", reason
        note = {"key": task.key, "what": task.spec.label(), "reason": reason, "log": str(log or "")}
        try:
            write_json(failure_file(self.work_dir, task.key), note)
        except BenchError as error:  # the others may still fit
            task.reason = f"{reason} ({error})"

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def on_signal(number: int, _: object) -> None:
            self.stopping += 1

        before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _times(spec: Spec) -> bool:
    """Whether it times something, for which it runs alone."""
    return isinstance(spec, LatencySpec) or (isinstance(spec, EvalSpec) and spec.timed_on is not None)


def finish(
    specs: Sequence[Spec], work_dir: Path, *, device: str, command: str, force: bool = False
) -> Mapping[str, Task]:
    """Do this work, one piece after another, unless it is done already (`force`: anyway); the tasks by key."""
    with locked(work_dir):
        scheduler = Scheduler(work_dir, device=device, jobs=1, command=command)
        scheduler.add(specs)
        scheduler.look(force=force)
        scheduler.run()
    return scheduler.tasks


def _finished(work_dir: Path, spec: Spec) -> Mapping[str, Any] | None:
    """Description or record of a finished result; None where it is not finished.

    Raises:
        BenchError: It is damaged, foreign or of another schema.
    """
    if isinstance(spec, TrainSpec):
        return artifacts.read(work_dir, spec.key)
    record = read_record(spec.folder(work_dir))
    return None if record is None else record.result


def _is_finished(work_dir: Path, spec: Spec) -> bool:
    try:
        return _finished(work_dir, spec) is not None
    except BenchError:
        return False
