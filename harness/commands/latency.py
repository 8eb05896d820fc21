"""`bench.py latency`: finished evaluations timed on this machine, one after another under a machine lock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.commands.arguments import integers, resolve_device
from harness.commands.options import Place, Timing
from harness.contract.registry import method_card
from harness.contract.values import from_mapping
from harness.errors import FAILED, OK, BenchError, UsageError, unknown
from harness.measure.latency import DTYPES, MEMORY_FORMATS, summary
from harness.measure.machine import fingerprint
from harness.measure.points import timed_points
from harness.plan.units import DataSpec, LatencySpec
from harness.store.records import read_record, read_records
from harness.work.scheduler import finish


def latency(methods: Sequence[str], place: Place, timing: Timing, *, as_json: bool, command: str) -> int:
    """Time finished evaluations of `methods` in the work directory."""
    methods = [method_card(method).name for method in methods]
    batches = integers("--batch", timing.batch)
    if not batches:
        raise UsageError("--batch takes at least one number")
    if timing.dtype not in DTYPES:
        raise unknown("dtype", timing.dtype, DTYPES)
    if timing.memory_format not in MEMORY_FORMATS:
        raise unknown("memory format", timing.memory_format, MEMORY_FORMATS)
    records = [r for r in read_records([place.work_dir], "evaluation") if r.result["method"]["name"] in methods]
    missing = set(methods) - {r.result["method"]["name"] for r in records}
    if missing:
        raise BenchError(
            f"no finished evaluation of {', '.join(sorted(missing))} in {place.work_dir}; run `bench.py run` first"
        )
    device = resolve_device(place.device)
    specs = [
        LatencySpec(
            evaluation=record.result["key"],
            method=record.result["method"]["name"],
            size=record.result["method"]["size"],
            data=from_mapping(DataSpec, record.result["data"]),
            seed=record.result["seed"],
            point=name,
            batch=number,
            machine=fingerprint(),
            device=device,
            dtype=timing.dtype,
            compile=timing.compile_mode,
            memory_format=timing.memory_format,
            threads=timing.threads,
            options={"min_seconds": timing.min_seconds},
        )
        for record in records
        for name in ([timing.point] if timing.point else timed_points(record.result["points"]))
        for number in batches
    ]
    tasks = finish(specs, place.work_dir, device=device, command=command, force=True)
    rows = []
    for spec in specs:
        task = tasks[spec.key]
        record = read_record(spec.folder(place.work_dir)) if task.finished else None
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
    return OK if all(tasks[s.key].finished for s in specs) else FAILED
