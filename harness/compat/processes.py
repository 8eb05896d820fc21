"""Which device and how many processes mmengine's Runner uses."""

from __future__ import annotations

import inspect
import os
from typing import Any

import mmengine.device.utils as device_utils
import torch
from mmengine.dist import get_dist_info
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import BenchError, UsageError


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
