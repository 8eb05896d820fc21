"""An authors' file through the command line: converted, read back, evaluated."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.authors.official import convert, read_official
from harness.authors.parity import fill
from harness.store import artifacts
from tests.commands.conftest import bench

PAIR = Path(__file__).parents[1] / "authors" / "data" / "v1_actnet_p128.json"
CLASSES = 2


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as AdaFocus V1's code saves it, for two classes, with NumPy's best accuracy and one odd tensor."""
    parts: dict[str, Any] = json.loads(PAIR.read_text())["tensors"]
    content: dict[str, Any] = {"epoch": 10, "model_state_dict": None, "best_acc": np.float64(75.0), "acc": 75.0}
    for part, tensors in parts.items():
        shapes = {name: [CLASSES if side == 200 else side for side in shape] for name, shape in tensors.items()}
        content[part] = {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}
    content["fc"]["odd.weight"] = torch.zeros(1)
    path = tmp_path_factory.mktemp("official") / "actnet_128_s3_checkpoint.pth.tar"
    torch.save(content, path)
    return path


@pytest.mark.timeout(600)
def test_convert_and_evaluate(official: Path, clips_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    done = bench("convert", str(official), "--out", str(out), "--set", "patch_size=96")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "adafocus-v1" in done.stdout and "NOT PLACED" in done.stdout
    assert done.stdout.count("odd.weight") == 1, "that one, and nothing else"

    description = json.loads((out / "artifact.json").read_text())
    assert (description["method"], description["settings"]["patch_size"]) == ("adafocus-v1", 96)
    expected = convert(read_official(official)).state
    stored = artifacts.read_weights(out / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=0)

    done = bench(
        "eval", "--checkpoint", str(out), "--dataset", f"csv:{clips_csv}", "--train", "split=train", "--test",
        "split=test", "--limit", "2", "--json", "--device", "cpu", "--work-dir", str(tmp_path / "w"),
        "--data-root", str(tmp_path / "d"), timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    points = {point["name"]: point for point in json.loads(done.stdout)}
    assert points["full"]["gflops"]["mean"] == pytest.approx(17.18, rel=0.005), "V1, P = 96"

    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "w").glob("records/evaluation/*/result.json"))
    (told,) = record["disclosures"]
    assert official.name in told and "exit thresholds come from videos that the networks have seen" in told

    again = bench("convert", str(official), "--out", str(out))
    assert again.returncode == 2 and "choose another --out" in again.stderr


@pytest.mark.timeout(300)
def test_what_is_refused(official: Path, tmp_path: Path) -> None:
    """Files that need more than tensors and numbers, of another method, of nobody, or not files at all."""

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("run by a checkpoint",))

    (tmp_path / "harmful.pth").write_bytes(pickle.dumps({"state_dict": Harmful()}))
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    for file, method, words in (
        (tmp_path / "harmful.pth", None, "cannot be read as a file of tensors and numbers"),
        (tmp_path / "other.pth", None, "is no official checkpoint of adafocus-v1"),
        (tmp_path / "gone.pth", None, "gone.pth"),
        (official, "adafocus-v2", "is a checkpoint of adafocus-v1, not of adafocus-v2"),
    ):
        done = bench("convert", str(file), "--out", str(tmp_path / "o"), *(["--method", method] if method else []))
        assert done.returncode == 1, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
        assert "run by a checkpoint" not in done.stdout
    done = bench("convert", str(official), "--out", str(tmp_path / "o"), "--set", "patchsize=96")
    assert done.returncode == 2 and "patch_size" in done.stderr
    assert not (tmp_path / "o").exists()
