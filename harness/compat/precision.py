"""Mixed precision on any device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from harness.errors import UsageError


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
