"""What the commands of bench.py do: parse values, call, print. Each returns an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from harness import artifacts
from harness.data.cards import SIZES
from harness.errors import BenchError, UsageError, unknown
from harness.plan import Cell, Overrides
from harness.protocol import Protocol
from harness.records import Record, read_record, read_records
from harness.registry import method_card, method_cards
from harness.run import Outcome, Request, Timing, execute, plan, timed_points
from harness.scheduler import Scheduler, locked, record_folder
from harness.settings import from_mapping, literal, plain, split_outside_brackets
from harness.suites import SUITES, cells, suite
from harness.work import DataSpec, EvalSpec, LatencySpec

FAILED, OK = 1, 0


@dataclass(frozen=True)
class Ran:
    """How `run` ended, for the command line."""

    exit_code: int
    reportable: bool


def request(
    name: str | None,
    methods: str | None,
    datasets: str | None,
    everything: bool,
    size: str | None,
    seeds: int | None,
    *,
    jobs: int | None,
    device: str,
    epochs: int | None,
    sets: Sequence[str],
    limit: int | None,
    batches: str,
    **others: Any,
) -> Request:
    """The request behind the options of `run`; raises UsageError for what does not fit together."""
    if name is None and (methods is None or datasets is None) and not (everything and datasets):
        raise UsageError(f"say what to run: a suite ({', '.join(SUITES)}), or --methods and --datasets")
    chosen = suite(name) if name is not None else None
    picked = method_names(methods) or (tuple(method_cards()) if everything else ())
    if chosen is not None:
        wanted = cells(chosen, everything=everything)
        if datasets:
            wanted = {d: wanted.get(d) or next(iter(wanted.values())) for d in comma_separated(datasets)}
        wanted = {d: picked or names for d, names in wanted.items()}
    else:
        wanted = dict.fromkeys(comma_separated(datasets), picked)
    overrides, protocol = parse_sets(sets, epochs)
    found = resolve_device(device)
    number = seeds if seeds is not None else chosen.seeds if chosen else 1
    if size is not None and size not in SIZES:
        raise unknown("size", size, SIZES)
    return Request(
        cells=wanted,
        size=size or (chosen.size if chosen else "tiny"),
        seeds=tuple(range(number)),
        protocol=protocol if limit is None else replace(protocol, limit=limit),
        overrides=overrides,
        timing=Timing(batches=_integers("--batches", batches), threads=protocol.threads),
        device=found,
        jobs=jobs or (1 if found == "cuda" else max(1, _cores() // protocol.threads)),
        **others,
    )


def parse_sets(sets: Sequence[str], epochs: int | None = None) -> tuple[Overrides, Protocol]:
    """`KEY=VALUE` options as overrides and protocol; values are Python literals, else strings."""
    settings: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    for text in sets:
        parts = split_outside_brackets(text, "=", most=1)  # a method's name may hold settings, in brackets
        if len(parts) != 2:
            raise UsageError(f"--set takes KEY=VALUE, not {text!r}")
        key, value = parts
        head, _, rest = key.partition(".")
        if head == "protocol":
            protocol[rest] = literal(value)
        elif head == "stage":
            stages[rest] = literal(value)
        else:
            settings[key] = literal(value)
    if "budgets" in protocol:
        budgets = protocol["budgets"]
        protocol["budgets"] = tuple(budgets) if isinstance(budgets, list | tuple) else (budgets,)
    return Overrides(settings, stages, epochs), from_mapping(Protocol, protocol, kind="protocol")


def resolve_device(device: str) -> str:
    """`auto`, `cpu` or `cuda` to what is there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu, cuda or auto, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu, or see `bench.py doctor`")
    return device


def run(asked: Request, *, dry_run: bool, as_json: bool) -> Ran:
    """Plan, do, summarise."""
    planned, skipped = plan(asked)
    out = sys.stderr if as_json else sys.stdout
    for label, reason in skipped.items():
        print(f"skipped  {label}: {reason}", file=out)
    if dry_run:
        _show_plan(asked, planned, as_json)
        return Ran(OK if planned else FAILED, False)
    if not planned:
        print("nothing to run", file=out)
        return Ran(FAILED, False)
    outcome = execute(asked, planned, skipped, out)
    if as_json:
        print(json.dumps(plain(_summary(asked, outcome)), indent=1))
    else:
        _print_results(asked, outcome)
    finished = any(outcome.tasks[c.evaluation.key].finished for c in planned)
    return Ran(OK if outcome.ok else FAILED, finished)


def evaluate(
    checkpoint: Path,
    dataset: str,
    *,
    dump: Path | None,
    device: str,
    work_dir: Path,
    data_root: Path,
    train: str | None,
    test: str | None,
    sets: Sequence[str],
    limit: int | None,
    allow_missing: int,
    allow_absolute: bool,
    as_json: bool,
    command: str,
) -> int:
    """Evaluate the artifact in or around `checkpoint` on a data set."""
    weights, artifact = artifacts.located(checkpoint)
    overrides, protocol = parse_sets(sets)
    if overrides.stages or any("." in key for key in overrides.settings):
        raise UsageError("eval trains nothing: --set takes SETTING=VALUE and protocol.FIELD=VALUE here")
    protocol = protocol if limit is None else replace(protocol, limit=limit)
    size = artifacts.size_of(artifact)
    data = DataSpec(
        dataset,
        str(data_root),
        size,
        train=train,
        test=test,
        allow_missing=allow_missing,
        allow_absolute=allow_absolute,
        limit=protocol.limit,
    )
    videos = data.open()
    classes = artifact["settings"]["num_classes"]
    if len(videos.card.classes) != classes:
        raise UsageError(f"{checkpoint} knows {classes} classes, {dataset} has {len(videos.card.classes)}")
    spec = EvalSpec(
        method=artifact["method"],
        size=size,
        settings={**artifact["settings"], **overrides.settings},
        artifact=f"file:{artifact['weights']['sha256'][:16]}",
        chain=(),
        own_chain=(),
        data=data,
        fingerprint=videos.fingerprint,
        seed=artifact.get("seed", 0),
        protocol=plain(protocol),
        initialisation=artifact.get("initialisation", "checkpoint"),
        checkpoint=str(weights.resolve()),
    )
    with locked(work_dir):
        scheduler = Scheduler(work_dir, device=resolve_device(device), jobs=1, command=command)
        scheduler.add([spec])
        scheduler.look()
        scheduler.run()
    task = scheduler.tasks[spec.key]
    if not task.finished:
        raise BenchError(task.reason)
    record = read_record(record_folder(work_dir, spec))
    assert record is not None
    if dump is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
        dump.write_bytes((record.path / record.result["per_video"]["file"]).read_bytes())
        print(f"wrote {dump}", file=sys.stderr)
    _print_points(record, as_json)
    return OK


def latency(
    methods: Sequence[str],
    *,
    batch: str,
    dtype: str,
    compile_mode: str | None,
    memory_format: str,
    threads: int,
    point: str | None,
    min_seconds: float,
    device: str,
    work_dir: Path,
    as_json: bool,
    command: str,
) -> int:
    """Time finished evaluations of `methods` in `work_dir`."""
    from harness.cost.latency import summary
    from harness.cost.machine import fingerprint

    methods = [method_card(method).name for method in methods]
    batches = _integers("--batch", batch)
    if not batches:
        raise UsageError("--batch takes at least one number")
    if dtype not in (known := get_args(get_type_hints(Protocol)["dtype"])):
        raise unknown("dtype", dtype, known)
    if memory_format not in ("channels_last", "contiguous"):
        raise unknown("memory format", memory_format, ("channels_last", "contiguous"))
    records = [r for r in read_records([work_dir], "evaluation") if r.result["method"]["name"] in methods]
    missing = set(methods) - {r.result["method"]["name"] for r in records}
    if missing:
        raise BenchError(
            f"no finished evaluation of {', '.join(sorted(missing))} in {work_dir}; run `bench.py run` first"
        )
    target = resolve_device(device)
    specs = [
        LatencySpec(
            evaluation=record.result["key"],
            method=record.result["method"]["name"],
            size=record.result["method"]["size"],
            data=_data_of(record),
            seed=record.result["seed"],
            point=name,
            batch=number,
            machine=fingerprint(),
            device=target,
            dtype=dtype,
            compile=compile_mode,
            memory_format=memory_format,
            threads=threads,
            options={"min_seconds": min_seconds},
        )
        for record in records
        for name in ([point] if point else timed_points(record.result["points"]))
        for number in batches
    ]
    with locked(work_dir):
        scheduler = Scheduler(work_dir, device=target, jobs=1, command=command)
        scheduler.add(specs)
        scheduler.look(force=True)
        scheduler.run()
    rows = []
    for spec in specs:
        task = scheduler.tasks[spec.key]
        record = read_record(record_folder(work_dir, spec)) if task.finished else None
        row: dict[str, Any] = {"what": spec.label(), "status": task.status, "reason": task.reason}
        if record is not None:
            row |= {"status": record.result["status"], **summary(record.result)}
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
    for row in () if as_json else rows:
        told = (
            row["reason"] or "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)) or row["status"]
        )
        print(f"{row['what']}: {told}")
    return OK if all(scheduler.tasks[s.key].finished for s in specs) else FAILED


def _data_of(record: Record) -> DataSpec:
    return from_mapping(DataSpec, record.result["data"])


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def comma_separated(text: str | None) -> tuple[str, ...]:
    """The non-empty parts of a comma-separated option."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def method_names(text: str | None) -> tuple[str, ...]:
    """The methods of a comma-separated option, each as its card writes it; UsageError for an unknown one.

    Commas in brackets belong to a name: `adafocus-v2[random_pass=false,dropout=0],tsn`.
    """
    return tuple(dict.fromkeys(method_card(name).name for name in split_outside_brackets(text or "")))


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in comma_separated(text))
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, not {text!r}") from None
    if any(v < 1 for v in values):
        raise UsageError(f"{option}: numbers must be at least 1, not {text!r}")
    return values


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
        changed = f" (changed since: {', '.join(task.stale[:4])})" if task.stale else ""
        print(f"{status:8} {task.spec.label()} [{task.key}]{changed}")


def _summary(asked: Request, outcome: Outcome) -> dict[str, Any]:
    rows = []
    for cell in outcome.cells:
        task = outcome.tasks[cell.evaluation.key]
        record = read_record(record_folder(asked.work_dir, cell.evaluation)) if task.finished else None
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


def _print_points(record: Record, as_json: bool) -> None:
    points = record.result["points"]
    if as_json:
        print(json.dumps(points, indent=1))
        return
    for point in points:
        metrics = "  ".join(
            f"{n} {m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]" for n, m in point["metrics"].items()
        )
        print(f"{point['name']:12} {metrics}  {point['gflops']['mean']:.4g} GFLOPs")
