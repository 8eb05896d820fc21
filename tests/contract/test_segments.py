"""The loop over exits and the states between them, on a method of arithmetic."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.contract.exits import NEVER
from harness.contract.frames import Frames, as_frames
from harness.contract.segments import every_exit, join, keep, stops, until_sure
from harness.contract.trace import Trace


class State(NamedTuple):
    frames: Frames
    total_B: Tensor
    extra: dict[str, Tensor | None]


class Sum:
    """Adds one frame's first pixel per segment; surer the larger the sum."""

    exits, exit_score = 4, "logit"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def begin(self, clips: Any, generator: torch.Generator | None = None) -> State:
        frames = clips["frames"]
        return State(frames, torch.zeros(len(frames)), {"index": torch.arange(len(frames)), "nothing": None})

    def segment(self, state: State, first: int, last: int) -> tuple[State, Tensor]:
        self.calls.append((first, last, len(state.frames)))
        total = state.total_B + state.frames.at(range(first, last + 1))[:, :, 0, 0, 0].float().sum(1)
        return state._replace(total_B=total), torch.stack((total, -total), 1)


def clips(pixels: list[list[int]]) -> dict[str, Frames]:
    x = torch.zeros(len(pixels), 4, 3, 2, 2, dtype=torch.uint8)
    x[:, :, 0, 0, 0] = torch.tensor(pixels, dtype=torch.uint8)
    return as_frames({"frames": x})


PIXELS = [[9, 1, 1, 1], [1, 1, 1, 1], [1, 1, 9, 1]]


def test_stops() -> None:
    assert stops([NEVER] * 3) == [2]
    assert stops([0.5, NEVER, 0.5, -NEVER]) == [0, 2, 3]
    assert stops([NEVER, -NEVER, 0.5]) == [1]


@pytest.mark.parametrize("never", [1, 0])
def test_videos_leave_and_segments_are_merged(never: int) -> None:
    method, trace = Sum(), Trace(3)
    thresholds = [8.0, NEVER if never else 100.0, 10.0, -NEVER]
    logits = until_sure(method, clips(PIXELS), thresholds, trace, None)
    assert logits[:, 0].tolist() == [9.0, 4.0, 11.0]
    assert trace.exit_step is not None and trace.exit_step.tolist() == [0, 3, 2]
    between = [(1, 2, 2)] if never else [(1, 1, 2), (2, 2, 2)]
    assert method.calls == [(0, 0, 3), *between, (3, 3, 1)]


def test_a_score_at_the_threshold_leaves() -> None:
    trace = Trace(3)
    until_sure(Sum(), clips(PIXELS), [9.0, NEVER, NEVER, -NEVER], trace, None)
    assert trace.exit_step is not None and trace.exit_step.tolist() == [0, 3, 3]


def test_every_exit() -> None:
    assert every_exit(Sum(), clips(PIXELS))[..., 0].tolist() == [[9, 10, 11, 12], [1, 2, 3, 4], [1, 2, 11, 12]]


def test_states_are_split_and_put_together_again() -> None:
    method = Sum()
    state, _ = method.segment(method.begin(clips(PIXELS)), 0, 1)
    rows = [np.array([2]), np.array([0, 1])]
    parts = [keep(state, own, torch.from_numpy(own)) for own in rows]
    whole = join(parts)
    assert whole.extra["index"].tolist() == [2, 0, 1] and whole.extra["nothing"] is None
    assert whole.frames.at([2])[:, 0, 0, 0, 0].tolist() == [9, 1, 1]
    again, logits = method.segment(whole, 2, 3)
    assert logits[:, 0].tolist() == [12.0, 12.0, 4.0]
    assert len(again.frames) == 3


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="not str"):
        keep({"name": "x"}, np.array([0]), torch.tensor([0]))
