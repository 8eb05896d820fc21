"""From finished work to records: what a job of `harness.work.jobs` writes down."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.contract.registry import method_card
from harness.contract.values import digest, from_mapping
from harness.errors import BenchError
from harness.measure.cost_table import CostTable
from harness.measure.evaluation import Evaluator, PointResult
from harness.measure.metrics import evaluate, reported
from harness.measure.points import shown_points
from harness.measure.provenance import now, provenance
from harness.measure.segmentation import SegmentTimes
from harness.measure.trained import trained_recognizer
from harness.plan.protocol import Protocol
from harness.plan.units import EvalSpec
from harness.store import artifacts, sources
from harness.store.records import Record, commit_record

Report = Callable[[Mapping[str, Any]], None]


def record_evaluation(
    spec: EvalSpec,
    work_dir: Path,
    *,
    device: str,
    command: str,
    report: Report,
    segment_times: Mapping[str, Any] | None = None,
) -> Record:
    """Evaluate at all operating points and commit the record of `spec`.

    Args:
        spec: The evaluation.
        work_dir: Where its artifacts lie.
        device: `cpu` or `cuda`.
        command: The command line.
        report: Told of progress.
        segment_times: What `harness.work.timing_session.time_segments` found, where budgets are in milliseconds.
    """
    protocol = _protocol(spec.protocol)
    videos = spec.data.open(spec.fingerprint)
    recognizer = trained_recognizer(
        spec.method, spec.settings, work_dir, artifact=spec.artifact, checkpoint=spec.checkpoint
    )
    rests_on = [_artifact(work_dir, key)["sources"] for key in spec.chain]
    code = sources.loaded("evaluation", rests_on if segment_times is None else [*rests_on, segment_times["sources"]])
    times = None if segment_times is None else SegmentTimes.of(segment_times)
    evaluator = Evaluator(recognizer, videos, protocol, device=device, report=report, times=times)
    split = protocol.test_split
    points = evaluator.points()
    shown = shown_points(points)
    results = [evaluator.run(point, split, overlay=any(point is p for p in shown)) for point in points]
    table, check = evaluator.cost_table(results)
    targets = evaluator.targets(split)
    arrays: dict[str, np.ndarray] = {
        "ids": np.asarray([entry.id for entry in videos.splits[split]]),
        "targets": targets,
    }
    names = reported(videos.card.metric, len(videos.card.classes))
    described = [
        {**_point(result, f"p{i}", table, targets, names, arrays), "predicted": _predicted(evaluator, result)}
        for i, result in enumerate(results)
    ]
    overlay = next((r.overlay for r in reversed(results) if r.overlay), None)
    result = {
        "kind": "evaluation",
        "key": spec.key,
        "created": now(),
        "method": _method(spec, recognizer),
        "dataset": {**_dataset(videos), "part": spec.data.fold or spec.data.test},
        "data": asdict(spec.data),
        "protocol": spec.protocol,
        "seed": spec.seed,
        "artifact": spec.artifact,
        "checkpoint": spec.checkpoint,
        "disclosures": _disclosures(spec, videos),
        "initialisation": spec.initialisation,
        "training": _training(spec, work_dir, protocol),
        "points": described,
        "cost": {"table": table.rows(), "whole_check": check},
        "segment_times": segment_times and {k: v for k, v in segment_times.items() if k != "sources"},
        "provenance": provenance(shlex.split(command)),
        "sources": code,
        "made_with": sources.made_with(device),
    }
    return commit_record(spec.folder(work_dir), result, per_video=arrays, overlay=overlay)


def _point(
    result: PointResult,
    prefix: str,
    table: CostTable,
    targets: np.ndarray,
    metrics: Sequence[str],
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    trace = result.trace
    gflops = table.gflops(trace)
    arrays[f"{prefix}_logits"] = result.logits.astype(np.float32)
    arrays[f"{prefix}_gflops"] = gflops
    frames = trace.frames_used if trace.frames_used is not None else np.zeros(trace.videos)
    arrays[f"{prefix}_frames"] = frames
    exits = None
    if trace.exit_step is not None:
        arrays[f"{prefix}_exits"] = trace.exit_step
        exits = np.bincount(trace.exit_step).tolist()
    for name, values in trace.decisions.items():
        arrays[f"{prefix}_decision_{name}"] = values
    point = result.point
    return {
        "name": point.name,
        "knob": point.knob,
        "value": point.value,
        "budget": point.budget,
        "settings": dict(point.settings),
        "prefix": prefix,
        "metrics": evaluate(result.logits, targets, metrics),
        "gflops": _spread(gflops),
        "gflops_accounted": _spread(table.gflops_accounted(trace)) if trace.accounted else None,
        "components": {name: float(values.mean()) for name, values in table.components(trace).items()},
        "frames": {"mean": float(frames.mean()), "std": float(frames.std())},
        "exits": exits,
        "decisions": {name: _shares(values) for name, values in trace.decisions.items()},
    }


def _predicted(evaluator: Evaluator, result: PointResult) -> dict[str, Any] | None:
    choice = evaluator.choices.get(result.point.name)
    if choice is None:
        return None
    return {
        "seconds": choice.seconds,
        "stops": list(choice.stops),
        "quality": choice.quality,
        "considered": choice.considered,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    quantiles = {f"q{int(100 * q):02d}": float(np.quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}


def _shares(values: np.ndarray) -> dict[str, float]:
    kinds, counts = np.unique(values, return_counts=True)
    return {str(int(k)): float(n) / values.size for k, n in zip(kinds, counts, strict=True)}


def _method(spec: EvalSpec, recognizer: torch.nn.Module) -> dict[str, Any]:
    card = method_card(spec.method)
    return {
        "name": card.name,
        "title": card.title,
        "class": card.cls,
        "version": card.version,
        "size": spec.size,
        "settings": spec.settings,
        "adapts": list(card.adapts),
        "fidelity": card.fidelity,
        "variant_of": card.variant_of,
        "year": card.year,
        "source": card.source,
        "parameters": sum(p.numel() for p in recognizer.parameters()),
    }


def _dataset(videos: Any) -> dict[str, Any]:
    card = videos.card
    return {
        "name": card.name,
        "title": card.title,
        "fingerprint": videos.fingerprint,
        "metric": card.metric,
        "classes": list(card.classes),
        "videos": {split: len(entries) for split, entries in videos.splits.items()},
        "resolution": videos.resolution,
        "decoder": dict(videos.decoder),
        "content": videos.content,
        "missing": list(videos.missing),
        "dropped": list(videos.dropped),
        "duplicates": [list(group) for group in videos.duplicates],
        "untrained": list(videos.untrained),
        "disclosures": list(card.disclosures),
    }


def _disclosures(spec: EvalSpec, videos: Any) -> list[str]:
    """What is not known, or not clean, about the videos behind weights that were not trained for this record."""
    if spec.checkpoint is None:
        return []
    _, artifact = artifacts.located(Path(spec.checkpoint))
    title = method_card(spec.method).title
    if artifact["stage"] == artifacts.OFFICIAL:
        return [
            f"{title}: the weights are the authors' ({', '.join(artifact['inputs'])}), who trained on all of their "
            "training videos. What is held out here for calibration is among them: exit thresholds come from videos "
            "that the networks have seen."
        ]
    if artifact.get("fingerprint") != videos.fingerprint:
        return [
            f"{title}: the weights were trained on another opening of {artifact.get('dataset', 'a data set')} (other "
            "videos, splits or pixels). Whether they have seen videos that are tested or calibrated on here is not "
            "known."
        ]
    return []


def _training(spec: EvalSpec, work_dir: Path, protocol: Protocol) -> dict[str, Any]:
    stages = []
    for key in spec.chain:
        artifact = _artifact(work_dir, key)
        stages.append(
            {
                "name": artifact["stage"],
                "method": artifact["method"],
                "key": key,
                "epochs": artifact["recipe"]["epochs"],
                "seconds": artifact["seconds"],
                "samples": artifact["samples"],
                "recipe": digest(artifact["recipe"]),
                "shared": key not in spec.own_chain,
                "departures": artifact["departures"],
                "device": artifact["device"],
                "changed_midway": artifact.get("changed_midway", []),
            }
        )
    return {
        "seconds": sum(s["seconds"] for s in stages),
        "own_seconds": sum(s["seconds"] for s in stages if not s["shared"]),
        "samples": sum(s["samples"] for s in stages),
        "stages": stages,
        "departures": list(dict.fromkeys(d for s in stages for d in s["departures"])),
        "device": stages[-1]["device"] if stages else "checkpoint, not trained here",
        "threads": protocol.threads,
    }


def _artifact(work_dir: Path, key: str) -> dict[str, Any]:
    artifact = artifacts.read(work_dir, key)
    if artifact is None:
        raise BenchError(f"artifact {key} in {work_dir} is gone; run again to train it")
    return artifact


def _protocol(values: Mapping[str, Any]) -> Protocol:
    return from_mapping(Protocol, {**values, "budgets": tuple(values["budgets"])})
