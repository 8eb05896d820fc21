"""Where AdaFocus looks: the policy networks of V2 and V1, and places that need none.

Shapes: B videos, T frames, D channels, H hidden units.
"""

from __future__ import annotations

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

    Source: paper section 3.2; adafocus.md 5.1.
    """

    def __init__(self, dim: int, side: int, channels: int, hidden: int, *, centred: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(dim, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden),
            nn.BatchNorm1d(hidden),
            nn.Tanh(),
        )
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)
        if centred:
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward(self, maps_BTDHW: Tensor, state_1BH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (B, T, 2) in [0, 1] and the GRU's state after the last frame (1, B, H).

        Runs in the weights' precision, also inside autocast: bfloat16 would move the patch.
        """
        with no_autocast(maps_BTDHW):
            maps = maps_BTDHW.to(self.fc.weight.dtype)
            codes_BTH = self.encoder(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
            out, state_1BH = self.gru(codes_BTH, state_1BH)
            return torch.sigmoid(self.fc(out)), state_1BH


def grid_policy(dim: int, side: int, channels: int, hidden: int, actions: int) -> ActorCritic:
    """V1's actor-critic: per frame a 1x1 convolution without batch norm and a linear layer, then a GRU.

    Args:
        dim: Channels of the glance map.
        side: Height and width of the glance map.
        channels: Of the 1x1 convolution.
        hidden: Width of the linear layer and the GRU.
        actions: Number of choices.

    Source: AdaFocus V1 section 3.2; adafocus.md 2.1.
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

    Source: adafocus.md 3.
    """
    encoder = nn.Sequential(
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
    )
    return ActorCritic(encoder, hidden, hidden, 2)


def cell_places(cells: Tensor, grid: int) -> Tensor:
    """Places (..., 2) in {0, 1 / (grid - 1), ..., 1}^2 of the cells (...), counted row by row.

    Source: AdaFocus V1, its code (adafocus.md 2.2).
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
