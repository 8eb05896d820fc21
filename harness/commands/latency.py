"""`bench.py latency`: finished evaluations timed on this machine, one after another under a machine lock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.commands.arguments import class_defaults, comma_separated, integers, resolve_device
from harness.commands.options import Place, TimingOptions
from harness.contract.declarations import EMPTY
from harness.contract.names import split_name, stands_for
from harness.contract.registry import method_card
from harness.contract.values import from_mapping
from harness.engine.memory_format import MEMORY_FORMATS
from harness.engine.precision import DTYPES
from harness.errors import FAILED, OK, BenchError, UsageError, unknown
from harness.measure.launches import engine_label, laziness, summary
from harness.measure.machine import fingerprint
from harness.plan.timing import TimingPlan
from harness.plan.units import MODES, DataSpec
from harness.store.records import read_record, read_records
from harness.work.scheduler import finish


def latency(methods: Sequence[str], place: Place, timing: TimingOptions, *, as_json: bool, command: str) -> int:
    """Time finished evaluations of `methods` in the work directory."""
    methods = [method_card(method).name for method in methods]
    plan = _plan(timing)
    defaults = class_defaults(methods)
    found = read_records([place.work_dir], "evaluation")
    meant = {
        name: [r for r in found if stands_for(name, r.result["method"], defaults.get(split_name(name)[0], EMPTY))]
        for name in methods
    }
    if missing := [name for name in meant if not meant[name]]:
        raise BenchError(
            f"no finished evaluation of {', '.join(sorted(missing))} in {place.work_dir}; run `bench.py run` first"
        )
    records = list({r.result["key"]: r for named in meant.values() for r in named}.values())
    device = resolve_device(place.device)
    specs = [
        spec
        for record in records
        for spec in plan.specs(
            record.result,
            data=from_mapping(DataSpec, record.result["data"]),
            machine=fingerprint(),
            device=device,
            points=[timing.point] if timing.point else (),
        )
    ]
    tasks = finish(specs, place.work_dir, device=device, command=command, force=True)
    rows = []
    for spec in specs:
        task = tasks[spec.key]
        record = read_record(spec.folder(place.work_dir)) if task.finished else None
        row: dict[str, Any] = {"what": spec.label(), "status": task.status, "reason": task.reason}
        if record is not None:
            result = record.result
            told = {name: result[name] for name in ("disturbed", "engine", "compiled_share", "precision")}
            files = laziness([result]) if result["mode"] == "file" else {}
            row |= {"status": result["status"], **summary(result), **files, **told}
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
    for row in () if as_json else rows:
        print(f"{row['what']}: {_told(row)}")
    return OK if all(tasks[s.key].finished for s in specs) else FAILED


def _plan(timing: TimingOptions) -> TimingPlan:
    batches = integers("--batch", timing.batch)
    if not batches:
        raise UsageError("--batch takes at least one number")
    modes = tuple(dict.fromkeys([*comma_separated(timing.mode), *(["file"] if timing.end_to_end else [])]))
    if not modes:
        raise UsageError(f"--mode takes at least one of {', '.join(MODES)}")
    if timing.dtype not in DTYPES:
        raise unknown("dtype", timing.dtype, DTYPES)
    if timing.memory_format not in MEMORY_FORMATS:
        raise unknown("memory format", timing.memory_format, MEMORY_FORMATS)
    return TimingPlan(
        batches,
        timing.dtype,
        timing.engine,
        timing.memory_format,
        timing.threads,
        timing.min_seconds,
        timing.launches,
        timing.quiet_wait,
        modes,
        timing.max_wait,
    )


def _told(row: Mapping[str, Any]) -> str:
    """One timing as a line of text."""
    numbers = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float) and k != "compiled_share")
    if row["reason"] or not numbers:
        return str(row["reason"] or row["status"])
    notes = [engine_label(row["engine"], row["compiled_share"]), *row["disturbed"]]
    if row["precision"]:
        same = ", ".join(f"{k} {v:.1%}" for k, v in row["precision"]["agreement"].items() if v is not None)
        notes.append(f"agrees with float32: {same}")
    notes = [note for note in notes if note]
    return numbers + (f"  ({'; '.join(notes)})" if notes else "")
