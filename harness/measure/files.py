"""From file to logits: what a user of files pays, with lazy clips and, in turns with them, with eager ones.

    measured, outputs = measure_files(recognizer, datasets, [[0, 1], [2, 3]], point_settings, device=device)

One sample opens the files of a batch, decodes, resizes, crops, moves, infers and closes them. Lazy clips decode what
the recognizer asks for (harness.data.lazy); eager ones decode all requested frames before, as an evaluation does: from
the file's start, without seeking. Nothing comes from a cache of ours; the files themselves lie in the operating
system's, since the warm-up has read them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contract.declarations import EMPTY
from harness.contract.frames import Frames
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.lazy import LazyBatch
from harness.measure.latency import PHASES, Output, measure_latency, to_device
from harness.measure.views import Viewed, joined

WAYS = ("lazy", "eager")
LOADING = PHASES[:-1]


@dataclass
class _Spent:
    """What forwards of one way took before the model saw anything."""

    videos: int = 0
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class FromFiles(Viewed):
    """A recognizer whose clips are places (B,) in a split, named after one of `WAYS`; its files are opened by `infer`.

    Args:
        recognizer: The one that sees the clips.
        datasets: The split through the test pipeline without a cache, a dataset for each view.
    """

    def __init__(self, recognizer: EfficientRecognizer, datasets: Sequence[ClipDataset]) -> None:
        super().__init__(recognizer)
        self.datasets = list(datasets)
        self.spent = {way: _Spent() for way in WAYS}

    def infer(
        self,
        clips: Mapping[str, Tensor | Frames],
        point: Mapping[str, Any] = EMPTY,
        *,
        trace: Trace,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean logits (B, C) of all views."""
        ((way, places),) = clips.items()
        assert isinstance(places, Tensor)
        chosen, spent, device = places.tolist(), self.spent[way], self.recognizer.mean.device
        spent.videos += len(chosen)
        if way == "lazy":
            with LazyBatch(self.datasets, chosen, device) as batch:
                logits = self._seen(joined(batch.views), point, trace, generator)
            spent.frames += int(batch.decoded.sum())
            for phase, seconds in batch.seconds.items():
                spent.seconds[phase] += seconds
            return logits
        before = self._decoded()
        views = [collate([dataset[i] for i in chosen])["inputs"] for dataset in self.datasets]
        spent.frames += self._decoded() - before
        return self._seen(to_device(joined(views), device), point, trace, generator)

    def _seen(
        self,
        clips: Mapping[str, Tensor | Frames],
        point: Mapping[str, Any],
        trace: Trace,
        generator: torch.Generator | None,
    ) -> Tensor:
        infer = super().infer if len(self.datasets) > 1 else self.recognizer.infer
        return infer(clips, point, trace=trace, generator=generator)

    def _decoded(self) -> int:
        return sum(dataset.tally["frames"] for dataset in self.datasets)


def measure_files(
    recognizer: EfficientRecognizer,
    datasets: Sequence[ClipDataset],
    batches: Sequence[Sequence[int]],
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    min_iterations: int = 20,
    min_seconds: float = 1.0,
    **options: Any,
) -> tuple[dict[str, Any], list[Output]]:
    """Time batches of files from opening to logits, lazily and eagerly in turns.

    Args:
        recognizer: `prepared`.
        datasets: The split through the test pipeline without a cache, a dataset for each view.
        batches: Places in the split.
        point_settings: Settings of the operating point.
        min_iterations, min_seconds: Of the lazy forwards.
        options: As `measure_latency` takes them.

    Returns:
        What `measure_latency` returns, of the lazy forwards, and `eager_clips`: wall_s and frames_decoded of the
        others.
        `phases_s` and `frames_decoded` are means over all forwards, warm-up included; memory is not measured.
        Outputs are those of the lazy forwards, then those of the eager ones.

    Raises:
        DataError: A video is broken.
    """
    reader = FromFiles(recognizer, datasets)
    order = [way for i in range(len(batches)) for way in (WAYS if i % 2 == 0 else WAYS[::-1])]
    places = [torch.tensor(batches[i // 2]) for i in range(len(order))]
    measured, outputs = measure_latency(
        reader,
        [{way: place} for way, place in zip(order, places, strict=True)],
        point_settings,
        min_iterations=2 * min_iterations,
        min_seconds=2 * min_seconds,
        memory=False,
        **options,
    )
    ways = {way: [i for i, other in enumerate(order) if other == way] for way in WAYS}
    samples = np.resize(order, len(measured["wall_s"]))  # whole rounds over all batches

    def of(way: str, name: str) -> list[Any]:
        return [value for value, other in zip(measured[name], samples, strict=False) if other == way]

    split = {name: of("lazy", name) for name in ("wall_s", "videos", "gflops")}
    lazy, eager = (reader.spent[way] for way in WAYS)
    loading = {phase: lazy.seconds[phase] / lazy.videos for phase in LOADING} if split["wall_s"] else {}
    model = sum(split["wall_s"]) / max(1, sum(split["videos"])) - sum(loading.values())
    return {
        **measured,
        **split,
        "device_s": None,
        "phases_s": {**loading, "model": max(0.0, model)} if loading else {},
        "frames_decoded": lazy.frames / max(1, lazy.videos),
        "eager_clips": {"wall_s": of("eager", "wall_s"), "frames_decoded": eager.frames / max(1, eager.videos)},
    }, [outputs[i] for way in WAYS for i in ways[way]] if outputs else []
