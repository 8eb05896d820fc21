"""The frames that a method is given to see: copied, or decoded, only when it asks for them.

    frames.at([0, 4])          # these steps of every video still there, (B, 2, 3, H, W) uint8
    frames.at(indices_BN)      # each video its own
    frames.all()

Shapes: B videos still there, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Source(Protocol):
    """Where frames come from: clips of a batch in memory, or files that are decoded on demand."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(V, T, 3, H, W), of all videos."""
        ...

    @property
    def device(self) -> torch.device:
        """Where frames are handed out."""
        ...

    def take(self, videos: np.ndarray, steps: np.ndarray) -> Tensor:
        """Frames (B, n, 3, H, W) of the videos (B,) at the steps (B, n)."""
        ...

    def leave(self, videos: np.ndarray) -> None:
        """The videos (B,) are asked for no more."""
        ...


class Frames:
    """One clip request's frames of the videos that are still there.

    Args:
        source: A tensor (V, T, 3, H, W), or a Source.
        videos: Which of its videos are there (B,), on the host; None for all.
    """

    def __init__(self, source: Tensor | Source, videos: np.ndarray | None = None) -> None:
        self.source = source
        self.videos = np.arange(source.shape[0]) if videos is None else videos
        self._whole = videos is None
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def steps(self) -> int:
        """T."""
        return int(self.source.shape[1])

    @property
    def device(self) -> torch.device:
        """Where frames are handed out."""
        return self.source.device

    def all(self) -> Tensor:
        """All frames (B, T, 3, H, W)."""
        if self._whole and isinstance(self.source, Tensor):
            return self.source
        return self.at(range(self.steps))

    def at(self, steps: Sequence[int] | Tensor) -> Tensor:
        """Frames (B, n, 3, H, W) at `steps` (n,) of every video, or (B, n) each video's own."""
        if isinstance(self.source, Tensor):
            step = torch.as_tensor(steps, device=self.device)
            if self._whole and step.ndim == 1:
                return self.source.index_select(1, step)
            # frame by frame: much faster than an index over two axes
            row = self._on_device()[:, None] * self.steps + step
            row = row.masked_fill((step < 0) | (step >= self.steps), -1)  # refused, and not another video's frame
            return self.source.flatten(0, 1).index_select(0, row.flatten()).unflatten(0, row.shape)
        own = np.asarray(steps.cpu() if isinstance(steps, Tensor) else steps)
        if (own < 0).any() or (own >= self.steps).any():
            raise IndexError(f"steps {own.min()} to {own.max()} of a clip of {self.steps} frames: out of range")
        return self.source.take(self.videos, np.broadcast_to(own, (len(self), own.shape[-1])))

    def keep(self, rows: np.ndarray, on_device: Tensor | None = None) -> Frames:
        """Those of the videos at the places `rows`; where these are on the device too, none are sent there again."""
        kept = Frames(self.source, self.videos[rows])
        if on_device is not None and isinstance(self.source, Tensor):
            kept._rows = self._on_device()[on_device]
        return kept

    def leave(self, rows: np.ndarray) -> None:
        """Of the videos at the places `rows` nothing more is asked: their files may close."""
        if not isinstance(self.source, Tensor):
            self.source.leave(self.videos[rows])

    def settled(self) -> Frames:
        """The same, holding no other video's frames in memory; what another Source holds is its own matter."""
        if isinstance(self.source, _Apart):
            return Frames(_Apart([_own(clip) for clip in self._clips()]))
        if self._whole or not isinstance(self.source, Tensor):
            return self
        return Frames(_Apart([clip.clone() for clip in self._clips()]) if self.device.type == "cpu" else self.all())

    def _clips(self) -> list[Tensor]:
        """Of frames in memory each video's own (T, 3, H, W)."""
        clips = self.source.clips if isinstance(self.source, _Apart) else self.source
        assert isinstance(clips, Tensor | list)
        return [clips[int(video)] for video in self.videos]

    @staticmethod
    def join(parts: Sequence[Frames]) -> Frames:
        """Several as one. In the host's memory frames stay where they are until they are asked for; on a GPU, where a
        copy costs less than a call for each video, those of the videos still there are copied.
        """
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part.source, Tensor | _Apart) for part in parts):
            if parts[0].device.type == "cpu":
                return Frames(_Apart([clip for part in parts for clip in part._clips()]))
            return Frames(torch.cat([part.all() for part in parts]))
        return Frames(_Joined(parts))

    def _on_device(self) -> Tensor:
        if self._rows is None:
            self._rows = torch.from_numpy(self.videos).to(self.device)
        return self._rows


class _Apart:
    """Clips (T, 3, H, W) in the host's memory that do not lie side by side."""

    def __init__(self, clips: list[Tensor]) -> None:
        self.clips = clips

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (len(self.clips), *tuple(self.clips[0].shape))  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.clips[0].device

    def take(self, videos: np.ndarray, steps: np.ndarray) -> Tensor:
        found = self.clips[0].new_empty((*steps.shape, *self.clips[0].shape[1:]))
        for frames, video, own in zip(found, videos, torch.from_numpy(np.array(steps)), strict=True):
            torch.index_select(self.clips[video], 0, own, out=frames)
        return found

    def leave(self, videos: np.ndarray) -> None:
        """Clips go with the last who holds them."""


class _Joined:
    """Sources side by side."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.parts = list(parts)
        self._origin = np.concatenate([np.full(len(part), i) for i, part in enumerate(parts)])
        self._place = np.concatenate([np.arange(len(part)) for part in parts])

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        first = self.parts[0].source.shape
        return (len(self._origin), *tuple(first)[1:])  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def take(self, videos: np.ndarray, steps: np.ndarray) -> Tensor:
        found: list[Tensor] = [torch.empty(0)] * len(videos)
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(self._origin[videos] == number)
            if len(rows):
                frames = part.keep(self._place[videos[rows]]).at(torch.from_numpy(steps[rows]))
                for row, own in zip(rows, frames, strict=True):
                    found[row] = own
        return torch.stack(found)

    def leave(self, videos: np.ndarray) -> None:
        for number, part in enumerate(self.parts):
            part.leave(self._place[videos[self._origin[videos] == number]])


def _own(clip: Tensor) -> Tensor:
    """The clip in memory of its own."""
    return clip if clip.untyped_storage().nbytes() == clip.nbytes else clip.clone()


def as_frames(clips: Mapping[str, Tensor | Frames]) -> dict[str, Frames]:
    """Clips of a batch as what a method is given."""
    return {name: clip if isinstance(clip, Frames) else Frames(clip) for name, clip in clips.items()}
