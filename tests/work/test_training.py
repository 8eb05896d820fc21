"""A stage trained in this process: damage that heals, divergence that is no result, what is left afterwards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from harness.data.clips import ClipDataset
from harness.errors import BenchError, DataError, StopRequested
from harness.plan.overrides import Overrides
from harness.plan.planner import Planner
from harness.plan.protocol import Protocol
from harness.plan.units import DataSpec, TrainSpec
from harness.store import artifacts, sources
from harness.work.processes import told_by_worker
from harness.work.training import train
from tests.commands.conftest import clips_csv  # noqa: F401

OTHER = {"harness.layers.resize": "other"}
Told = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def spec(clips_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:  # noqa: F811
    """Three short epochs of TSN on a few clips."""
    data = DataSpec(f"csv:{clips_csv}", str(tmp_path_factory.mktemp("data")), "tiny")
    overrides = Overrides({"frames": 2}, {"views_per_epoch": 1}, epochs=3)
    protocol = Protocol(initialisation="scratch")
    return Planner(data, data.open(), protocol, size="tiny", overrides=overrides).cell("tsn", 0).train[-1]


def trained(spec: TrainSpec, work_dir: Path, stop: Callable[[], bool] = lambda: False) -> Told:
    """What a training reports, to its end or until `stop`."""
    told: Told = []
    with contextlib.suppress(StopRequested):
        train(spec, work_dir, device="cpu", report=told.append, stop=stop)
    return told


def after(epochs: int) -> Callable[[], bool]:
    """Asks to stop after so many epochs."""
    left = [False] * (epochs - 1) + [True]
    return lambda: left.pop(0)


def notes(told: Told) -> str:
    return " ".join(text for line in told for text in line.get("told", ()))


@pytest.fixture(scope="module")
def undisturbed(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("undisturbed")
    trained(spec, work_dir)
    return work_dir


def test_only_the_weights_stay(spec: TrainSpec, undisturbed: Path) -> None:
    folder = artifacts.folder(undisturbed, spec.key)
    assert not [p.name for p in folder.rglob("*") if p.suffix in (".pth", ".txt") or p.name == "last_checkpoint"]
    description = artifacts.read(undisturbed, spec.key)
    assert description is not None and description["changed_midway"] == []
    assert set(description["made_with"]) == {"device", "torch", "torchvision", "av"}
    assert description["made_with"]["device"] == "cpu"


def test_the_pipeline_of_the_frames_is_told(spec: TrainSpec, undisturbed: Path, tmp_path: Path) -> None:
    assert artifacts.located(artifacts.folder(undisturbed, spec.key))[1]["pipeline"] == "harness"
    data = replace(spec.data, pipeline="authors")
    other = replace(spec, data=data, fingerprint=data.open().fingerprint, stage={**spec.stage, "epochs": 1})
    trained(other, tmp_path)
    assert artifacts.located(artifacts.folder(tmp_path, other.key))[1]["pipeline"] == "authors"


@pytest.mark.parametrize(("damaged", "outcome"), [(1, "goes on from epoch_1.pth"), (2, "begins this stage anew")])
def test_truncated_epochs_heal(damaged: int, outcome: str, spec: TrainSpec, undisturbed: Path, tmp_path: Path) -> None:
    trained(spec, tmp_path, after(2))
    run = artifacts.folder(tmp_path, spec.key) / "run"
    for path in sorted(run.glob("epoch_*.pth"))[-damaged:]:
        path.write_bytes(path.read_bytes()[:1000])
    told = notes(trained(spec, tmp_path))
    assert "epoch_2.pth is damaged" in told and outcome in told
    assert (tmp_path / "aside" / "artifacts" / spec.key / "run" / "epoch_2.pth.1").stat().st_size == 1000
    wanted, found = (artifacts.load_state(place, spec.key) for place in (undisturbed, tmp_path))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_damaged_best_weights_begin_the_stage_anew(spec: TrainSpec, undisturbed: Path, tmp_path: Path) -> None:
    trained(spec, tmp_path, after(1))
    (artifacts.folder(tmp_path, spec.key) / "run" / "best.safetensors").write_bytes(b"cut")
    told = notes(trained(spec, tmp_path))
    assert "best.safetensors is damaged" in told and "begins this stage anew" in told
    assert (tmp_path / "aside" / "artifacts" / spec.key / "run.1" / "epoch_1.pth").exists()
    wanted, found = (artifacts.load_state(place, spec.key) for place in (undisturbed, tmp_path))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_damaged_clock_is_no_end(spec: TrainSpec, tmp_path: Path) -> None:
    trained(spec, tmp_path, after(1))
    (artifacts.folder(tmp_path, spec.key) / "run" / "seconds.txt").write_text("")
    trained(spec, tmp_path)
    assert artifacts.read(tmp_path, spec.key) is not None


def test_code_that_changed_midway_is_noted(spec: TrainSpec, tmp_path: Path) -> None:
    trained(spec, tmp_path, after(1))
    mark = artifacts.folder(tmp_path, spec.key) / "run" / "sources.json"
    begun = json.loads(mark.read_text())
    begun["sources"]["harness.layers.resize"] = "other"
    mark.write_text(json.dumps(begun))
    trained(spec, tmp_path)
    description = artifacts.read(tmp_path, spec.key)
    assert description is not None and description["changed_midway"] == ["harness.layers.resize"]


def test_inputs_of_other_code_are_no_change_midway(
    spec: TrainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "loaded", lambda *_: OTHER)
    trained(spec, tmp_path)
    description = artifacts.read(tmp_path, spec.key)
    assert description is not None and description["sources"] == OTHER and description["changed_midway"] == []


@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_diverged_are_no_result(epochs: int, spec: TrainSpec, tmp_path: Path) -> None:
    wild = replace(spec, stage={**spec.stage, "lr": 1e30, "epochs": epochs})
    with pytest.raises(BenchError, match=r"diverged in stage 'train', epoch 1 of .*stage\.train\.lr"):
        trained(wild, tmp_path)
    assert artifacts.read(tmp_path, wild.key) is None
    assert not list(tmp_path.rglob("epoch_*.pth"))


class Broken(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise DataError("clips/03.mp4: cannot be decoded: end of file")


def test_a_worker_tells_the_reason_without_a_traceback() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(caught.value), "torch gives the text alone: told_by_worker may go"
    assert told_by_worker(caught.value) == "clips/03.mp4: cannot be decoded: end of file"
    assert told_by_worker(DataError("as it is")) == "as it is"


def test_a_video_that_breaks_in_training_ends_it_with_its_name(
    spec: TrainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ClipDataset, index: int) -> Any:
        raise DataError("clips/03.mp4: cannot be decoded")

    monkeypatch.setattr(ClipDataset, "__getitem__", broken)
    with pytest.raises(DataError, match=r"03\.mp4"):
        trained(spec, tmp_path)
    assert artifacts.read(tmp_path, spec.key) is None
