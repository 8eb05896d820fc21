"""Checkpoints: read with `weights_only`, whole at every moment, and why mmengine's own are not."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from harness.compat.checkpoints import AtomicCheckpointHook, latest_checkpoint, plain_checkpoint, restore_history
from harness.errors import UsageError
from tests.compat import toy


def test_weights_only_reads_it(tmp_path: Path) -> None:
    toy.run(tmp_path, epochs=2)
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    assert checkpoint["meta"]["epoch"] == 2
    assert set(checkpoint) >= {"state_dict", "optimizer", "param_schedulers", "message_hub"}


def test_weights_only_refuses_mmengines(tmp_path: Path) -> None:
    """mmengine #1655."""
    toy.run(tmp_path, epochs=2, checkpoint={"type": "CheckpointHook"}, resume=False)
    try:
        torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    except pickle.UnpicklingError:
        return
    pytest.skip("mmengine's checkpoints are plain now: plain_checkpoint may go")


class Listing(Hook):
    """Notes which checkpoints are whole while the next one is being written."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.seen.append({path.name for path in Path(runner.work_dir).glob("epoch_*.pth")})


def test_the_old_one_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    listing = Listing()
    toy.run(tmp_path, epochs=3, hooks=[listing])
    assert listing.seen == [set(), {"epoch_1.pth"}, {"epoch_2.pth"}]
    assert [path.name for path in tmp_path.glob("epoch_*")] == ["epoch_3.pth"]


def test_mmengines_deletes_first(tmp_path: Path) -> None:
    listing = Listing()
    checkpoint = {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1}
    toy.run(tmp_path, epochs=3, hooks=[listing], checkpoint=checkpoint, resume=False)
    if listing.seen[1:] == [{"epoch_1.pth"}, {"epoch_2.pth"}]:
        pytest.skip("mmengine keeps the old checkpoint now: AtomicCheckpointHook may be simplified")
    assert listing.seen == [set(), set(), set()]


def test_interval_and_how_many_are_kept(tmp_path: Path) -> None:
    toy.run(tmp_path, epochs=5, checkpoint={"type": "AtomicCheckpointHook", "interval": 2, "max_keep_ckpts": 2})
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == ["epoch_4.pth", "epoch_5.pth"]


@pytest.mark.parametrize("arguments", [{"interval": 0}, {"max_keep_ckpts": 0}])
def test_senseless_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        AtomicCheckpointHook(**arguments)


def test_latest_is_by_number(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for name in ("epoch_2.pth", "epoch_10.pth", "epoch_best.pth", ".epoch_11.pth.part", "epoch_12.pth.tmp"):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_10.pth"


def test_last_checkpoint_is_mended(tmp_path: Path) -> None:
    """A kill may leave it empty or pointing at a file that is gone."""
    toy.run(tmp_path, epochs=2)
    (tmp_path / "last_checkpoint").write_text("")
    assert toy.run(tmp_path, epochs=3).epoch == 3
    (tmp_path / "epoch_3.pth").unlink()
    assert toy.run(tmp_path, epochs=1).epoch == 1


def test_plain_forms() -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = {
        "state_dict": {"w": torch.ones(1)},
        "message_hub": {
            "log_scalars": {"loss": history},
            "runtime_info": {"epoch": np.int64(3), "best": np.float64(0.5)},
        },
        "meta": {"classes": np.array(["a", "b"]), "mean": np.array([1.0, 2.0]), "pair": (1, np.bool_(True))},
        "param_schedulers": [{"milestones": Counter([2, 3]), "function": len, "last_step": 1}],
    }
    plain_checkpoint(checkpoint)
    info = checkpoint["message_hub"]["runtime_info"]
    assert type(info["epoch"]) is int and type(info["best"]) is float
    assert checkpoint["meta"]["classes"] == ["a", "b"]
    assert torch.equal(checkpoint["meta"]["mean"], torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert checkpoint["meta"]["pair"] == (1, True)
    assert checkpoint["param_schedulers"] == [{"milestones": Counter([2, 3]), "last_step": 1}]
    restore_history(checkpoint)
    values, counts = checkpoint["message_hub"]["log_scalars"]["loss"].data
    assert values.tolist() == [1.0, 2.0] and counts.tolist() == [1.0, 1.0]
