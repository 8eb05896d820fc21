"""`bench.py predict`: one video, its classes and costs; what is drawn of it is `reports.overlay`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.commands.arguments import resolve_device
from harness.commands.options import Place
from harness.errors import UsageError
from harness.measure import predict as predicting
from harness.measure.prediction import Prediction
from harness.plan.overrides import parse_sets
from harness.plan.protocol import Protocol


def predict(video: Path, checkpoint: Path, place: Place, *, sets: list[str] | None, **options: Any) -> Prediction:
    """What a checkpoint makes of a video; `options` as of `harness.measure.predict.predict`."""
    return predicting.predict(
        video,
        checkpoint,
        settings=point_settings(sets),
        device=resolve_device(place.device),
        work_dir=place.work_dir,
        **options,
    )


def point_settings(sets: list[str] | None) -> dict[str, Any]:
    """`KEY=VALUE` options as settings of an operating point."""
    overrides, protocol = parse_sets(sets)
    if overrides.stages or protocol != Protocol():
        raise UsageError("predict trains nothing and evaluates nothing: --set takes KEY=VALUE of an operating point")
    return dict(overrides.settings)
