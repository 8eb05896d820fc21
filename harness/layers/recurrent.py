"""Classifying a clip after every frame with a GRU over its features (AdaFocus V1).

Shapes: B clips, T steps, D features in, H hidden units, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """Logits at each of T steps, each resting on all frames so far: a GRU, dropout, one linear layer.

    Source: AdaFocus V1; docs/methods/adafocus-v1.md#modules.
    """

    def __init__(self, dim: int, num_classes: int, *, hidden: int = 1024, dropout: float = 0.8) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = hidden
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits of all steps (B, T, C)."""
        return self.classify(self.roll(x_BTD))

    def roll(self, x_BTD: Tensor, state_BH: Tensor | None = None) -> Tensor:
        """The GRU's states after each step (B, T, H); `state_BH` is its state before the first, zero if None."""
        out_BTH, _ = self.gru(x_BTD, None if state_BH is None else state_BH[None])
        return out_BTH

    def classify(self, states: Tensor) -> Tensor:
        """Logits (..., C) of states (..., H)."""
        return self.fc(self.dropout(states))

    @staticmethod
    def before(states_BTH: Tensor) -> Tensor:
        """The state that each step began with (B, T, H): zero, then those after the steps before."""
        return torch.cat((torch.zeros_like(states_BTH[:, :1]), states_BTH[:, :-1]), dim=1)
