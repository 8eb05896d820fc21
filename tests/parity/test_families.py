"""Official files of every family that has a pair in `data`: recognised, every tensor placed, nothing left over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.data.clips  # noqa: F401  (registers the preprocessor)
from harness.official import convert
from harness.registry import recognizer_class

PAIRS = sorted((Path(__file__).parent / "data").glob("*.json"))
METHODS = {
    "AdaFocus V1": "adafocus-v1",
    "AdaFocus V1 + TSM": "adafocus-v1-tsm",
    "AdaFocus V2": "adafocus-v2",
    "AdaFocus V2 + TSM": "adafocus-v2-tsm",
    "Uni-AdaFocus": "uni-adafocus",
    "Uni-AdaFocus + TSM": "uni-adafocus-tsm",
    "Uni-AdaFocus + X3D": "uni-adafocus-x3d",
}


def without_numbers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint in the authors' layout, its tensors on the meta device."""
    if all(isinstance(value, Mapping) for value in tensors.values()):
        return {part: _empty(group) for part, group in tensors.items()}
    return {"state_dict": {f"module.{name}": value for name, value in _empty(tensors).items()}}


def _empty(shapes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_every_tensor_finds_its_place(path: Path) -> None:
    spec = json.loads(path.read_text())
    converted = convert(without_numbers(spec["tensors"]), patch_size=spec["patch_size"])
    assert converted.method == METHODS[spec["method"]]
    assert not converted.unplaced
    with torch.device("meta"):
        model = recognizer_class(converted.method)(**converted.settings)
    assert model.num_classes == spec["num_classes"]
    expected = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in converted.state.items()} == expected


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_what_nobody_knows_is_reported(path: Path) -> None:
    content = without_numbers(json.loads(path.read_text())["tensors"])
    group = content["policy"] if "policy" in content else content["state_dict"]
    group["surprise.weight"] = torch.empty(1, device="meta")
    assert [name.split(".")[-2] for name in convert(content).unplaced] == ["surprise"]
