"""Frames: what a method asks for, from memory and from a source that fetches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.contract.frames import Frames


class Fetched:
    """A source that notes what was asked of it."""

    def __init__(self, clips: Tensor) -> None:
        self.clips, self.asked = clips, list[tuple[int, int]]()
        self.shape, self.device = tuple(clips.shape), clips.device

    def take(self, videos: np.ndarray, steps: np.ndarray) -> Tensor:
        self.asked += [(int(v), int(s)) for v, own in zip(videos, steps, strict=True) for s in own]
        return self.clips[torch.from_numpy(videos)[:, None], torch.from_numpy(steps.copy())]


def clips(videos: int = 4) -> Tensor:
    return torch.arange(videos * 3 * 3 * 2 * 2).view(videos, 3, 3, 2, 2)


def test_memory_and_source_agree() -> None:
    x, own = clips(), torch.tensor([[0, 2], [1, 1]])
    for frames in (Frames(x), Frames(Fetched(x))):
        rest = frames.keep(np.array([3, 1]))
        assert (len(rest), rest.steps, rest.device) == (2, 3, x.device)
        assert torch.equal(frames.all(), x)
        assert torch.equal(rest.all(), x[[3, 1]])
        assert torch.equal(frames.keep(np.array([1, 0, 2, 3])).all(), x[[1, 0, 2, 3]])
        assert torch.equal(rest.at([2, 0]), x[[3, 1]][:, [2, 0]])
        assert torch.equal(rest.at(own), torch.stack((x[3, [0, 2]], x[1, [1, 1]])))
        assert torch.equal(rest.keep(np.array([1])).at([0]), x[1:2, :1])


@pytest.mark.parametrize("step", [-1, 3])
def test_a_frame_that_is_not_there_is_refused(step: int) -> None:
    """And is not another video's."""
    with pytest.raises((IndexError, RuntimeError), match="range|bounds"):
        Frames(clips()).at([step])
    with pytest.raises((IndexError, RuntimeError), match="range|bounds"):
        Frames(clips()).keep(np.array([0, 2])).at([step])


def test_only_what_is_asked_for_is_fetched() -> None:
    source = Fetched(clips())
    Frames(source).keep(np.array([2])).at([1])
    assert source.asked == [(2, 1)]


def test_settled_frames_hold_their_own_videos_only() -> None:
    x, rows = clips(), np.array([3, 1])
    of_one = Frames(x).keep(rows).settled()
    of_lists = Frames.join([Frames(x[:2]), Frames(x[2:])]).keep(rows).settled()
    for frames in (of_one, of_lists, of_one.settled(), of_lists.keep(np.array([0, 1])).settled()):
        assert torch.equal(frames.all(), x[[3, 1]])
        assert torch.equal(frames.at(torch.tensor([[0, 2], [1, 1]])), torch.stack((x[3, [0, 2]], x[1, [1, 1]])))
        assert all(clip.untyped_storage().nbytes() == clip.nbytes for clip in frames._clips())
    assert of_one.settled()._clips()[0] is of_one._clips()[0], "nothing is copied twice"
    assert Frames(x).settled().all() is x


def test_joined() -> None:
    x, y = clips(), clips() + 1000
    for wrap in (lambda x: x, Fetched):
        joined = Frames.join([Frames(wrap(x)).keep(np.array([3])), Frames(wrap(y)).keep(np.array([0, 2]))])
        assert torch.equal(joined.all(), torch.cat((x[3:], y[[0, 2]])))
        rest = joined.keep(np.array([2, 0]))
        assert torch.equal(rest.at([1]), torch.stack((y[2, 1:2], x[3, 1:2])))
