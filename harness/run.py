"""`bench.py run`: data, plan, work, summary. Everything a script could call instead of the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from harness.contract import MethodCard
from harness.data.cards import CSV_PREFIX
from harness.data.lists import fold_values
from harness.display import Display
from harness.errors import BenchError, UsageError, unknown
from harness.plan import Cell, Overrides, Planner, check_overrides
from harness.protocol import Protocol
from harness.records import read_record
from harness.registry import method_card
from harness.scheduler import Scheduler, Task, locked, record_folder
from harness.work import DataSpec, LatencySpec


@dataclass(frozen=True)
class Timing:
    """Which latencies are measured after the evaluations."""

    batches: tuple[int, ...] = (1, 16)
    """Empty: none."""
    dtype: str = "float32"
    compile: str | None = None
    memory_format: str = "channels_last"
    threads: int = 1
    min_seconds: float = 1.0


@dataclass(frozen=True)
class Request:
    """All that `run` was asked for."""

    cells: Mapping[str, Sequence[str]]
    """Data set -> methods."""
    size: str
    seeds: Sequence[int]
    work_dir: Path
    data_root: Path
    protocol: Protocol = field(default_factory=Protocol)
    overrides: Overrides = field(default_factory=Overrides)
    timing: Timing = field(default_factory=Timing)
    weights_dir: Path | None = None
    device: str = "cpu"
    jobs: int = 1
    train: str | None = None
    test: str | None = None
    folds: str | None = None
    allow_missing: int = 0
    allow_absolute: bool = False
    timeout: float | None = None
    force: bool = False
    keep_stale: bool = False
    command: str = "bench.py run"


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


def plan(request: Request) -> tuple[list[Cell], dict[str, str]]:
    """Open and check all data sets, then resolve every cell.

    Returns the cells and, for combinations that cannot be, the reason each is skipped. Raises DataError
    that names every bad file before anything is trained.
    """
    methods = [m for names in request.cells.values() for m in names]
    cards = {m: method_card(m) for m in methods}
    check_overrides(request.overrides, methods)
    cells: list[Cell] = []
    skipped: dict[str, str] = {}
    stage_names: set[str] = set()
    for data in _data_specs(request):
        planner: Planner | None = None
        for method in request.cells[data.name]:
            reason = _unfit(cards[method], request.size)
            if reason:
                skipped[f"{method} on {data.label()}"] = reason
                continue
            planner = planner or Planner(
                data,
                data.open(),
                request.protocol,
                size=request.size,
                weights_dir=request.weights_dir,
                overrides=request.overrides,
            )
            cells += [planner.cell(method, seed) for seed in request.seeds]
            stage_names |= planner.stage_names
    owners = {key.rpartition(".")[0] for key in request.overrides.stages} - {""}
    for owner in owners - stage_names if cells else ():
        raise unknown("stage", owner, stage_names)
    return cells, skipped


def execute(request: Request, cells: Sequence[Cell], skipped: Mapping[str, str], out: TextIO | None = None) -> Outcome:
    """Do the planned work that is not done yet, then time it; the work directory is locked meanwhile.

    Progress goes to `out`, standard output when None.
    """
    with locked(request.work_dir):
        scheduler = Scheduler(
            request.work_dir,
            device=request.device,
            jobs=request.jobs,
            command=request.command,
            timeout=request.timeout,
            keep_stale=request.keep_stale,
        )
        with Display(cells, scheduler.tasks, out or sys.stdout) as display:
            scheduler.notify = display.update
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


def latency_specs(request: Request, cell: Cell) -> list[LatencySpec]:
    """What is timed of a cell: its default point and the exit point nearest half its cost, first seed only."""
    from harness.cost.machine import fingerprint

    if cell.seed != min(request.seeds):
        return []
    record = read_record(record_folder(request.work_dir, cell.evaluation))
    if record is None:
        raise BenchError(f"{cell.evaluation.label()} is finished but has no record; rerun with --force")
    timing = request.timing
    return [
        LatencySpec(
            evaluation=cell.evaluation.key,
            method=cell.method,
            size=request.size,
            data=cell.data,
            seed=cell.seed,
            point=point,
            batch=batch,
            machine=fingerprint(),
            device=request.device,
            dtype=timing.dtype,
            compile=timing.compile,
            memory_format=timing.memory_format,
            threads=timing.threads,
            options={"min_seconds": timing.min_seconds},
        )
        for point in timed_points(record.result["points"])
        for batch in timing.batches
    ]


def timed_points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the default point and of the calibrated one whose executed cost is nearest half of it."""
    full = points[0]["gflops"]["mean"]
    budgets = [p for p in points if p["budget"] is not None]
    half = min(budgets, key=lambda p: abs(p["gflops"]["mean"] - full / 2), default=None)
    return [points[0]["name"], *([half["name"]] if half is not None else [])]


def _data_specs(request: Request) -> list[DataSpec]:
    specs = []
    for name in request.cells:
        base = DataSpec(
            name,
            str(request.data_root),
            request.size,
            train=request.train,
            test=request.test,
            allow_missing=request.allow_missing,
            allow_absolute=request.allow_absolute,
            limit=request.protocol.limit,
        )
        if request.folds is None:
            specs.append(base)
            continue
        if not name.startswith(CSV_PREFIX):
            raise UsageError(f"--folds goes with csv:PATH data sets, not with {name}")
        values = fold_values(Path(name.removeprefix(CSV_PREFIX)), request.folds)
        specs += [replace(base, fold=f"{request.folds}={value}") for value in values]
    return specs


def _unfit(card: MethodCard, size: str) -> str | None:
    if size not in card.sizes:
        return f"{card.name} has no {size} size"
    return None
