"""Training killed at any moment and resumed gives the weights of an undisturbed run, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from harness.compat.checkpoints import latest_checkpoint
from harness.compat.seeds import epoch_seed
from tests.compat import toy

ITERATIONS = 20  # 4 epochs of 5
ROOT = Path(__file__).parents[2]


class Interruption(Exception):
    """Stands for the kill where a process of its own would cost too much."""


class Interrupt(Hook):
    """Raises after iteration `at`, in the middle of whatever epoch that is."""

    priority = "HIGHEST"

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.at:
            raise Interruption


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return toy.weights(toy.run(tmp_path_factory.mktemp("undisturbed")))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def test_two_runs_are_equal(tmp_path: Path, undisturbed: dict[str, Tensor]) -> None:
    assert_same(toy.weights(toy.run(tmp_path / "again")), undisturbed)


@pytest.mark.parametrize("at", [1, 5, 6, 9, 13, 20])
def test_resumed_equals_undisturbed(tmp_path: Path, undisturbed: dict[str, Tensor], at: int) -> None:
    with pytest.raises(Interruption):
        toy.run(tmp_path / "work", hooks=[Interrupt(at)])
    assert_same(toy.weights(toy.run(tmp_path / "work")), undisturbed)


def test_interrupted_in_every_epoch(tmp_path: Path, undisturbed: dict[str, Tensor]) -> None:
    for at in (3, 8, 14, 19):
        with pytest.raises(Interruption):
            toy.run(tmp_path / "work", hooks=[Interrupt(at)])
    assert_same(toy.weights(toy.run(tmp_path / "work")), undisturbed)


def test_the_epoch_seed_is_needed(tmp_path: Path) -> None:
    """Without it, dropout and the data's noise go on from another state after a resume."""
    whole = toy.weights(toy.run(tmp_path / "whole", seed_hook=False))
    with pytest.raises(Interruption):
        toy.run(tmp_path / "work", seed_hook=False, hooks=[Interrupt(12)])
    torch.manual_seed(12345)  # what another process would bring along
    resumed = toy.weights(toy.run(tmp_path / "work", seed_hook=False))
    if all(torch.equal(resumed[name], whole[name]) for name in whole):
        pytest.skip("mmengine restores random state now: EpochSeedHook is needed for worker seeds only")


def test_killed_process(tmp_path: Path, undisturbed: dict[str, Tensor]) -> None:
    """`kill -9` with half of the third checkpoint on the disk."""
    work = tmp_path / "work"
    command = [sys.executable, toy.__file__, str(work), "--die-at", "c3"]
    killed = subprocess.run(command, env=environment(), capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (work / ".epoch_3.pth.part").exists()
    assert latest_checkpoint(work) == work / "epoch_2.pth"
    assert_same(toy.weights(toy.run(work)), undisturbed)
    assert not list(work.glob(".*.part"))


def test_a_moved_folder_resumes(tmp_path: Path, undisturbed: dict[str, Tensor]) -> None:
    with pytest.raises(Interruption):
        toy.run(tmp_path / "here", hooks=[Interrupt(12)])
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_same(toy.weights(toy.run(tmp_path / "there")), undisturbed)


def test_bfloat16_resumes_too(tmp_path: Path) -> None:
    whole = toy.weights(toy.run(tmp_path / "whole", dtype="bfloat16"))
    with pytest.raises(Interruption):
        toy.run(tmp_path / "work", dtype="bfloat16", hooks=[Interrupt(12)])
    assert_same(toy.weights(toy.run(tmp_path / "work", dtype="bfloat16")), whole)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "MultiStepLR", "milestones": [1, 3], "gamma": 0.1, "by_epoch": True},
        {"type": "CosineAnnealingLR", "T_max": 4, "by_epoch": True},
        {"type": "LinearLR", "start_factor": 0.04, "begin": 0, "end": 6, "by_epoch": False},
    ],
    ids=lambda s: s["type"],
)
def test_schedules_resume(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    whole = toy.weights(toy.run(tmp_path / "whole", schedule=dict(scheduler)))
    with pytest.raises(Interruption):
        toy.run(tmp_path / "work", hooks=[Interrupt(12)], schedule=dict(scheduler))
    assert_same(toy.weights(toy.run(tmp_path / "work", schedule=dict(scheduler))), whole)


def test_history_goes_on(tmp_path: Path) -> None:
    """The logged losses of a resumed run are those of all its epochs."""
    with pytest.raises(Interruption):
        toy.run(tmp_path / "work", hooks=[Interrupt(12)])
    values, _ = toy.run(tmp_path / "work").message_hub.get_scalar("train/loss").data
    assert len(values) == ITERATIONS


def test_epoch_seed_depends_on_all_parts() -> None:
    seeds = {
        epoch_seed(seed, stage, epoch, rank)
        for seed in (0, 1)
        for stage in ("a", "b")
        for epoch in (0, 1)
        for rank in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
