"""Where AdaFocus looks: the policy networks of V2 and V1, and places that need none.

Shapes: B videos, T frames, D channels, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.layers.ppo import ActorCritic
from harness.layers.precision import no_autocast


class PatchPolicy(nn.Module):
    """Where to look: per frame a 1x1 convolution and a linear layer, over frames a GRU, out of it (a_y, a_x).

    Args:
        dim: Channels of the glance map.
        side: Height and width of the glance map.
        channels: Of the 1x1 convolution.
        hidden: Width of the linear layer and the GRU.
        centred: Start near (0.5, 0.5).

    Source: docs/methods/adafocus-v2.md#modules.
    """

    def __init__(self, dim: int, side: int, channels: int, hidden: int, *, centred: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_encoder(dim, side, channels, hidden, nn.Tanh))
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)
        if centred:
            _centre(self.fc)

    def forward(self, maps_BTDHW: Tensor, state_BH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (B, T, 2) in [0, 1] and the GRU's state after the last frame (B, H).

        Runs in the weights' precision, also inside autocast: bfloat16 would move the patch.
        """
        with no_autocast(maps_BTDHW):
            maps = maps_BTDHW.to(self.fc.weight.dtype)
            codes_BTH = self.encoder(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
            out, state_1BH = self.gru(codes_BTH, None if state_BH is None else state_BH[None])
            return torch.sigmoid(self.fc(out)), state_1BH[0]


class ClipPolicy(nn.Module):
    """Where to look in a whole clip: a 1x1 convolution over all frames' channels, three linear layers, (a_y, a_x).

    Args:
        channels_in: T * D, the maps of all glance frames stacked.
        side: Height and width of the glance map.
        channels: Of the 1x1 convolution.
        hidden: Width of the first linear layer; the second has half of it.
        centred: Start near (0.5, 0.5).

    Source: docs/methods/adafocus-v2.md#on-tsm.
    """

    def __init__(self, channels_in: int, side: int, channels: int, hidden: int, *, centred: bool = False) -> None:
        super().__init__()
        last = nn.Linear(hidden // 2, 2)
        self.layers = nn.Sequential(
            *_encoder(channels_in, side, channels, hidden, nn.Tanh),
            nn.Linear(hidden, hidden // 2),
            nn.BatchNorm1d(hidden // 2),
            nn.Tanh(),
            last,
        )
        if centred:
            _centre(last)

    def forward(self, maps_BEHW: Tensor) -> Tensor:
        """Actions (B, 2) in [0, 1] from the stacked maps (B, T * D, h, w), in the weights' precision."""
        with no_autocast(maps_BEHW):
            return torch.sigmoid(self.layers(maps_BEHW.to(next(self.parameters()).dtype)))


def grid_policy(dim: int, side: int, channels: int, hidden: int, actions: int) -> ActorCritic:
    """V1's actor-critic: per frame a 1x1 convolution without batch norm and a linear layer, then a GRU.

    Args:
        dim: Channels of the glance map.
        side: Height and width of the glance map.
        channels: Of the 1x1 convolution.
        hidden: Width of the linear layer and the GRU.
        actions: Number of choices.

    Source: AdaFocus V1; docs/methods/adafocus-v1.md#modules.
    """
    encoder = nn.Sequential(
        nn.Conv2d(dim, channels, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden),
        nn.ReLU(),
    )
    return ActorCritic(encoder, hidden, hidden, actions)


def gaussian_policy(channels_in: int, side: int, channels: int, hidden: int) -> ActorCritic:
    """V1-TSM's actor-critic: a 1x1 convolution over all frames' channels, a linear layer, a GRU that takes one step.

    The actor's two outputs, after a sigmoid, are the mean (a_y, a_x) of a Gaussian.

    Args:
        channels_in: T * D, the maps of all glance frames stacked.
        side: Height and width of the glance map.
        channels: Of the 1x1 convolution.
        hidden: Width of the linear layer and the GRU.

    Source: docs/methods/adafocus-v1.md#on-tsm.
    """
    encoder = nn.Sequential(*_encoder(channels_in, side, channels, hidden, nn.ReLU))
    return ActorCritic(encoder, hidden, hidden, 2)


def cell_places(cells: Tensor, grid: int) -> Tensor:
    """Places (..., 2) in {0, 1 / (grid - 1), ..., 1}^2 of the cells (...), counted row by row.

    Source: AdaFocus V1, its code (docs/methods/adafocus-v1.md#patch-selection).
    """
    return torch.stack((cells // grid, cells % grid), dim=-1) / (grid - 1)


def scattered(x_BT3HW: Tensor) -> Tensor:
    """Places (B, T, 2) that look random but follow from each frame's own pixels.

    So a reference with random patches gives a video the same result in any batch and every run.
    """
    bits = (x_BT3HW.sum((2, 3, 4), dtype=torch.float64) * 1024).long()
    for _ in range(3):  # mix all bits into the low 32 (a multiplicative hash with xor-shifts)
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return torch.stack((bits & 0xFFFF, bits >> 16), dim=-1).float() / 0xFFFF


def _encoder(
    dim: int, side: int, channels: int, hidden: int, activation: Callable[[], nn.Module]
) -> tuple[nn.Module, ...]:
    """From a map to a code: a 1x1 convolution and a linear layer, each with batch norm and `activation`."""
    return (
        nn.Conv2d(dim, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        activation(),
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden),
        nn.BatchNorm1d(hidden),
        activation(),
    )


def _centre(last: nn.Linear) -> None:
    """Start near (0.5, 0.5) behind a sigmoid."""
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
