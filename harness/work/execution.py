"""`run`: the planned work that is not done yet, then its timing. What a script would call instead of `bench.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

from harness.errors import BenchError
from harness.measure.machine import fingerprint
from harness.plan.planner import Cell
from harness.plan.request import Request, resolve
from harness.plan.units import LatencySpec
from harness.store.records import read_record
from harness.store.work_dir import failure_file, locked
from harness.work.scheduler import Notify, Scheduler, Task

Watch = Callable[[Mapping[str, Task]], AbstractContextManager[Notify]]
"""From all tasks by key to what is told of every change while they run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    cells: Sequence[Cell]
    tasks: Mapping[str, Task]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Cell label -> why it was not tried."""

    def status(self, cell: Cell) -> str:
        """Status of a cell: its worst task's."""
        tasks = [self.tasks[s.key] for s in cell.specs]
        bad = [t for t in tasks if not t.finished]
        return bad[0].status if bad else self.tasks[cell.evaluation.key].status

    @property
    def ok(self) -> bool:
        """Whether something ran or was there, and nothing failed."""
        return bool(self.tasks) and all(t.finished for t in self.tasks.values())


def _unwatched(_: Mapping[str, Task]) -> AbstractContextManager[Notify]:
    return nullcontext(lambda _: None)


def execute(
    request: Request, cells: Sequence[Cell], skipped: Mapping[str, str], watch: Watch = _unwatched
) -> Outcome:
    """Do the planned work that is not done yet, then time it; the work directory is locked meanwhile."""
    with locked(request.work_dir):
        scheduler = Scheduler(
            request.work_dir,
            device=request.device,
            jobs=request.jobs,
            command=request.command,
            timeout=request.timeout,
            keep_stale=request.keep_stale,
        )
        with watch(scheduler.tasks) as scheduler.notify:
            for cell in cells:
                scheduler.add(cell.specs)
            scheduler.look(force=request.force)
            scheduler.run()
            if not scheduler.stopping and request.timing.batches:
                for cell in cells:
                    if scheduler.tasks[cell.evaluation.key].finished:
                        scheduler.add(latency_specs(request, cell))
                scheduler.look(force=request.force)
                scheduler.run()
        return Outcome(cells, scheduler.tasks, skipped)


def replanned(request: Request, outcome: Outcome) -> tuple[list[Cell], dict[str, str]] | None:
    """The cells planned anew where a job found a broken video and `--allow-missing` leaves it out; else None.

    All methods then see the set without it: what was trained on the larger one is another result. Notes of failures
    that nobody will try again go. What was asked to stop is not planned anew.
    """
    failed = [cell for cell in outcome.cells if outcome.status(cell) in ("failed", "blocked")]
    stopped = any(task.status == "stopped" for task in outcome.tasks.values())
    if stopped or not request.allow_missing or not any(_smaller(cell) for cell in failed):
        return None
    cells, skipped = resolve(request)
    again = {spec.key for cell in cells for spec in cell.specs}
    for key in {spec.key for cell in failed for spec in cell.specs} - again:
        with suppress(OSError):
            failure_file(request.work_dir, key).unlink(missing_ok=True)
    return cells, skipped


def _smaller(cell: Cell) -> bool:
    """Whether more videos of a cell's data set are left out than when it was planned."""
    try:
        return bool(cell.data.open().fingerprint != cell.evaluation.fingerprint)
    except BenchError:  # more are broken than --allow-missing covers
        return False


def latency_specs(request: Request, cell: Cell) -> list[LatencySpec]:
    """What is timed of a cell: every operating point, first seed only."""
    if cell.seed != min(request.seeds):
        return []
    record = read_record(cell.evaluation.folder(request.work_dir))
    if record is None:
        raise BenchError(f"{cell.evaluation.label()} is finished but has no record; rerun with --force")
    return request.timing.specs(record.result, data=cell.data, machine=fingerprint(), device=request.device)
