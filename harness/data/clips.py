"""Clips for training and evaluation: a torch dataset over an opened `VideoSet`, and what batches them.

    dataset = ClipDataset(videos, "train", method.clip_requests(stage=stage), train=True, seed=0)
    dataset.set_epoch(3)
    batch = collate([dataset[i] for i in (0, 1)])      # inputs {request: (B, T, 3, H, W) uint8}

All randomness of a sample is keyed by (seed, epoch, index): order, workers and resuming do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

import harness.compat.imports  # noqa: F401  (before mmaction)
from harness.contract.declarations import ClipRequest
from harness.data import transforms
from harness.data.decode import iterate, probe
from harness.data.lists import VideoEntry
from harness.data.sampling import sample
from harness.data.videos import VideoSet
from harness.errors import DataError, UsageError, unknown

from mmaction.structures import ActionDataSample

TWO_GIB = 2 << 30


class FrameCache:
    """Whole videos, decoded and resized, kept in memory while they fit; shared by all datasets of a process."""

    def __init__(self) -> None:
        self.videos: dict[tuple[str, int | None, str], np.ndarray] = {}
        self.bytes = 0

    def clear(self) -> None:
        """Forget everything."""
        self.videos.clear()
        self.bytes = 0

    def put(self, key: tuple[str, int | None, str], frames: np.ndarray, limit: int) -> bool:
        """Keep `frames` if all that is kept stays within `limit` bytes; says whether it was kept."""
        if self.bytes + frames.nbytes > limit:
            return False
        self.videos[key] = frames
        self.bytes += frames.nbytes
        return True


CACHE = FrameCache()


class ClipDataset(Dataset):
    """One split of a dataset, seen through a method's clip requests.

    Args:
        videos: The opened dataset.
        split: train, calib, val or test.
        requests: What the method wants from every video; a `subset` after the request it draws from.
        train: The card's training pipeline and random frames; else its test pipeline.
        seed: Training seed.
        view, views: Test crop (`harness.data.transforms.draw_test`).
        cache_bytes: Memory of this process for decoded videos; a split is cached only if all of it is
            expected to fit (divided among the loader's workers). 0 turns caching off.
        repeats: Samples per video and epoch (`Stage.views_per_epoch`); sample i shows video i mod N.

    Attributes:
        tally: `frames` that this process decoded for it, wanted or not.
    """

    def __init__(
        self,
        videos: VideoSet,
        split: str,
        requests: Sequence[ClipRequest],
        *,
        train: bool,
        seed: int,
        view: int = 0,
        views: str = "centre",
        cache_bytes: int = TWO_GIB,
        repeats: int = 1,
    ) -> None:
        if split not in videos.splits:
            raise unknown("split", split, videos.splits)
        if not requests or len({r.name for r in requests}) != len(requests):
            raise UsageError(f"clip requests need distinct names: {[r.name for r in requests]}")
        self.videos, self.entries = videos, videos.splits[split]
        self.card, self.geometry = videos.card, videos.card.geometry[videos.size]
        self._side = transforms.stored_side(self.geometry, self.card.pipeline, train=train)
        self.split, self.requests = split, tuple(requests)
        self.train, self.seed, self.repeats = train, seed, repeats
        self.view, self.views = view, views
        self.cache_bytes = cache_bytes
        self.tally: Counter[str] = Counter()
        self._cached: bool | None = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.entries) * self.repeats

    def set_epoch(self, epoch: int) -> None:
        """Key the randomness of the next epoch; call it before iterating (persistent workers see it)."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{'inputs': {request: uint8 (T, 3, H, W)}, 'data_samples': ActionDataSample}`.

        The sample holds all labels, first the one to train on (`trained_first`); its metainfo are video_id, index
        (of the sample), split, frame_indices {request: list} and positions {subset request: list}.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self.entries[index % len(self.entries)]
        rng = np.random.default_rng([self.seed, int(self._epoch), index]) if self.train else None
        whole = self._whole(entry)
        indices, positions = sample(self.requests, self._length(entry, whole), rng)
        frames = self._frames(entry, whole, indices)
        inputs = self._transform(frames, rng)
        labels = entry.labels if rng is None else trained_first(entry.labels, rng)
        data_sample = ActionDataSample().set_gt_label(torch.tensor(labels))
        data_sample.set_metainfo({
            "video_id": entry.id, "index": index, "split": self.split,
            "frame_indices": {name: [int(i) for i in which] for name, which in indices.items()},
            "positions": {name: [int(i) for i in which] for name, which in positions.items()},
        })
        return {"inputs": inputs, "data_samples": data_sample}

    def frame_numbers(self, index: int) -> dict[str, np.ndarray]:
        """The frames (T,) that each request sees of video `index` at test."""
        return sample(self.requests, self._length(self.entries[index], None), None)[0]

    def stored(self, frame: np.ndarray) -> np.ndarray:
        """A decoded frame (H, W, 3), resized as clips are cropped from it."""
        return transforms.resize_short(frame, self._side, self.card.pipeline)

    def cropped(self, frames: np.ndarray, request: ClipRequest) -> np.ndarray:
        """Stored frames (T, H, W, 3) as the test clip (T, 3, S, S) of a request."""
        height, width = frames.shape[1:3]
        return transforms.apply(self._draw(height, width, None), frames, request.resolution)

    def _whole(self, entry: VideoEntry) -> np.ndarray | None:
        """The whole video (N, H, W, 3), resized, where the split is cached."""
        if not self.cache_bytes:
            return None
        key = (str(entry.path), self._side, self.card.pipeline)
        if key in CACHE.videos:
            return CACHE.videos[key]
        if self._cached is None:
            self._cached = self._fits()
        if not self._cached or entry.frames is None:
            return None
        frames = self._decode(entry, range(entry.frames))
        whole = np.stack([frames[i] for i in range(entry.frames)])
        self._cached = CACHE.put(key, whole, self._limit())  # full: decode only what is asked for from now on
        return whole

    def _limit(self) -> int:
        worker = get_worker_info()
        return self.cache_bytes // (worker.num_workers if worker else 1)

    def _fits(self) -> bool:
        """Whether the split will fit into this process's share of the memory, judged by its first video."""
        if any(e.frames is None for e in self.entries):
            return False
        first = self._decode(self.entries[0], [0])[0]
        return sum(e.frames or 0 for e in self.entries) * first.nbytes <= self._limit()

    def _length(self, entry: VideoEntry, whole: np.ndarray | None) -> int:
        if whole is not None:
            return len(whole)
        return entry.frames or probe(entry.path, template=self.card.template).frames

    def _frames(self, entry: VideoEntry, whole: np.ndarray | None, indices: Mapping[str, np.ndarray]) -> dict:
        """{request: resized frames (T, H, W, 3)}; each distinct frame is decoded once."""
        if whole is not None:
            return {name: whole[which] for name, which in indices.items()}
        decoded = self._decode(entry, np.concatenate(list(indices.values())))
        return {name: np.stack([decoded[int(i)] for i in which]) for name, which in indices.items()}

    def _decode(self, entry: VideoEntry, numbers: Any) -> dict[int, np.ndarray]:
        frames = iterate(entry.path, [int(n) for n in numbers], template=self.card.template, tally=self.tally)
        try:
            return {number: self.stored(frame) for number, frame in frames}
        except DataError as error:
            raise self.videos.quarantine(entry, error) from None

    def _transform(self, frames: Mapping[str, np.ndarray], rng: np.random.Generator | None) -> dict[str, Tensor]:
        height, width = next(iter(frames.values())).shape[1:3]
        shared = self._draw(height, width, rng)
        inputs = {}
        for request in self.requests:
            draw = self._draw(height, width, rng) if request.crop == "own" and rng is not None else shared
            inputs[request.name] = torch.from_numpy(transforms.apply(draw, frames[request.name], request.resolution))
        return inputs

    def _draw(self, height: int, width: int, rng: np.random.Generator | None) -> transforms.SpatialDraw:
        if rng is None:
            drawn = transforms.draw_test(self.geometry, height, width, self.view, self.views)
        else:
            drawn = transforms.draw_train(self.card, self.geometry, height, width, rng)
        return replace(drawn, pipeline=self.card.pipeline)


def trained_first(labels: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """A video's labels with the one to train on first: of two the smaller number with 2/3, of more any alike.

    So the list readers of AR-Net and AdaFocus draw it (docs/data.md#lists); one label draws nothing.
    """
    if len(labels) == 2:
        low, high = sorted(labels)
        return (low, high) if rng.random() < 2 / 3 else (high, low)
    return tuple(labels[i] for i in rng.permutation(len(labels))) if len(labels) > 2 else tuple(labels)


@FUNCTIONS.register_module(name="collate_clips")
def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """List of samples -> `{'inputs': {request: (B, T, 3, H, W)}, 'data_samples': [B]}`."""
    names = items[0]["inputs"]
    return {
        "inputs": {name: torch.stack([item["inputs"][name] for item in items]) for name in names},
        "data_samples": [item["data_samples"] for item in items],
    }
