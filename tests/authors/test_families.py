"""Official files of every family that has a pair in `data`: recognised, every tensor placed, nothing left over."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.authors.official import convert
from harness.contract.registry import recognizer_class
from harness.errors import CheckpointError

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


V1, V1_TSM = ("glancer.net", "focuser.net", "fc", "policy"), ("glancer.net", "focuser.net.base_model", "fc", "policy")
TSM = ("global_CNN", "global_CNN.base_model", "local_CNN.base_model")
STRAYS = {
    "AdaFocus V1": (*V1, "glancer.net.features.99", "focuser.net.layer5", "focuser.policy"),
    "AdaFocus V1 + TSM": (*V1_TSM, "glancer.net.features.2.conv.9"),
    "AdaFocus V2": ("global_CNN", "local_CNN", "local_CNN.layer5", "policy_stn", "policy_stn.fc", "classifier"),
    "AdaFocus V2 + TSM": (*TSM, *(f"global_CNN.base_model.features.{k}" for k in ("99", "1.conv.7")), "policy_stn"),
    "Uni-AdaFocus": (*TSM[:1], "global_CNN.features.99", "local_CNN", "spatial_policy", "temporal_policy", "aux_fc"),
    "Uni-AdaFocus + TSM": (*TSM, "spatial_policy", "temporal_policy", "aux_fc"),
    "Uni-AdaFocus + X3D": ("global_CNN", "local_CNN", "global_CNN.s9", "spatial_policy", "aux_head"),
}
"""Where a tensor that nobody knows may stand, network by network."""


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_what_nobody_knows_is_reported(path: Path) -> None:
    """By the authors' names, in every network, also where renaming found one of ours for it."""
    spec = json.loads(path.read_text())
    content = without_numbers(spec["tensors"])
    strays = [f"{prefix}.surprise.weight" for prefix in (*STRAYS[spec["method"]], "nobody")]
    if "glancer" in content:
        strays.remove("nobody.surprise.weight")  # would be a part of its own
    for name in strays:
        part, _, rest = name.partition(".")
        group, key = (content[part], rest) if part in content else (content["state_dict"], f"module.{name}")
        group[key] = torch.empty(1, device="meta")
    converted = convert(content)
    assert set(converted.unplaced) == set(strays)
    assert not [name for name in converted.unused if "surprise" in name]
    assert all(name in converted.report() for name in strays)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_what_no_tensor_tells_is_reported(path: Path) -> None:
    content = without_numbers(json.loads(path.read_text())["tensors"])
    silent, told = convert(content), convert(content, patch_size=96)
    assert "patch_size" in silent.assumed and "patch_size" not in told.assumed
    assumed = silent.report().splitlines()[-1]
    assert assumed.startswith("ASSUMED, no tensor tells: ") and assumed.endswith("; change with --set")
    assert all(f"{name}={silent.settings[name]}" in assumed for name in silent.assumed)
    assert ("focus_frames" in silent.assumed) == ("focus_frames" in silent.settings)
    everything = convert(content, **{name: silent.settings[name] for name in silent.assumed})
    assert everything.assumed == () and "ASSUMED" not in everything.report()


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_lost_tensors_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is lost or has lost its axes: nobody's file, or one that does not suffice; never another error."""
    monkeypatch.setattr("harness.authors.official._fitted", lambda found: found)
    content = without_numbers(json.loads(path.read_text())["tensors"])
    groups = [g for g in content.values() if len(g) > 1] if "glancer" in content else [content["state_dict"]]
    for group in groups:
        for name in [n for n in group if re.search("policy|classif|head|fc|aux", n)][:20]:
            value = group.pop(name)
            with contextlib.suppress(CheckpointError):
                convert(content)
            group[name] = torch.empty((), device="meta")
            with contextlib.suppress(CheckpointError):
                convert(content)
            group[name] = value


def test_a_lost_tensor_is_named() -> None:
    content = without_numbers(json.loads((PAIRS[0].parent / "v1_actnet_p128.json").read_text())["tensors"])
    del content["policy"]["actor.0.weight"]
    with pytest.raises(CheckpointError, match=r"AdaFocus V1, but has nothing for 'policy\.actor\.weight'"):
        convert(content)
