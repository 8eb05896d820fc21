"""Trained recognizers, as evaluations and timings take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contract.recognizer import EfficientRecognizer
from harness.plan.building import build_recognizer
from harness.store import artifacts


def trained_recognizer(
    method: str, settings: Mapping[str, Any], work_dir: Path, *, artifact: str, checkpoint: str | None
) -> EfficientRecognizer:
    """The recognizer with the weights of `artifact` in `work_dir`, or with those of a `checkpoint`."""
    recognizer = build_recognizer(method, settings)
    state = artifacts.read_weights(checkpoint) if checkpoint else artifacts.load_state(work_dir, artifact)
    artifacts.load_into(recognizer, state, origin=checkpoint or artifact)
    return recognizer
