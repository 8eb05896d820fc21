"""Our counts beside the papers': every published fixed cost, and every exit whose authors say what it costs.

    measure_paper()                 every published variant that this version can build
    measure_paper(exit_table())     the exits
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch

from harness.authors.published import PaperRow, paper_table
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_cards
from harness.contract.trace import Trace
from harness.measure.cost_table import GIGA, CostTable
from harness.measure.parts import RESOLUTIONS, both, built, measured

TOLERANCE = 0.005
"""Largest relative difference from a published figure."""


def measure_paper(
    rows: Iterable[PaperRow] | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[PaperRow], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure each published variant; one result per row, in order.

    Keys: method, title, dataset, variant, point, source, published and from_constants (GFLOPs), status (`measured`, or
    `not in this version`), executed and training_only (GFLOPs, apart), fvcore (what
    fvcore counts of the executed convolutions and linear layers), counted (what the published figure covers
    of the two), difference (relative, counted against published), ok (within 0.5 %, null where not measured).
    """
    results = []
    last: tuple[Any, EfficientRecognizer] | None = None  # neighbouring rows often differ in the exit only
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
            "fvcore": None,
            "counted": None,
            "difference": None,
            "ok": None,
        }
        if row.settings is not None and row.method in method_cards():
            if progress is not None:
                progress(row)
            what = row.method, row.classes, row.settings
            if last is None or last[0] != what:
                last = what, built(row.method, "paper", RESOLUTIONS["paper"], row.classes, row.settings).to(device)
            result |= _compared(row, last[1], device)
        results.append(result)
    return results


def _compared(row: PaperRow, model: EfficientRecognizer, device: torch.device | str) -> dict[str, Any]:
    trace, table, fvcore = measured(model, row.point, device)
    executed, training_only = both(table, trace)
    covered = training_only if "all" in row.covers else _part_gflops(table, trace, row.covers)
    counted = executed + covered
    difference = counted / row.gflops - 1
    return {
        "status": "measured",
        "executed": executed,
        "training_only": training_only,
        "fvcore": sum(macs for key, macs in fvcore.items() if not key.training_only) / GIGA,
        "counted": counted,
        "difference": difference,
        "ok": abs(difference) <= TOLERANCE,
    }


def _part_gflops(table: CostTable, trace: Trace, components: Collection[str]) -> float:
    """GFLOPs of the training-only parts of some components, for a trace of one video."""
    keys = [key for key in table.macs if key.training_only and key.component in components]
    return sum(float(trace.counts[key][0]) * table.macs[key] for key in keys) / GIGA
