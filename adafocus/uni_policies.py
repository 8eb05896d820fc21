"""Uni-AdaFocus's two policies, and how each learns without a gradient through pixels.

Where to look is learnt by deep-feature interpolation: the glance map is cropped instead of the frame, and
a linear layer classifies what was cut out. When to look is learnt from the logits that the weighted frames
are expected to give. Not so with UniAdaFocus's switch `pixel_gradient` (on at the tiny size, not in the
paper): then the spatial policy learns through the pixels of its patches too.

Shapes: B videos, T glance frames, D channels of the glance map, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.layers.crop import deformable_crop
from harness.layers.gumbel import gumbel_noise
from harness.layers.precision import no_autocast


class SpatialPolicy(nn.Module):
    """Boxes (y, x, height, width) from the glance maps, by 3D convolutions over time and space.

    Args:
        dim: D.
        side: Height and width of the glance map.
        channels: Of the hidden convolutions.
        time_kernel: 1 for a box per glance frame; T for one box per video, shared by all its frames.
        outputs: 4, or 2 for boxes of a fixed size, (y, x).
        centred: Start at small weights, so near 0.5 in every output.

    Source: docs/methods/uni-adafocus.md#modules, #on-tsm, #on-x3d.
    """

    def __init__(
        self,
        dim: int,
        side: int,
        channels: int = 128,
        time_kernel: int = 1,
        *,
        outputs: int = 4,
        centred: bool = False,
    ) -> None:
        super().__init__()
        last = nn.Conv3d(channels, outputs, (time_kernel, side, side), bias=False)
        if centred:
            nn.init.normal_(last.weight, std=0.001)
        self.encoder = nn.Sequential(
            nn.Conv3d(dim, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            last,
        )

    def forward(self, maps_BTDHW: Tensor) -> Tensor:
        """Actions (B, T, outputs) in [0, 1], or (B, 1, outputs) with `time_kernel` T.

        Runs in the weights' precision, also inside autocast.
        """
        with no_autocast(maps_BTDHW):
            maps_BDTHW = maps_BTDHW.to(next(self.parameters()).dtype).transpose(1, 2)
            return torch.sigmoid(self.encoder(maps_BDTHW)[..., 0, 0].transpose(1, 2))


class TemporalPolicy(nn.Module):
    """How important each glance frame is, by convolutions over time.

    Args:
        dim: D.
        channels: Of the hidden convolutions.
        centred: Start at small weights, so near 1 / T for every frame.

    Source: docs/methods/uni-adafocus.md#modules.
    """

    def __init__(self, dim: int, channels: int = 64, *, centred: bool = False) -> None:
        super().__init__()
        last = nn.Conv2d(channels, 1, 1, bias=False)
        if centred:
            nn.init.normal_(last.weight, std=0.001)
        self.Tconv = nn.Sequential(
            nn.Conv2d(dim, channels, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            last,
        )

    def forward(self, vectors_BTD: Tensor) -> Tensor:
        """Weights (B, T) that sum to 1 per video, in the weights' precision also inside autocast."""
        with no_autocast(vectors_BTD):
            vectors_BDT1 = vectors_BTD.to(next(self.parameters()).dtype).transpose(1, 2)[..., None]
            return self.Tconv(vectors_BDT1)[:, 0, :, 0].softmax(1)


class InterpolationHead(nn.Module):
    """Classifies what the boxes cut out of the glance maps; it trains the spatial policy and nothing else.

    Args:
        dim: D.
        num_classes: C.
        size: Side of the cropped map in cells.
        stretch: As for the pixels, see `deformable_crop`.

    Source: docs/methods/uni-adafocus.md#spatial-policy (the authors' `aux_fc`).
    """

    def __init__(self, dim: int, num_classes: int, size: int, stretch: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.stretch = size, stretch
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, maps_BTDHW: Tensor, actions_BT4: Tensor) -> Tensor:
        """Logits (B, C): the crops' mean over frames and space. The maps get no gradient.

        Args:
            actions_BT4: One box per glance frame, or (B, 1, 4), one per video.
        """
        actions = actions_BT4.expand(-1, maps_BTDHW.shape[1], -1).flatten(0, 1)
        crops_NDhw = deformable_crop(maps_BTDHW.detach().flatten(0, 1), actions, self.size, self.stretch)
        return self.fc(crops_NDhw.mean((2, 3)).unflatten(0, maps_BTDHW.shape[:2]).mean(1))


def per_candidate(actions_BTA: Tensor, candidates: int) -> Tensor:
    """Actions of T glance frames, interpolated linearly to (B, candidates, A)."""
    spread = F.interpolate(actions_BTA.transpose(1, 2), size=candidates, mode="linear", align_corners=False)
    return spread.transpose(1, 2)


def monte_carlo_logits(
    frame_logits_BTC: Tensor,
    weights_BT: Tensor,
    first: int,
    *,
    draws: int = 128,
    gone: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expected logits (B, C) of the first `first` frames, drawn one after the other without replacement.

    After i frames are gone the next one's expected logits are the weighted mean over those left; its
    denominator gets no gradient. That is averaged over i < `first` and over `draws` random draws of the i
    frames, made anew for each i.

    Args:
        frame_logits_BTC: Logits of each glance frame; detach them where only the weights are to learn.
        weights_BT: Importance, summing to 1 per video.
        gone: The frames (draws, B, i) that are taken out for i = 1, 2, ... `first` - 1; drawn where left out.

    Source: docs/methods/building-blocks.md#monte-carlo-loss.
    """
    weights = weights_BT.detach()
    if gone is None:
        gone = [_drawn(weights, count, draws, generator) for count in range(1, first)]
    share_BT = (1 / weights.sum(-1, keepdim=True)).expand_as(weights) / first  # i = 0: all frames are left
    for taken_RBi in gone:
        left_RBT = torch.ones_like(weights).repeat(len(taken_RBi), 1, 1).scatter(-1, taken_RBi, 0.0)
        share_BT = share_BT + (left_RBT / (left_RBT * weights).sum(-1, keepdim=True).clamp_min(1e-12)).mean(0) / first
    return torch.einsum("bt,btc->bc", weights_BT * share_BT, frame_logits_BTC)


def _drawn(weights_BT: Tensor, count: int, draws: int, generator: torch.Generator | None) -> Tensor:
    """`count` frames (draws, B, count) drawn by weight without replacement."""
    noise_RBT = gumbel_noise(weights_BT.expand(draws, *weights_BT.shape), generator)
    return (weights_BT.clamp_min(1e-30).log() + noise_RBT).topk(count, dim=-1).indices


def size_prior(actions: Tensor) -> Tensor:
    """Mean squared distance of the boxes' (..., 2:4) sizes from the whole frame's, which keeps them from collapsing."""
    return (actions[..., 2:] - 1).square().mean()
