"""`bench.py predict`: one video, its classes and costs; what is drawn of it is `reports.overlay`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.commands.arguments import plain_settings, resolve_device
from harness.commands.options import Place
from harness.measure import predict as predicting
from harness.measure.prediction import Prediction


def predict(video: Path, checkpoint: Path, place: Place, *, sets: list[str] | None, **options: Any) -> Prediction:
    """What a checkpoint makes of a video; `options` as of `harness.measure.predict.predict`."""
    return predicting.predict(
        video,
        checkpoint,
        settings=plain_settings("predict", sets),
        device=resolve_device(place.device),
        work_dir=place.work_dir,
        **options,
    )
