"""Everything that was recorded as flat tables: one row per record and operating point, one row per timing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.measure.launches import laziness, summary
from harness.store.files import write_atomically
from harness.store.records import Record
from reports.timings import engine_of

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def points(evaluations: Sequence[Record]) -> pd.DataFrame:
    """One row per evaluation record and operating point; metrics in their unit, GFLOPs in 1e9 MACs, seconds."""
    return pd.DataFrame([_point(record.result, point) for record in evaluations for point in record.result["points"]])


def latencies(records: Sequence[Record]) -> pd.DataFrame:
    """One row per latency record; percentiles derived from its raw samples."""
    return pd.DataFrame([_latency(record.result) for record in records], columns=None if records else ["key"])


def write(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write STEM.csv and STEM.parquet; text that a spreadsheet would take for a formula opens with ' in the CSV."""
    paths = [stem.with_suffix(".csv"), stem.with_suffix(".parquet")]
    write_atomically(paths[0], frame.map(_harmless).to_csv(index=False).encode())
    write_atomically(paths[1], frame.to_parquet(index=False))
    return paths


def _point(result: Any, point: Any) -> dict[str, Any]:
    method, dataset, training = result["method"], result["dataset"], result["training"]
    row = {
        "key": result["key"],
        "created": result["created"],
        "dataset": dataset["name"],
        "part": dataset.get("part"),
        "fingerprint": dataset["fingerprint"],
        "resolution": dataset["resolution"],
        "test_split": result["protocol"]["test_split"],
        "test_videos": dataset["videos"][result["protocol"]["test_split"]],
        "method": method["name"],
        "title": method["title"],
        "size": method["size"],
        "version": method["version"],
        "fidelity": method["fidelity"],
        "adapts": ",".join(method["adapts"]),
        "parameters": method["parameters"],
        "settings": _json(method["settings"]),
        "initialisation": result["initialisation"],
        "seed": result["seed"],
        "point": point["name"],
        "knob": point["knob"],
        "value": point["value"],
        "budget": point["budget"],
        "budget_unit": result["protocol"].get("budget_unit", "gflops"),
        "budget_batch": result["protocol"].get("budget_batch", 1),
        "predicted_ms": 1e3 * point["predicted"]["seconds"] if point.get("predicted") else None,
        "point_settings": _json(point["settings"]),
        "main_metric": dataset["metric"],
    }
    for name, entry in point["metrics"].items():
        row |= {name: entry["value"], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
    row |= {f"gflops_{name}": value for name, value in point["gflops"].items()}
    accounted = point.get("gflops_accounted") or {}
    return row | {
        "gflops_accounted_mean": accounted.get("mean"),
        "components": _json(point["components"]),
        "frames_mean": point["frames"]["mean"],
        "exits": _json(point["exits"]),
        "training_seconds": training["seconds"],
        "training_own_seconds": training["own_seconds"],
        "training_samples": training["samples"],
        "training_device": training["device"],
        "departures": "; ".join(training["departures"]),
        "protocol": _json(result["protocol"]),
        "revision": (result["provenance"].get("git") or {}).get("revision"),
        "dirty": (result["provenance"].get("git") or {}).get("dirty"),
    }


def _latency(result: Any) -> dict[str, Any]:
    device = result["device"]
    return {
        "key": result["key"],
        "created": result["created"],
        "evaluation": result["evaluation"],
        "dataset": result["dataset"]["name"],
        "fingerprint": result["dataset"]["fingerprint"],
        "method": result["method"]["name"],
        "size": result["method"]["size"],
        "seed": result["seed"],
        "point": result["point"],
        "batch": result["batch"],
        "mode": result.get("mode", "batch"),
        "dtype": result["dtype"],
        "compile": result["compile"],
        "engine": engine_of(result),
        "memory_format": result["memory_format"],
        "threads": result["threads"],
        "device": device["name"],
        "device_kind": device["kind"],
        "machine": device["fingerprint"],
        "driver": device["driver"],
        "status": result["status"],
        "samples": len(result["wall_s"]),
        "launches": len(result.get("launches") or [0]),
        **summary(result),
        "disturbed": "; ".join(result.get("disturbed", ["not known"])),
        "others_load": max((n["others"] for n in result.get("launches", ()) if n["others"] is not None), default=None),
        "compiled_share": result.get("compiled_share"),
        **_precision(result.get("precision")),
        "device_median_ms": 1e3 * float(pd.Series(result["device_s"]).median()) if result["device_s"] else None,
        "gflops_per_video": sum(result["gflops"]) / sum(result["videos"]) if result["gflops"] else None,
        **{f"{name}_ms_per_video": 1e3 * seconds for name, seconds in (result.get("phases_s") or {}).items()},
        "frames_decoded": result.get("frames_decoded"),
        **(laziness([result]) if result.get("eager_clips") else {}),
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _precision(found: Any) -> dict[str, float | None]:
    """Agreement with float32, as shares, and the metrics in that precision; float32 itself has none."""
    agreement, metrics = (found["agreement"], found["metrics"]) if found else ({}, {})
    same = {f"agreement_{name}": agreement.get(name) for name in ("top1", "exits", "decisions", "boxes")}
    return same | {f"{name}_in_dtype": entry["value"] for name, entry in metrics.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
