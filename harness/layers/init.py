"""Initialisers and optimizer groups that several papers share."""

from __future__ import annotations

from torch import nn

from harness.contract.declarations import ParamGroup


def normal_linear(inputs: int, outputs: int, std: float = 0.001) -> nn.Linear:
    """A linear layer with N(0, std) weights and zero bias (the TSN family's classifiers and policy heads)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, 0.0, std)
    nn.init.zeros_(layer.bias)
    return layer


def tsn_groups(model: nn.Module) -> tuple[ParamGroup, ...]:
    """Optimizer groups of the TSN family's SGD recipes (TSM and AR-Net code, with `fc_lr5`).

    Every linear layer learns 5 times, its bias 10 times as fast; biases and batch norms are not decayed.
    """
    linear, biases, norms = [], [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            linear.append(f"{name}.weight")
            biases.append(f"{name}.bias")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            norms.append(name)
    groups = (
        ParamGroup(tuple(linear), lr_mult=5.0),
        ParamGroup(tuple(biases), lr_mult=10.0, decay_mult=0.0),
        ParamGroup(tuple(norms), decay_mult=0.0),
    )
    return tuple(group for group in groups if group.modules)
