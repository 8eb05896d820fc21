"""Reading the authors' checkpoints of AdaFocus V2: names, settings, and what is refused."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adafocus.v2 import AdaFocusV2
from harness.authors.official import convert, read_official
from harness.errors import CheckpointError
from harness.store import artifacts

DATA = Path(__file__).parent / "data"


def official(name: str) -> dict[str, Tensor]:
    """A checkpoint in the authors' layout without numbers in it."""
    tensors = json.loads((DATA / f"{name}.json").read_text())["tensors"]
    return {f"module.{n}": torch.empty(shape, device="meta") for n, shape in tensors.items()}


@pytest.mark.parametrize(
    ("name", "glance", "side"), [("v2_mbv2_p128", "mobilenet_v2", None), ("v2_res50_p128", "resnet50", 96)]
)
def test_every_tensor_finds_its_place(name: str, glance: str, side: int | None) -> None:
    converted = convert(official(name))
    assert (converted.settings["glance"], converted.settings["glance_side"]) == (glance, side)
    assert (converted.settings["num_classes"], converted.settings["exit_score"]) == (200, "logit")
    with torch.device("meta"):
        model = AdaFocusV2(**converted.settings)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.state.items()} == expected


def test_unused_heads_are_reported() -> None:
    assert convert(official("v2_mbv2_p128")).unused == (
        "global_CNN.classifier.bias",
        "global_CNN.classifier.weight",
        "local_CNN.fc.bias",
        "local_CNN.fc.weight",
    )
    assert "not used: global_CNN.fc.bias" in convert(official("v2_res50_p128")).report()


def test_wrapped_and_patch_size() -> None:
    wrapped = {"epoch": 3, "state_dict": official("v2_mbv2_p128")}
    assert convert(wrapped, patch_size=96).settings["patch_size"] == 96


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no official checkpoint of .*adafocus-v2"):
        convert({"module.base_model.conv1.weight": torch.zeros(1)})


def test_numpy_scalars_are_read(tmp_path: Path) -> None:
    path = tmp_path / "numbers.pth.tar"
    torch.save({"best_acc1": np.float64(79.0), "state_dict": {"a": torch.ones(2)}}, path)
    content = read_official(path)
    assert content["best_acc1"] == 79.0
    assert torch.equal(content["state_dict"]["a"], torch.ones(2))


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("this must not run",))


def test_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "harmful.pth.tar"
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_official(path)
    assert "must not run" not in capsys.readouterr().out


def damaged() -> list[bytes]:
    """Files cut short or with some bytes changed, in torch's new and old format; nothing; and no file of torch's."""
    rng, found = random.Random(0), [b"", b"no checkpoint"]
    for zipped in (True, False):
        memory = io.BytesIO()
        content = {"best_acc1": np.float64(79.0), "state_dict": {f"a{i}": torch.ones(3) for i in range(4)}}
        torch.save(content, memory, _use_new_zipfile_serialization=zipped)
        whole = memory.getvalue()
        for _ in range(150):
            cut = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole)
            for _ in range(rng.choice((1, 2, 5)) if cut else 0):
                cut[rng.randrange(min(len(cut), 1200))] = rng.randrange(256)
            found.append(bytes(cut))
    return found


@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_named(tmp_path: Path) -> None:
    """Whatever is wrong with them; a byte that torch does not look at may pass."""
    path, refused = tmp_path / "broken.pth.tar", 0
    contents = damaged()
    for content in contents:
        path.write_bytes(content)
        for read in (read_official, artifacts.read_weights):
            try:
                read(path)
            except CheckpointError as error:
                assert "broken.pth.tar" in str(error)
                refused += 1
    assert refused > len(contents)


def test_damaged_safetensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        artifacts.read_weights(path)
