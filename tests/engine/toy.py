"""A method of arithmetic with exits: it adds a number that a component reads off each frame."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.contract.components import component
from harness.contract.declarations import ClipRequest
from harness.contract.frames import Frames
from harness.contract.recognizer import EfficientRecognizer

EXITS = 4
THRESHOLDS = {"thresholds": [7.0, 1e8, 14.0, -1e8]}
"""Somebody may leave after frames 1, 3 and 4."""


class State(NamedTuple):
    frames: Frames
    total_B: Tensor | None


class Adder(EfficientRecognizer):
    """Surer the larger the sum of the first pixels so far; each frame costs one row of one multiplication."""

    def __init__(self, exits: int = EXITS) -> None:
        super().__init__(2, resolution=32, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.exits, self.exit_score = exits, "logit"
        self.one = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.one.weight)
        self.calls: list[tuple[int, int, int]] = []
        self.eval()

    def clip_requests(self, point: Any = None, *, stage: Any = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(EXITS),)

    @component("read")
    def read(self, pixels_N1: Tensor) -> Tensor:
        return self.one(pixels_N1)

    def begin(self, clips: Any, generator: torch.Generator | None = None) -> State:
        return State(clips["frames"], None)

    def segment(self, state: State, first: int, last: int) -> tuple[State, Tensor]:
        self.calls.append((first, last, len(state.frames)))
        end = last + 1 if self.exits else EXITS
        pixels_BT = state.frames.at(range(first, end))[:, :, 0, 0, 0].float()
        total = self.read(pixels_BT.reshape(-1, 1)).view(pixels_BT.shape).sum(1)
        total = total if state.total_B is None else total + state.total_B
        return State(state.frames, total), torch.stack((total, -total), 1)


def videos(number: int, *, seed: int = 0) -> Tensor:
    """Clips (number, T, 3, 2, 2), uint8; about half of them leave at the first exit."""
    return torch.randint(0, 15, (number, EXITS, 3, 2, 2), generator=torch.Generator().manual_seed(seed)).byte()
