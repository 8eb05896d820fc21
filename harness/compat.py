"""The one module that knows the breakages of the stack; import it before mmaction.

Each entry names what is broken upstream and goes when upstream is mended; `tests/compat` holds a test
for each, which fails without the workaround or says that upstream no longer needs it.

    mmaction2 #2714        the wheel lacks `mmaction.models.localizers.drn`          stub, below
    mmengine #1655         `weights_only` refuses the Runner's own checkpoints       plain_checkpoint
    CheckpointHook         deletes the old checkpoint before the new one is whole    AtomicCheckpointHook
    Runner(resume=True)    does not restore random state                             EpochSeedHook
    launcher='pytorch'     calls torch.cuda.set_device on a machine without a GPU    runner_launch
    AmpOptimWrapper        asserts a GPU                                             AutocastOptimWrapper
    mmcv-lite              warns of compiled operators that no recognizer here uses  filtered, below
    get_device()           is fixed at import: `--device cpu` has no effect          choose_device
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import random
import re
import sys
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.device.utils as device_utils
import numpy as np
import torch
from mmengine.dist import all_reduce_params, barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import BenchError, UsageError

__all__ = [
    "AtomicCheckpointHook",
    "AutocastOptimWrapper",
    "EpochSeedHook",
    "choose_device",
    "epoch_seed",
    "is_main_process",
    "latest_checkpoint",
    "optim_wrapper",
    "plain_checkpoint",
    "restore_history",
    "runner_launch",
    "unwrap",
    "world_size",
]

warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")


def _stub_drn() -> None:
    """Stand in for the subpackage that mmaction2's wheel forgot; no recognizer uses it."""
    parent = types.ModuleType("mmaction.models.localizers.drn")
    child = types.ModuleType("mmaction.models.localizers.drn.drn")
    child.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault(parent.__name__, parent)
    sys.modules.setdefault(child.__name__, child)


_stub_drn()


# Checkpoints ------------------------------------------------------------------------------------


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
        for old in _checkpoints(folder)[: -self.max_keep_ckpts]:
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
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
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


# Randomness -------------------------------------------------------------------------------------


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Reseeds Python, numpy and torch at each epoch's start from (seed, stage, epoch, rank).

    The Runner does not restore random state on resume; with this hook, training resumed at an epoch's
    end goes on as the undisturbed run would (dropout, Gumbel noise, the loader's worker seeds).

    Args:
        seed: The run's seed.
        stage: Name of the training stage, so that stages draw different numbers.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int, stage: str = "") -> None:
        self.seed = seed
        self.stage = stage

    def before_train_epoch(self, runner: Runner) -> None:
        """Reseed all generators."""
        value = epoch_seed(self.seed, self.stage, runner.epoch, get_dist_info()[0])
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)


def epoch_seed(seed: int, stage: str, epoch: int, rank: int = 0) -> int:
    """A 63-bit seed that depends on all four; neighbouring values give unrelated streams."""
    text = f"{seed}|{stage}|{epoch}|{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# Mixed precision --------------------------------------------------------------------------------


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision on any device: bfloat16 on CPU and GPU, float16 with loss scaling on GPU only.

    mmengine's AmpOptimWrapper asserts a GPU. The forward pass runs under autocast; a method may leave it
    for a part (`torch.autocast(..., enabled=False)`).

    Args:
        dtype: `bfloat16` or `float16`.
        device: Device type; that of the optimizer's first parameter when None.
        init_scale: First loss scale of float16.
        **kwargs: Of mmengine's OptimWrapper (`optimizer`, `clip_grad`, `accumulative_counts`).
    """

    def __init__(
        self, dtype: str = "bfloat16", *, device: str | None = None, init_scale: float = 2.0**16, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if dtype not in ("bfloat16", "float16"):
            raise UsageError(f"autocast dtype must be bfloat16 or float16, not {dtype!r}; float32 needs no autocast")
        self.device_type = torch.device(device or self.optimizer.param_groups[0]["params"][0].device).type
        if dtype == "float16" and self.device_type != "cuda":
            raise UsageError(f"float16 training needs a GPU (found {self.device_type}); use bfloat16 or float32")
        self.cast_dtype = getattr(torch, dtype)
        self.loss_scaler = torch.amp.GradScaler(self.device_type, init_scale=init_scale, enabled=dtype == "float16")

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Back-propagate the scaled loss."""
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Unscale, clip, update; the scaler leaves out a step whose gradients overflowed."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The forward pass of a training step: autocast on the wrapper's device."""
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the scaler's."""
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`; one without a scaler (from float32 training) is accepted."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop("loss_scaler", None)
        if scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)


def optim_wrapper(
    optimizer: torch.optim.Optimizer, dtype: str, *, device: str, clip_grad: Mapping[str, Any] | None = None
) -> OptimWrapper:
    """mmengine's wrapper for float32, AutocastOptimWrapper for the half precisions.

    Args:
        optimizer: A torch optimizer over the model's trained parameters.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu` or `cuda`.
        clip_grad: Arguments of `torch.nn.utils.clip_grad_norm_` without the parameters.
    """
    clip = dict(clip_grad) if clip_grad else None
    if dtype == "float32":
        return OptimWrapper(optimizer=optimizer, clip_grad=clip)
    return AutocastOptimWrapper(dtype, device=device, optimizer=optimizer, clip_grad=clip)


# Devices and processes --------------------------------------------------------------------------


def choose_device(device: str) -> None:
    """Make mmengine's Runner use `device` (`cpu`, `cuda`); it otherwise takes a GPU wherever there is one."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu, or see `bench.py doctor`")
    device_utils.DEVICE = kind


def runner_launch(device: str) -> dict[str, Any]:
    """Arguments of mmengine's Runner for this process: alone, or one of several under torchrun.

    Under torchrun on CPU the gloo group is made here, before mmengine would ask for a GPU, and DDP gets
    no device ids. `torchrun --nproc-per-node 2 ...` sets the environment this reads.
    """
    choose_device(device)
    if "LOCAL_RANK" not in os.environ:
        return {"launcher": "none"}
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    # torch renamed the switch; buffers are averaged at epoch ends instead (AtomicCheckpointHook)
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapper: dict[str, Any] = {"type": "MMDistributedDataParallel", switch: False}
    if on_cpu:
        wrapper["device_ids"] = None
    return {
        "launcher": "pytorch",
        "env_cfg": {"dist_cfg": {"backend": "gloo" if on_cpu else "nccl"}},
        "cfg": {"model_wrapper_cfg": wrapper},
    }


def world_size() -> int:
    """Number of training processes: the group's, or what torchrun announced before there is a group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return get_dist_info()[1]
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def unwrap(model: nn.Module) -> Any:
    """The model itself, without its distributed wrapper."""
    if not is_model_wrapper(model):
        return model
    inner = model.module
    if not isinstance(inner, nn.Module):
        raise BenchError(f"{type(model).__name__} wraps no module")
    return inner
