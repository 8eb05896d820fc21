"""Classifying a clip after every frame from the running maximum of its features (FrameExit, AdaFocus V2, Uni-AdaFocus).

Shapes: B clips, T steps, D features in, H features whose maximum runs, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningMaxClassifier(nn.Module):
    """Logits at each of T steps, each resting on all frames so far.

    As published: an MLP (D -> `hidden`, batch norm, ReLU) per frame, the running maximum over steps, a
    linear layer of its own per step. `hidden=0` takes the features as they are, `shared` uses one linear
    layer at all steps; both suit small data.

    Args:
        dim: D.
        num_classes: C.
        steps: T; fixed when the linear layers are per step.
        hidden: H of the MLP, 0 for none.
        shared: One linear layer for all steps.
        dropout: Before the linear layers.
        context: Features of the whole clip that the linear layers see beside the running maximum.

    Source: AdaFocus V2; docs/methods/building-blocks.md#running-max-classifier.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        steps: int,
        *,
        hidden: int = 4096,
        shared: bool = False,
        dropout: float = 0.2,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.dim = dim
        self.width, self.context = hidden or dim, context
        self.embed: nn.Module = (
            nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU()) if hidden else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(self.width + context, num_classes) for _ in range(1 if shared else steps))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits of all steps (B, T, C)."""
        return self.classify(self.accumulate(x_BTD))

    def accumulate(self, x_BTD: Tensor, peak_BH: Tensor | None = None) -> Tensor:
        """Running maxima (B, T, H); `peak_BH` is the maximum over the steps that came before, if any."""
        z_BTH = self.embed(x_BTD.flatten(0, 1)).unflatten(0, x_BTD.shape[:2])
        if peak_BH is not None:
            z_BTH = torch.cat((peak_BH[:, None], z_BTH), dim=1)
        peaks = z_BTH.cummax(dim=1).values
        return peaks if peak_BH is None else peaks[:, 1:]

    def classify(self, peaks_BTH: Tensor, first: int = 0, context_BE: Tensor | None = None) -> Tensor:
        """Logits (B, t, C) of the maxima at steps `first`, `first` + 1, ...; `context_BE` goes behind each of them."""
        if context_BE is not None:
            peaks_BTH = torch.cat((peaks_BTH, context_BE[:, None].expand(-1, peaks_BTH.shape[1], -1)), dim=-1)
        peaks_BTH = self.dropout(peaks_BTH)
        if len(self.heads) == 1:
            return self.heads[0](peaks_BTH)
        return torch.stack([self.heads[first + i](p) for i, p in enumerate(peaks_BTH.unbind(1))], dim=1)
