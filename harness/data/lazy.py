"""Clips of which nothing is decoded before a recognizer asks for it.

    with LazyBatch([dataset], [3, 4], device) as batch:
        recognizer.infer(batch.views[0], settings, trace=trace)
        batch.decoded          # frames decoded of each video (V,)

A frame that is asked for is decoded, resized, cropped and moved to the device; it is bit-equal to the one of the same
dataset's clips. What a codec allows, and what is kept, see harness.data.reader.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from harness.contract.declarations import ClipRequest
from harness.contract.frames import Frames
from harness.data.clips import ClipDataset
from harness.data.lists import VideoEntry
from harness.data.reader import open_reader
from harness.errors import DataError, UsageError


class LazyBatch:
    """Some videos of a split, each with one decoder that all clip requests and views share.

    Memory: the resized frames that were asked for (no more than an eager batch holds), and what readers keep.

    Args:
        datasets: The split through the test pipeline, one dataset for each view; they differ in the view only.
        chosen: Places of the videos (V,) in the split.
        device: Where frames are handed out.

    Attributes:
        views: Of each view, {request: Frames}.
        seconds: Of the host so far, in `decode` (opening and decoding), `transform` (resize, crop) and `transfer`.

    Asking raises DataError naming the video where it is broken.
    """

    def __init__(
        self, datasets: Sequence[ClipDataset], chosen: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        first = datasets[0]
        if first.train:
            raise UsageError("lazy clips are of the test pipeline; training asks for all frames")
        self.seconds: dict[str, float] = defaultdict(float)
        numbers = [first.frame_numbers(index) for index in chosen]
        self._videos = [
            _Video(first, first.entries[index], own, self.seconds) for index, own in zip(chosen, numbers, strict=True)
        ]
        self.views = [
            {
                request.name: Frames(_Source(self._videos, dataset, request, torch.device(device), self.seconds))
                for request in dataset.requests
            }
            for dataset in datasets
        ]
        for video in self._videos:
            video.askers = sum(len(view) for view in self.views)

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def decoded(self) -> np.ndarray:
        """Frames decoded of each video (V,), those included that were decoded on the way or once more."""
        return np.asarray([video.reader.decoded for video in self._videos])

    def close(self) -> None:
        """Close all files and forget what was decoded."""
        for video in self._videos:
            video.reader.close()

    def __enter__(self) -> LazyBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Video:
    """A video, its reader, and how many clips may still be asked of it."""

    askers: int

    def __init__(
        self, dataset: ClipDataset, entry: VideoEntry, numbers: dict[str, np.ndarray], seconds: dict[str, float]
    ) -> None:
        self.dataset, self.entry, self.numbers, self.seconds = dataset, entry, numbers, seconds
        wanted = set(np.concatenate(list(numbers.values())).tolist())
        self.reader = open_reader(entry.path, wanted=wanted, prepare=self._stored, template=dataset.card.template)

    def frames(self, request: str, steps: np.ndarray) -> np.ndarray:
        """Resized frames (n, H, W, 3) at the steps (n,) of a request."""
        numbers = self.numbers[request][steps].tolist()
        try:
            found = {number: self.reader.read(number) for number in sorted(set(numbers))}
        except DataError as error:
            raise self.dataset.videos.quarantine(self.entry, error) from None
        return np.stack([found[number] for number in numbers])

    def leave(self) -> None:
        """One of the clips is asked for no more; after the last the file closes."""
        self.askers -= 1
        if not self.askers:
            self.reader.close()

    def _stored(self, frame: np.ndarray) -> np.ndarray:
        with _spent(self.seconds, "transform", instead_of="decode"):
            return self.dataset.stored(frame)


class _Source:
    """One request's clips of one view; see harness.contract.frames.Source."""

    def __init__(
        self,
        videos: Sequence[_Video],
        dataset: ClipDataset,
        request: ClipRequest,
        device: torch.device,
        seconds: dict[str, float],
    ) -> None:
        self.videos, self.dataset, self.request, self.seconds = videos, dataset, request, seconds
        self.device = device
        side = request.resolution or dataset.geometry.crop
        self.shape = (len(videos), request.frames, 3, side, side)

    def take(self, videos: np.ndarray, steps: np.ndarray) -> Tensor:
        clips = []
        for video, own in zip(videos, steps, strict=True):
            with _spent(self.seconds, "decode"):
                stored = self.videos[video].frames(self.request.name, own)
            with _spent(self.seconds, "transform"):
                clips.append(self.dataset.cropped(stored, self.request))
        with _spent(self.seconds, "transform"):
            batch = torch.from_numpy(np.stack(clips))
        with _spent(self.seconds, "transfer"):
            return batch.to(self.device)

    def leave(self, videos: np.ndarray) -> None:
        for video in videos:
            self.videos[video].leave()


@contextmanager
def _spent(seconds: dict[str, float], name: str, *, instead_of: str | None = None) -> Iterator[None]:
    """Add the time inside to `name`, and take it off a phase that contains it."""
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    seconds[name] += took
    if instead_of is not None:
        seconds[instead_of] -= took
