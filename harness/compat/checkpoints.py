"""The Runner's checkpoints: written so that a kill leaves a whole one, read with `weights_only` and no allow-list."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce_params, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from harness.compat.processes import world_size
from harness.errors import UsageError


@HOOKS.register_module()
class AtomicCheckpointHook(Hook):
    """Saves the Runner's state at epoch ends, such that a kill at any moment leaves a whole checkpoint.

    A checkpoint is written under a temporary name, flushed to the disk and renamed; only then are older
    ones deleted. It holds plain numbers and tensors, so `torch.load(weights_only=True)` reads it with no
    allow-list. Before the Runner resumes, `last_checkpoint` is set to the newest whole file in the
    folder, so that a folder may be moved.

    Batch-norm statistics are averaged over the processes at each epoch's end (the checkpoint is rank
    0's); mmengine's SyncBuffersHook is not needed beside it.

    Args:
        interval: Epochs between checkpoints; the last epoch is always saved.
        max_keep_ckpts: How many of the newest are kept; at least 1.
    """

    priority = "VERY_LOW"
    template = "epoch_{}.pth"

    def __init__(self, interval: int = 1, max_keep_ckpts: int = 1) -> None:
        if interval < 1 or max_keep_ckpts < 1:
            raise UsageError("AtomicCheckpointHook: interval and max_keep_ckpts must be at least 1")
        self.interval = interval
        self.max_keep_ckpts = max_keep_ckpts

    def before_run(self, runner: Runner) -> None:
        """Remove what a kill left behind and point `last_checkpoint` at the newest whole file."""
        if is_main_process():
            folder = Path(runner.work_dir)
            for part in folder.glob(".epoch_*.part"):
                part.unlink(missing_ok=True)
            newest = latest_checkpoint(folder)
            if newest is None:
                (folder / "last_checkpoint").unlink(missing_ok=True)
            else:
                self._point_at(newest)
        barrier()

    def after_train_epoch(self, runner: Runner) -> None:
        """Synchronise buffers, and save if it is time."""
        if world_size() > 1:
            all_reduce_params((b for b in runner.model.buffers() if b.is_floating_point()), op="mean")
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self._save(runner, runner.epoch + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Turn the checkpoint into plain numbers and tensors."""
        plain_checkpoint(checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Give the message hub its history buffers back."""
        restore_history(checkpoint)

    def _save(self, runner: Runner, epoch: int) -> None:
        """`epoch` is the number of finished epochs."""
        name = self.template.format(epoch)
        part = f".{name}.part"
        runner.save_checkpoint(runner.work_dir, part, meta={"epoch": epoch, "iter": runner.iter})
        if not is_main_process():
            return
        folder = Path(runner.work_dir)
        _flush(folder / part)
        (folder / part).replace(folder / name)
        _flush(folder)
        self._point_at(folder / name)
        for old in checkpoints(folder)[: -self.max_keep_ckpts]:
            old.unlink(missing_ok=True)

    @staticmethod
    def _point_at(checkpoint: Path) -> None:
        """Write the file in which mmengine looks for what to resume from."""
        mark = checkpoint.parent / "last_checkpoint"
        temporary = mark.with_name(".last_checkpoint.part")
        temporary.write_text(str(checkpoint.resolve()), encoding="utf-8")
        temporary.replace(mark)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole `epoch_N.pth` in `folder`, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of `folder`, oldest epoch first."""
    numbered = [(re.fullmatch(r"epoch_(\d+)\.pth", path.name), path) for path in folder.glob("epoch_*.pth")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Reduce a Runner's checkpoint, in place, to what `weights_only` reads; weights stay as they are.

    Histories become pairs of float64 tensors (`restore_history` undoes it), numpy scalars numbers, arrays
    tensors. What has no plain form (a scheduler's own functions, which loading does not need) is left out.
    """
    for key, value in list(checkpoint.items()):
        if key != "state_dict":
            checkpoint[key] = _plain(value)


def restore_history(checkpoint: dict[str, Any]) -> None:
    """Rebuild the message hub's history buffers from what `plain_checkpoint` made of them, in place."""
    scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
    for name, value in scalars.items():
        if isinstance(value, dict):
            values, counts = (value[key].cpu().numpy() for key in ("values", "counts"))
            scalars[name] = HistoryBuffer(values, counts)


_DROPPED = object()


def _plain(value: Any) -> Any:
    """The plain form of `value`, or _DROPPED where it has none."""
    if isinstance(value, np.generic):  # first: np.float64 is a float too
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes | Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else _plain(value.tolist())
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        return {
            "values": torch.as_tensor(values, dtype=torch.float64),
            "counts": torch.as_tensor(counts, dtype=torch.float64),
        }
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Counter):  # MultiStepLR's milestones
        return Counter(value)
    if isinstance(value, Mapping):
        items = {_plain(k): _plain(v) for k, v in value.items()}
        return {k: v for k, v in items.items() if k is not _DROPPED and v is not _DROPPED}
    if isinstance(value, list | tuple | set | frozenset):
        values = [v for v in map(_plain, value) if v is not _DROPPED]
        return tuple(values) if isinstance(value, tuple) else values
    print_log(f"not kept in the checkpoint: {type(value).__name__}", logger="current", level=logging.DEBUG)
    return _DROPPED
