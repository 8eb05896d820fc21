"""What `run` is asked for, and the cells that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.contract.declarations import MethodCard
from harness.contract.registry import method_card
from harness.data.cards import CSV_PREFIX
from harness.data.lists import fold_values
from harness.errors import UsageError, unknown
from harness.plan.overrides import Overrides
from harness.plan.planner import Cell, Planner, check_overrides
from harness.plan.protocol import Protocol, split_roles
from harness.plan.timing import Clock, TimingPlan
from harness.plan.units import DataSpec


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
    timing: TimingPlan = field(default_factory=TimingPlan)
    clock: Clock | None = None
    """Where segments are timed; needed where `protocol.budget_unit` is ms."""
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


def resolve(request: Request) -> tuple[list[Cell], dict[str, str]]:
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
    for name, data in _data_specs(request):
        planner: Planner | None = None
        for method in request.cells[name]:
            reason = _unfit(cards[method], request.size)
            if reason:
                skipped[f"{method} on {data.label()}"] = reason
                continue
            planner = planner or Planner(
                data,
                _opened(data, request.protocol),
                request.protocol,
                size=request.size,
                weights_dir=request.weights_dir,
                overrides=request.overrides,
                clock=request.clock,
            )
            cells += [planner.cell(method, seed) for seed in request.seeds]
            stage_names |= planner.stage_names
    cells = list({cell.evaluation.key: cell for cell in cells}.values())  # two names may say the same
    owners = {key.rpartition(".")[0] for key in request.overrides.stages} - {""}
    for owner in owners - stage_names if cells else ():
        raise unknown("stage", owner, stage_names)
    return cells, skipped


def _opened(data: DataSpec, protocol: Protocol) -> Any:
    """The VideoSet; refused where the protocol's splits would train, calibrate or select on tested videos."""
    videos = data.open()
    videos.refuse_overlap(**split_roles(protocol))
    return videos


def _data_specs(request: Request) -> list[tuple[str, DataSpec]]:
    """Each data set's name as it was asked for, and how it is opened: once, or once for each fold."""
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
            pipeline=request.protocol.pipeline,
        )
        if request.folds is None:
            specs.append((name, base))
            continue
        if not name.startswith(CSV_PREFIX):
            raise UsageError(f"--folds goes with csv:PATH data sets, not with {name}")
        values = fold_values(Path(name.removeprefix(CSV_PREFIX)), request.folds)
        specs += [(name, replace(base, fold=f"{request.folds}={value}")) for value in values]
    return specs


def _unfit(card: MethodCard, size: str) -> str | None:
    if size not in card.sizes:
        return f"{card.name} has no {size} size"
    return None
