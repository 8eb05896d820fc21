"""`bench.py run`: plan, train, evaluate, time; what is done already is found and not repeated."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from harness.commands.arguments import clock, comma_separated, integers, method_names, resolve_device
from harness.commands.display import Display
from harness.commands.options import Parts, Place, Run, Videos, writable
from harness.contract.registry import method_cards
from harness.contract.values import plain
from harness.errors import FAILED, OK, UsageError
from harness.plan.overrides import parse_sets
from harness.plan.planner import Cell
from harness.plan.request import Request, resolve
from harness.plan.suites import SUITES, cells, settings, suite
from harness.plan.timing import TimingPlan
from harness.store.records import read_record
from harness.work.execution import Outcome, execute, replanned
from harness.work.scheduler import Scheduler


@dataclass(frozen=True)
class Ran:
    """How `run` ended, for the command line."""

    exit_code: int
    reportable: bool


def run(asked: Run, place: Place, videos: Videos, parts: Parts, *, as_json: bool, command: str) -> Ran:
    """Plan, do, summarise."""
    wanted = request(asked, place, videos, parts, command)
    writable("--work-dir", wanted.work_dir)
    planned, skipped = resolve(wanted)
    out = sys.stderr if as_json else sys.stdout
    for label, reason in skipped.items():
        print(f"skipped  {label}: {reason}", file=out)
    if asked.dry_run:
        _show_plan(wanted, planned, as_json)
        return Ran(OK if planned else FAILED, False)
    if not planned:
        print("nothing to run", file=out)
        return Ran(FAILED, False)
    outcome = execute(wanted, planned, skipped, partial(Display, planned, out=out))
    for _ in range(wanted.allow_missing):  # a broken video that only decoding shows is found by a job
        anew = replanned(wanted, outcome)
        if anew is None:
            break
        print("planned anew without the videos that could not be decoded", file=out)
        planned, skipped = anew
        outcome = execute(replace(wanted, force=False), planned, skipped, partial(Display, planned, out=out))
    if as_json:
        print(json.dumps(plain(_summary(wanted, outcome)), indent=1))
    else:
        _print_results(wanted, outcome)
    finished = any(outcome.tasks[c.evaluation.key].finished for c in planned)
    return Ran(OK if outcome.ok else FAILED, finished)


def request(asked: Run, place: Place, videos: Videos, parts: Parts, command: str) -> Request:
    """The request behind the options; raises UsageError for what does not fit together."""
    name = asked.suite
    if name is None and (asked.methods is None or asked.datasets is None) and not (asked.everything and asked.datasets):
        raise UsageError(f"say what to run: a suite ({', '.join(SUITES)}), or --methods and --datasets")
    chosen = suite(name) if name is not None else None
    if asked.datasets is not None and not comma_separated(asked.datasets):
        raise UsageError(f"--datasets {asked.datasets!r} names no data set")
    picked = method_names(asked.methods) or (tuple(method_cards()) if asked.everything else ())
    if chosen is not None:
        wanted = cells(chosen, everything=asked.everything)
        if asked.datasets:
            wanted = {d: wanted.get(d) or next(iter(wanted.values())) for d in comma_separated(asked.datasets)}
        wanted = {d: picked or names for d, names in wanted.items()}
    else:
        wanted = dict.fromkeys(comma_separated(asked.datasets), picked)
    sets = settings(chosen, asked.sets or ()) if chosen is not None else asked.sets
    overrides, protocol = parse_sets(sets, asked.epochs)
    device = resolve_device(place.device)
    number = asked.seeds if asked.seeds is not None else chosen.seeds if chosen else 1
    return Request(
        cells=wanted,
        size=asked.size or (chosen.size if chosen else "tiny"),
        seeds=tuple(range(number)),
        work_dir=place.work_dir,
        weights_dir=asked.weights_dir,
        protocol=protocol if parts.limit is None else replace(protocol, limit=parts.limit),
        overrides=overrides,
        timing=TimingPlan(
            batches=integers("--batches", asked.batches), threads=protocol.threads, quiet_wait_s=asked.quiet_wait
        ),
        clock=clock(protocol, device, asked.quiet_wait),
        device=device,
        jobs=asked.jobs or (1 if device == "cuda" else max(1, _cores() // protocol.threads)),
        folds=asked.folds,
        allow_missing=parts.allow_missing,
        timeout=asked.timeout,
        force=asked.force,
        keep_stale=asked.keep_stale,
        command=command,
        **asdict(videos),
    )


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show_plan(asked: Request, planned: Sequence[Cell], as_json: bool) -> None:
    scheduler = Scheduler(
        asked.work_dir, device=asked.device, jobs=asked.jobs, command=asked.command, keep_stale=asked.keep_stale
    )
    for cell in planned:
        scheduler.add(cell.specs)
    scheduler.look(force=asked.force)
    if as_json:
        rows = [
            {"key": t.key, "what": t.spec.label(), "status": t.status, "changed": t.stale}
            for t in scheduler.tasks.values()
        ]
        print(json.dumps(plain({"tasks": rows}), indent=1))
        return
    for task in scheduler.tasks.values():
        status = {"waiting": "to do"}.get(task.status, task.status)
        why = f" ({task.why})" if task.why else ""
        print(f"{status:8} {task.spec.label()} [{task.key}]{why}")


def _summary(asked: Request, outcome: Outcome) -> dict[str, Any]:
    rows = []
    for cell in outcome.cells:
        task = outcome.tasks[cell.evaluation.key]
        record = read_record(cell.evaluation.folder(asked.work_dir)) if task.finished else None
        points = record.result["points"] if record is not None else []
        rows.append(
            {
                "method": cell.method,
                "dataset": cell.data.label(),
                "seed": cell.seed,
                "status": outcome.status(cell),
                "reason": task.reason,
                "record": cell.evaluation.key,
                "points": [{k: p[k] for k in ("name", "metrics", "gflops")} for p in points],
            }
        )
    return {"cells": rows, "skipped": dict(outcome.skipped), "ok": outcome.ok}


def _print_results(asked: Request, outcome: Outcome) -> None:
    summary = _summary(asked, outcome)
    for row in summary["cells"]:
        head = f"{row['method']:14} {row['dataset']:16} seed {row['seed']}  {row['status']:7}"
        if not row["points"]:
            print(f"{head} {row['reason']}")
            continue
        first = row["points"][0]
        name, value = next(iter(first["metrics"].items()))
        interval = f"[{value['low']:.1f}, {value['high']:.1f}]"
        print(f"{head} {name} {value['value']:.1f} {interval}  {first['gflops']['mean']:.4g} GFLOPs")
