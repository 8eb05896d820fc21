"""What `bench.py gflops` shows: the parts of one method's cost, and measured beside published figures.

    measure_paper()             every published fixed-cost variant this version can build
    measure_paper(exit_table()) and every exit of those whose authors say what it costs
    method_table("adafocus-v2", size="tiny")

Networks have random weights and see one synthetic clip: enough for variants that always run the same work. A
method that decides by content is measured as it decides on noise; its evaluation record has the real cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

import harness.data.clips  # noqa: F401  (registers the preprocessor that recognizers build)
from harness.build import build_recognizer, full_settings
from harness.contract import EMPTY
from harness.cost.published import PaperRow, paper_table
from harness.cost.table import GIGA, CostTable, metered, whole_check
from harness.recognizer import EfficientRecognizer
from harness.registry import method_cards
from harness.trace import Trace

TOLERANCE = 0.005
"""Largest relative difference from a published figure."""
RESOLUTIONS = {"tiny": 64, "paper": 224}
"""Side of the square input of each size, in pixels."""


def measure_paper(
    rows: Iterable[PaperRow] | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[PaperRow], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure each published variant; one result per row, in order.

    Keys: method, title, dataset, variant, point, source, published and from_constants (GFLOPs), status (`measured`, or
    `not in this version`), executed and training_only (GFLOPs, apart), counted (what the published figure covers
    of the two), difference (relative, counted against published), ok (within 0.5 %, null where not measured).
    """
    results = []
    built: tuple[Any, EfficientRecognizer] | None = None  # neighbouring rows often differ in the exit only
    for row in paper_table() if rows is None else rows:
        result: dict[str, Any] = {
            "method": row.method,
            "title": row.title,
            "dataset": row.dataset,
            "variant": row.variant,
            "point": dict(row.point),
            "source": row.source,
            "published": row.gflops,
            "from_constants": row.from_constants,
            "status": "not in this version",
            "executed": None,
            "training_only": None,
            "counted": None,
            "difference": None,
            "ok": None,
        }
        if row.settings is not None and row.method in method_cards():
            if progress is not None:
                progress(row)
            what = row.method, row.classes, row.settings
            if built is None or built[0] != what:
                built = what, _built(row.method, "paper", RESOLUTIONS["paper"], row.classes, row.settings).to(device)
            result |= _compared(row, built[1], device)
        results.append(result)
    return results


def method_table(
    name: str,
    *,
    size: str = "paper",
    resolution: int | None = None,
    num_classes: int = 200,
    settings: Mapping[str, Any] = EMPTY,
    point: Mapping[str, Any] = EMPTY,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Cost of one method on one synthetic clip, part by part.

    Args:
        name: Method in the registry.
        size: tiny or paper.
        resolution: Side in pixels; the size's own when None.
        settings: Constructor settings over those of the size.
        point: Settings of an operating point.

    Returns:
        method, size, resolution, classes, settings, executed and training_only (GFLOPs per video), and `parts`: one
        dict per kind of work with component, variant, shape, training_only, mmacs (1e6 MACs per row), rows (per
        video), gflops, share (of all that is executed; null for training-only parts).
    """
    side = resolution or RESOLUTIONS[size]
    model = _built(name, size, side, num_classes, settings).to(device)
    trace, table = _measured(model, point, device)
    executed, training_only = _both(table, trace)
    return {
        "method": name,
        "size": size,
        "resolution": side,
        "classes": num_classes,
        "settings": dict(settings),
        "executed": executed,
        "training_only": training_only,
        "parts": _parts(table, trace, executed),
    }


def synthetic_clips(recognizer: Any, point: Mapping[str, Any] = EMPTY) -> dict[str, torch.Tensor]:
    """One video of noise for every clip request, uint8 (1, T, 3, H, W); the same at every call."""
    generator = torch.Generator().manual_seed(0)
    clips = {}
    for request in recognizer.clip_requests(point):
        side = request.resolution or recognizer.resolution
        clips[request.name] = torch.randint(
            0, 256, (1, request.frames, 3, side, side), dtype=torch.uint8, generator=generator
        )
    return clips


def render_paper(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Measured beside published as tables for the terminal: whole forwards, and where there are any, exits."""
    whole = [r for r in results if not r["point"]]
    exits = [r for r in results if r["point"]]
    tables = []
    if whole:
        table = _paper_table("GFLOPs per video (1e9 multiply-accumulates), measured beside published", whole)
        table.caption = (
            "counted: what the published figure covers. It includes heads that only training needs: all those of "
            "AdaFocusV2 and of V2 and Uni-AdaFocus on TSM, and those of Uni-AdaFocus's steps."
        )
        tables.append(table)
    if exits:
        table = _paper_table("GFLOPs per video by exit, measured beside the cost models of the authors' code", exits)
        table.caption = "measured: every video stopped at that exit, and only what it needs was run."
        tables.append(table)
    return tables


def _paper_table(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("method", "dataset", "variant"):
        table.add_column(heading)
    if results[0]["point"]:
        table.add_column("exit", justify="right")
    for heading in ("executed", "training only", "counted", "published", "difference", ""):
        table.add_column(heading, justify="right")
    for r in results:
        where = [str(value) for value in r["point"].values()]
        figures = [*(_figure(r[key]) for key in ("executed", "training_only", "counted")), f"{r['published']:g}"]
        verdict = {True: "ok", False: "[bold red]off[/]", None: r["status"]}[r["ok"]]
        difference = "" if r["difference"] is None else f"{r['difference']:+.2%}"
        table.add_row(r["title"], r["dataset"], r["variant"], *where, *figures, difference, verdict)
    return table


def render_method(result: Mapping[str, Any]) -> Table:
    """The parts of one method's cost as a table for the terminal."""
    heading = f"{escape(result['method'])} ({result['size']}, {result['resolution']} px, {result['classes']} classes)"
    table = Table(title=f"{heading}: {result['executed']:.4g} GFLOPs per video", title_justify="left", show_footer=True)
    table.add_column("component", footer="executed")
    table.add_column("variant")
    table.add_column("input of a row")
    table.add_column("MMACs per row", justify="right")
    table.add_column("rows per video", justify="right")
    table.add_column("GFLOPs per video", justify="right", footer=f"{result['executed']:.4g}")
    table.add_column("share", justify="right")
    for part in result["parts"]:
        share = "training only" if part["share"] is None else f"{part['share']:.1%}"
        shape = " x ".join(map(str, part["shape"]))
        cost = f"{part['mmacs']:.6g}", f"{part['rows']:g}", f"{part['gflops']:.4g}"
        table.add_row(part["component"], part["variant"], shape, *cost, share)
    return table


def _compared(row: PaperRow, model: EfficientRecognizer, device: torch.device | str) -> dict[str, Any]:
    trace, table = _measured(model, row.point, device)
    executed, training_only = _both(table, trace)
    covered = training_only if "all" in row.covers else _part_gflops(table, trace, row.covers)
    counted = executed + covered
    difference = counted / row.gflops - 1
    return {
        "status": "measured",
        "executed": executed,
        "training_only": training_only,
        "counted": counted,
        "difference": difference,
        "ok": abs(difference) <= TOLERANCE,
    }


def _built(name: str, size: str, resolution: int, num_classes: int, settings: Mapping[str, Any]) -> EfficientRecognizer:
    whole = {**full_settings(name, size, resolution, settings), "num_classes": num_classes, "resolution": resolution}
    return build_recognizer(name, whole).eval()


def _measured(model: Any, point: Mapping[str, Any], device: torch.device | str) -> tuple[Trace, CostTable]:
    clips = synthetic_clips(model, point)
    trace, total = metered(model, clips, point, device=device, training_parts=True)
    table = CostTable.of([trace])
    whole_check(table, [(trace, total)], type(model).__name__)
    return trace, table


def _both(table: CostTable, trace: Trace) -> tuple[float, float]:
    """(executed, training-only) GFLOPs of a trace of one video."""
    executed = float(table.gflops(trace)[0])
    return executed, float(table.gflops(trace, training_only=True)[0]) - executed


def _part_gflops(table: CostTable, trace: Trace, components: Collection[str]) -> float:
    """GFLOPs of the training-only parts of some components, for a trace of one video."""
    keys = [key for key in table.macs if key.training_only and key.component in components]
    return sum(float(trace.counts[key][0]) * table.macs[key] for key in keys) / GIGA


def _parts(table: CostTable, trace: Trace, executed: float) -> list[dict[str, Any]]:
    parts = []
    for key, macs in table.macs.items():
        rows = float(trace.counts[key][0])
        gflops = rows * macs / GIGA
        share = None if key.training_only or not executed else gflops / executed
        cost = {"mmacs": macs / 1e6, "rows": rows, "gflops": gflops, "share": share}
        parts.append({**key._asdict(), "shape": list(key.shape), **cost})
    return parts


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
