"""The parts of one method's cost, counted on one synthetic clip.

    method_table("adafocus-v2", size="tiny")

Networks have random weights and see one synthetic clip: enough for variants that always run the same work. A
method that decides by content is measured as it decides on noise; its evaluation record has the real cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.contract.declarations import EMPTY
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import EventKey, Trace
from harness.measure.cost_table import GIGA, CostTable, metered, whole_check
from harness.measure.cross_check import LayerCalls
from harness.plan.building import build_recognizer, full_settings

RESOLUTIONS = {"tiny": 64, "paper": 224}
"""Side of the square input of each size, in pixels."""


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
        method, size, resolution, classes, settings, executed and training_only (GFLOPs per video), fvcore (what fvcore
        counts of the executed convolutions and linear layers, GFLOPs), and `parts`: one dict per kind of work with
        component, variant, shape, training_only, mmacs (1e6 MACs per row), rows (per video), gflops, fvcore, share
        (of all that is executed; null for training-only parts).
    """
    side = resolution or RESOLUTIONS[size]
    model = built(name, size, side, num_classes, settings).to(device)
    trace, table, fvcore = measured(model, point, device)
    executed, training_only = both(table, trace)
    return {
        "method": name,
        "size": size,
        "resolution": side,
        "classes": num_classes,
        "settings": dict(settings),
        "executed": executed,
        "training_only": training_only,
        "fvcore": sum(macs for key, macs in fvcore.items() if not key.training_only) / GIGA,
        "parts": _parts(table, trace, executed, fvcore),
    }


def synthetic_clips(recognizer: Any, point: Mapping[str, Any] = EMPTY, *, videos: int = 1) -> dict[str, torch.Tensor]:
    """A video of noise, `videos` times, for every clip request, uint8 (B, T, 3, H, W); the same at every call."""
    generator = torch.Generator().manual_seed(0)
    clips = {}
    for request in recognizer.clip_requests(point):
        side = request.resolution or recognizer.resolution
        video = torch.randint(0, 256, (1, request.frames, 3, side, side), dtype=torch.uint8, generator=generator)
        clips[request.name] = video.repeat(videos, 1, 1, 1, 1)
    return clips


def built(name: str, size: str, resolution: int, num_classes: int, settings: Mapping[str, Any]) -> EfficientRecognizer:
    """A method at a size, with random weights, in eval mode."""
    whole = {**full_settings(name, size, resolution, settings), "num_classes": num_classes, "resolution": resolution}
    return build_recognizer(name, whole).eval()


def measured(
    model: Any, point: Mapping[str, Any], device: torch.device | str
) -> tuple[Trace, CostTable, dict[EventKey, float]]:
    """Trace and cost table of one synthetic clip, checked as a whole; and fvcore's MACs by kind of work."""
    clips = synthetic_clips(model, point)
    layers = LayerCalls()
    with layers:
        trace, total = metered(model, clips, point, device=device, training_parts=True, observe=layers.observe)
    table = CostTable.of([trace])
    whole_check(table, [(trace, total)], type(model).__name__)
    return trace, table, layers.fvcore_macs()


def both(table: CostTable, trace: Trace) -> tuple[float, float]:
    """(executed, training-only) GFLOPs of a trace of one video."""
    executed = float(table.gflops(trace)[0])
    return executed, float(table.gflops(trace, training_only=True)[0]) - executed


def _parts(
    table: CostTable, trace: Trace, executed: float, fvcore: Mapping[EventKey, float]
) -> list[dict[str, Any]]:
    parts = []
    for key, macs in table.macs.items():
        rows = float(trace.counts[key][0])
        gflops = rows * macs / GIGA
        share = None if key.training_only or not executed else gflops / executed
        cost = {"mmacs": macs / 1e6, "rows": rows, "gflops": gflops, "fvcore": fvcore.get(key, 0.0) / GIGA}
        parts.append({**key._asdict(), "shape": list(key.shape), **cost, "share": share})
    return parts
