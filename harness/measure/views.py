"""Several test views (crops) of a video as one sample of a timing: every view is run, as evaluation runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.contract.declarations import EMPTY, ClipRequest
from harness.contract.frames import Frames
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset
from harness.data.transforms import VIEWS
from harness.data.videos import VideoSet

Clip = TypeVar("Clip", Tensor, Frames)


class Viewed(nn.Module):
    """A recognizer whose `infer` takes `joined` clips: one view after the other, logits averaged.

    Rows of work add up over the views; the exits told are the first view's.
    """

    def __init__(self, recognizer: EfficientRecognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def infer(
        self,
        clips: Mapping[str, Tensor | Frames],
        point: Mapping[str, Any] = EMPTY,
        *,
        trace: Trace,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean logits (B, C) float32 of all views."""
        views: dict[str, dict[str, Tensor | Frames]] = {}
        for place, clip in clips.items():
            view, _, name = place.partition("/")
            views.setdefault(view, {})[name] = clip
        traces: list[Trace] = []
        logits: Tensor | float = 0.0
        for own in views.values():
            traces.append(type(trace)(trace.videos))
            logits = logits + self.recognizer.infer(own, point, trace=traces[-1], generator=generator).float()
            for key, rows in traces[-1].counts.items():
                trace.counts[key] = trace.counts.get(key, np.zeros(trace.videos)) + rows
        trace.exit_step = traces[0].exit_step
        return torch.as_tensor(logits) / len(views)


def joined(views: Sequence[Mapping[str, Clip]]) -> Mapping[str, Clip]:
    """The clips of all views of a batch as one batch; those of a single view as they are."""
    if len(views) == 1:
        return views[0]
    return {f"{view}/{name}": clip for view, clips in enumerate(views) for name, clip in clips.items()}


def view_datasets(
    videos: VideoSet, split: str, requests: Sequence[ClipRequest], views: str, **options: Any
) -> list[ClipDataset]:
    """The split through the test pipeline, a dataset for each view; `options` as `ClipDataset` takes them."""
    return [
        ClipDataset(videos, split, requests, train=False, seed=0, view=view, views=views, **options)
        for view in range(VIEWS[views])
    ]
