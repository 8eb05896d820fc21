"""`bench.py eval`: a saved checkpoint at all its operating points, without training."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from harness.commands.arguments import clock, resolve_device
from harness.commands.options import Parts, Place, Videos, writable
from harness.data.lists import unlike
from harness.errors import OK, BenchError, UsageError
from harness.plan.building import build_recognizer
from harness.plan.overrides import parse_sets
from harness.plan.planner import check_overrides
from harness.plan.protocol import split_roles
from harness.plan.timing import budgeted
from harness.plan.units import DataSpec, EvalSpec
from harness.store import artifacts
from harness.store.records import Record, read_record
from harness.work.scheduler import finish


def evaluate(
    checkpoint: Path,
    dataset: str,
    place: Place,
    found: Videos,
    parts: Parts,
    *,
    sets: list[str] | None,
    dump: Path | None,
    as_json: bool,
    command: str,
) -> int:
    """Evaluate the artifact in or around `checkpoint` on a data set."""
    weights, artifact = artifacts.located(checkpoint)
    overrides, protocol = parse_sets([f"protocol.pipeline={artifacts.pipeline_of(artifact)}", *(sets or ())])
    if overrides.stages or any("." in key for key in overrides.settings):
        raise UsageError("eval trains nothing: --set takes SETTING=VALUE and protocol.FIELD=VALUE here")
    check_overrides(overrides, [artifact["method"]])
    protocol = protocol if parts.limit is None else replace(protocol, limit=parts.limit)
    size = artifacts.size_of(artifact)
    whole = {**asdict(found), **asdict(parts), "data_root": str(found.data_root), "limit": protocol.limit}
    data = DataSpec(dataset, size=size, pipeline=protocol.pipeline, **whole)
    videos = data.open()
    artifacts.require_resolution(checkpoint, artifact, videos.card.title, videos.resolution)
    made = {k: v for k, v in artifact.get("training", {}).items() if k in ("train_split", "selection")}
    videos.refuse_overlap(**split_roles(replace(protocol, **made)))
    different = unlike(artifact["settings"]["num_classes"], artifact.get("classes") or (), videos.card.classes)
    if different:
        raise UsageError(f"{checkpoint} does not fit {dataset}: {different}")
    writable("--work-dir", place.work_dir)
    settings, device = {**artifact["settings"], **overrides.settings}, resolve_device(place.device)
    exits = build_recognizer(artifact["method"], settings).exits
    spec = EvalSpec(
        method=artifact["method"],
        size=size,
        settings=settings,
        artifact=f"file:{artifact['weights']['sha256'][:16]}",
        chain=(),
        own_chain=(),
        data=data,
        fingerprint=videos.fingerprint,
        seed=artifact.get("seed", 0),
        initialisation=artifact.get("initialisation", "checkpoint"),
        checkpoint=str(weights.resolve()),
        **budgeted(protocol, exits, clock(protocol, device)),
    )
    task = finish([spec], place.work_dir, device=device, command=command)[spec.key]
    for note in task.notes:
        print(note, file=sys.stderr)
    if not task.finished:
        raise BenchError(task.reason)
    record = read_record(spec.folder(place.work_dir))
    assert record is not None
    if dump is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
        dump.write_bytes((record.path / record.result["per_video"]["file"]).read_bytes())
        print(f"wrote {dump}", file=sys.stderr)
    _print_points(record, as_json)
    return OK


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
