"""What an evaluation forward did: which component ran, on what shape, for which video.

Every component of a method tells the trace when it is called (harness.contract.components). From this follow
GFLOPs per video (count x cost table), decision statistics and the overlays of the report. The table is
measured, not typed: when a `meter` (harness.measure.counter) is attached, the multiply-accumulates that
run inside the call are attributed to it.
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
        meter: Counts what runs inside components.
        observe: Entered around every component's call, for tools that watch it.
    """

    videos: int
    meter: InitVar[Meter | None] = None
    observe: InitVar[Callable[[EventKey], AbstractContextManager[object]] | None] = None
    details: bool = False
    """Keep boxes and decisions too (costs a device synchronisation; off while timing)."""
    training_parts: bool = False
    """Run and count the training-only parts as well (published figures of V2 include them)."""
    there: np.ndarray | None = None
    """Videos of the batch that have not left; None: all."""
    counts: dict[EventKey, np.ndarray] = field(default_factory=dict)
    """Rows of each kind of work per video, float64 (videos,)."""
    macs: dict[EventKey, list[tuple[float, float]]] = field(default_factory=dict)
    """With a meter: (MACs, rows) of every call."""
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
    def work(
        self,
        component: str,
        variant: str,
        shape: Sequence[int],
        rows: int,
        *,
        videos: Sequence[int] | np.ndarray | None = None,
        training_only: bool = False,
    ) -> Iterator[None]:
        """Wrap a component's call, which is being executed now.

        Args:
            component: Its name.
            variant: What else the cost of a row depends on.
            shape: Input shape of one row, without batch.
            rows: Rows that are executed, equally many for each video.
            videos: Their videos among those still there (repeats allowed); None: all of these, in order.
            training_only: The call is not needed for the prediction; only where `training_parts` asks for it.

        Raises:
            BenchError: Within another component, a training-only call that nobody asked for, or rows that cannot be
                the videos'.
        """
        key = EventKey(component, variant, tuple(int(s) for s in shape), training_only)
        if training_only and not self.training_parts:
            raise BenchError(
                f"{key.label()} ran in a plain evaluation; training-only parts run where training_parts is set"
            )
        if self._within is not None:
            raise BenchError(f"{key.label()} is inside {self._within.label()}; a component does not call another")
        whose = self._whose(videos)
        each, rest = divmod(rows, len(whose)) if len(whose) else (0, rows)
        if rest:
            raise BenchError(
                f"{key.label()} ran on {rows} rows, which {len(whose)} videos cannot share equally; name each row's "
                "video (videos=...)"
            )
        before = self._meter.total if self._meter is not None else 0.0
        self._within = key
        try:
            with self._observe(key) if self._observe is not None else nullcontext():
                yield
        finally:
            self._within = None
        np.add.at(self.counts.setdefault(key, np.zeros(self.videos)), whose, each)
        if self._meter is not None and rows:
            self.macs.setdefault(key, []).append((self._meter.total - before, float(rows)))

    def _whose(self, videos: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Places in the batch of `videos`, which are places among those still there."""
        there = np.arange(self.videos) if self.there is None else self.there
        return there if videos is None else there[np.asarray(videos, dtype=np.intp)]

    def note_boxes(
        self, label: str, steps: Any, boxes_BK4: Any, videos: Sequence[int] | np.ndarray | None = None
    ) -> None:
        """Keep patch boxes for the overlays, if `details` is on.

        Args:
            label: What looks there (`focus`).
            steps: Frame position in the clip of each of the K boxes, (K,) or (B, K).
            boxes_BK4: (top, left, height, width) as shares of the frame side, tensor or array.
            videos: Of each row, among those still there; all in order when None.
        """
        if not self.details:
            return
        whose = self._whose(videos)
        values = np.asarray(boxes_BK4.detach().float().cpu() if hasattr(boxes_BK4, "detach") else boxes_BK4)
        places = np.asarray(steps.cpu() if hasattr(steps, "cpu") else steps)
        for row, (video, own) in enumerate(zip(whose, np.broadcast_to(places, values.shape[:2]), strict=True)):
            for step, box in zip(own, values[row], strict=True):
                top, left, height, width = (float(v) for v in box)
                self.boxes.append((int(video), int(step), label, top, left, height, width))

    def note_decisions(self, name: str, values_BT: np.ndarray) -> None:
        """Keep per-frame decisions (B, T) int of the videos still there, -1 where none was taken."""
        if self.details:
            table = self.decisions.setdefault(name, np.full((self.videos, values_BT.shape[1]), -1, dtype=np.int64))
            table[self._whose(None)] = values_BT
