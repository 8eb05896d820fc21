"""A stage's optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from harness.contract.declarations import Stage, below
from harness.errors import BenchError


def optimizer_groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Parameter groups of a stage: the longest matching prefix of `stage.groups` sets the multipliers."""
    sorted_groups = sorted(
        ((prefix, group) for group in stage.groups for prefix in group.modules), key=lambda item: -len(item[0])
    )
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((g for prefix, g in sorted_groups if below(name, prefix)), None)
        key = (group.lr_mult, group.decay_mult) if group else (1.0, 1.0)
        found.setdefault(key, []).append(parameter)
    if not found:
        raise BenchError(f"stage {stage.name!r} of {type(model).__name__} trains no parameter")
    return [
        {"params": parameters, "lr": stage.lr * lr_mult, "weight_decay": stage.weight_decay * decay_mult}
        for (lr_mult, decay_mult), parameters in found.items()
    ]


def build_optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The stage's torch optimizer."""
    groups = optimizer_groups(model, stage)
    if stage.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=stage.lr, momentum=stage.momentum)
    return getattr(torch.optim, stage.optimizer)(groups, lr=stage.lr)


def schedulers(stage: Stage, iterations_per_epoch: int) -> list[dict[str, Any]]:
    """mmengine parameter schedulers of a stage."""
    total = stage.epochs * iterations_per_epoch
    if stage.schedule == "cosine":
        return [{"type": "CosineAnnealingLR", "T_max": stage.epochs, "eta_min": 0.0, "by_epoch": True}]
    if stage.schedule == "step":
        return [{"type": "MultiStepLR", "milestones": list(stage.milestones), "gamma": 0.1, "by_epoch": True}]
    if stage.schedule == "constant" or total < 3:
        return []
    up = min(total - 2, max(1, math.floor(stage.warmup * total)))
    return [
        {"type": "LinearLR", "start_factor": 0.04, "begin": 0, "end": up, "by_epoch": False},
        {
            "type": "CosineAnnealingLR",
            "T_max": total - up,
            "begin": up,
            "end": total,
            "eta_min": 0.0,
            "by_epoch": False,
        },
    ]
