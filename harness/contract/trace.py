"""What an evaluation forward did: which component ran, on what shape, for which video.

A method wraps each piece of work it executes in `with trace.event(...)`. From the events follow
GFLOPs per video (count x cost table), decision statistics and the overlays of the report. The table is
measured, not typed: when a `meter` (harness.measure.counter) is attached, the multiply-accumulates that
run inside the block are attributed to the event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from harness.errors import BenchError


class EventKey(NamedTuple):
    """One kind of work whose cost per row is a constant."""

    component: str
    """The method's own name for the part: glance, focus, policy, classifier."""
    variant: str
    """Channel set, depth, resolution or bit-width, where the cost depends on it; else empty."""
    shape: tuple[int, ...]
    """Input shape of one row, without batch."""
    training_only: bool = False

    def label(self) -> str:
        """A unique readable name for records: `focus|r50|3x128x128`."""
        text = f"{self.component}|{self.variant}|{'x'.join(map(str, self.shape))}"
        return text + ("|training-only" if self.training_only else "")


class Meter(Protocol):
    """Counts multiply-accumulates; `total` grows while operators run."""

    @property
    def total(self) -> float: ...


@dataclass
class Trace:
    """The record of one `infer` call on a batch of `videos` videos.

    Whether a meter or another tool watches is none of a method's business: `meter` and `observe` are no attributes.

    Args:
        meter: Counts what runs inside events.
        observe: Entered around every event's work, for tools that watch it.
    """

    videos: int
    meter: InitVar[Meter | None] = None
    observe: InitVar[Callable[[EventKey], AbstractContextManager[object]] | None] = None
    details: bool = False
    """Keep boxes and decisions too (costs a device synchronisation; off while timing)."""
    training_parts: bool = False
    """Run and count the training-only parts as well (published figures of V2 include them)."""
    counts: dict[EventKey, np.ndarray] = field(default_factory=dict)
    """Rows of each kind of work per video, float64 (videos,)."""
    macs: dict[EventKey, list[tuple[float, float]]] = field(default_factory=dict)
    """With a meter: (MACs, rows) of every event."""
    frames_used: np.ndarray | None = None
    """Frames a video's prediction rests on, (videos,); full count where never set."""
    frames_seen: np.ndarray | None = None
    """Which of the longest clip's frames those are, bool (videos, T), where it is not those with a box."""
    exit_step: np.ndarray | None = None
    """0-based exit taken, (videos,); None for a method without exits."""
    boxes: list[tuple[int, int, str, float, float, float, float]] = field(default_factory=list)
    """(video, frame position in the clip, label, top, left, height, width), all as shares of the side."""
    decisions: dict[str, np.ndarray] = field(default_factory=dict)
    """Named per-frame decisions, (videos, T) int, -1 where none was taken."""
    accounted: dict[str, np.ndarray] = field(default_factory=dict)
    """MACs per video that the paper's accounting subtracts although they ran, by reason."""

    def __post_init__(
        self, meter: Meter | None, observe: Callable[[EventKey], AbstractContextManager[object]] | None
    ) -> None:
        self._meter, self._observe = meter, observe
        self._within: EventKey | None = None

    @contextmanager
    def event(
        self,
        component: str,
        *,
        shape: Sequence[int],
        variant: str = "",
        videos: Sequence[int] | np.ndarray | None = None,
        rows: int = 1,
        training_only: bool = False,
    ) -> Iterator[None]:
        """Wrap a piece of work that is being executed now.

        Args:
            component: Name of the part.
            shape: Input shape of one row, without batch.
            variant: What else the cost of a row depends on.
            videos: Batch index of each video (repeats allowed, one entry per piece); None means every
                video of the batch once.
            rows: Rows executed for each entry of `videos` (16 frames each: rows=16).
            training_only: The part is not needed for the prediction; only where `training_parts` asks for it.

        Raises:
            BenchError: Within another event, or a training-only part that nobody asked for.
        """
        key = EventKey(component, variant, tuple(int(s) for s in shape), training_only)
        if training_only and not self.training_parts:
            raise BenchError(
                f"{key.label()} ran in a plain evaluation; training-only parts run where trace.training_parts is set"
            )
        if self._within is not None:
            raise BenchError(f"{key.label()} is inside {self._within.label()}; close one trace.event before the next")
        before = self._meter.total if self._meter is not None else 0.0
        self._within = key
        try:
            with self._observe(key) if self._observe is not None else nullcontext():
                yield
        finally:
            self._within = None
        counts = self.counts.setdefault(key, np.zeros(self.videos))
        if videos is None:
            counts += rows
            done = float(self.videos * rows)
        else:
            np.add.at(counts, np.asarray(videos, dtype=np.intp), rows)
            done = float(len(videos) * rows)
        if self._meter is not None and done:
            self.macs.setdefault(key, []).append((self._meter.total - before, done))

    def note_boxes(self, label: str, steps: Sequence[int], boxes_BK4: Any, videos: Sequence[int] | None = None) -> None:
        """Keep patch boxes for the overlays, if `details` is on.

        Args:
            label: What looks there (`focus`).
            steps: Frame position in the clip of each of the K boxes.
            boxes_BK4: (top, left, height, width) as shares of the frame side, tensor or array.
            videos: Batch index of each row; all in order when None.
        """
        if not self.details:
            return
        values = np.asarray(boxes_BK4.detach().float().cpu() if hasattr(boxes_BK4, "detach") else boxes_BK4)
        for row, video in enumerate(range(self.videos) if videos is None else videos):
            for step, box in zip(steps, values[row], strict=True):
                top, left, height, width = (float(v) for v in box)
                self.boxes.append((int(video), int(step), label, top, left, height, width))

    def note_decision(self, name: str, videos: Sequence[int], step: int, value: Sequence[int], length: int) -> None:
        """Keep the decision `value` taken at frame position `step` of `length` for each of `videos`."""
        if self.details:
            table = self.decisions.setdefault(name, np.full((self.videos, length), -1, dtype=np.int64))
            table[np.asarray(videos, dtype=np.intp), step] = np.asarray(value)
