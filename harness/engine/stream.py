"""Dynamic rebatching: the videos of a stream wait for each other, so that late segments run as full as early ones.

    stream = Rebatching(recognizer, point_settings, batch=16)
    for result in stream.results(clips):        # in the order of the input
        result.logits, result.exit_step

A plain loop over batches runs the segments after an exit on those of one batch that stay, fewer and fewer. Here those
that stay go into a buffer, one for each segment (of those between which somebody may leave), until a full batch is
there. Results are those of the plain loop (harness.contract.segments.until_sure), up to the order of sums.

Source: DREX (arXiv 2512.15705), which rebatches the tokens of a language model with exits; here it is videos.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contract.declarations import EMPTY
from harness.contract.exits import point_thresholds, staying
from harness.contract.frames import as_frames
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.segments import join, keep, leave, settle, stops
from harness.contract.trace import EventKey, Trace
from harness.errors import UsageError

HELD = 64
"""Batches' worth of results, at most, that are held back for an earlier video."""


@dataclass(frozen=True)
class Result:
    """What a stream says of one video."""

    place: int
    """In the stream, from 0."""
    logits: Tensor
    """Unnormalised (C,), on the host."""
    exit_step: int | None
    """0-based exit taken; None where every video sees all."""
    seconds: float
    """From being taken in to being known."""
    counts: Mapping[EventKey, float]
    """Rows of each kind of work that it took."""


@dataclass
class _Video:
    place: int
    taken_s: float
    counts: dict[EventKey, float] = field(default_factory=dict)


class Rebatching:
    """Runs a recognizer on a stream of videos.

    A batch is run where it is full, the deepest segment first; else videos are taken in. Where the oldest video waits
    too long its batch is run as it is. At the end of the input what is left runs from the first segment to the last.
    At most `batch` - 1 videos wait for a segment; each holds its own clips and state, nobody else's. An exit costs
    one device synchronisation, as in the plain loop. A method without exits runs batch by batch.

    Args:
        recognizer: In eval mode.
        point: Settings of the operating point, as `infer` takes them.
        batch: Videos that are run at once, at most.
        max_wait_s: Age in seconds from which on a video waits no longer for others. It is looked at between batches,
            so a source of videos that blocks can delay it.
        trace: What the recognizer's work on a number of videos is told to.
        generator: For decisions that are drawn; which video draws what depends on who is in its batch.
        clock: Seconds.

    Attributes:
        stops: Exit at the end of each run segment.
        executed: Of each, sizes of the batches that were run.
    """

    def __init__(
        self,
        recognizer: EfficientRecognizer,
        point: Mapping[str, Any] = EMPTY,
        *,
        batch: int,
        max_wait_s: float = math.inf,
        trace: Callable[[int], Trace] = Trace,
        generator: torch.Generator | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if batch < 1 or not max_wait_s >= 0:
            raise UsageError(f"batch {batch}, {max_wait_s:g} s: a batch has 1 video or more, waiting takes 0 s or more")
        self.recognizer, self.point, self.batch, self.max_wait_s = recognizer, point, batch, max_wait_s
        self.thresholds = point_thresholds(point, recognizer.exits)
        self.stops = stops(self.thresholds) if self.thresholds is not None else [max(recognizer.exits, 1) - 1]
        self.executed = [Counter[int]() for _ in self.stops]
        self._trace, self._generator, self._clock = trace, generator, clock
        self._buffers = [_Buffer() for _ in self.stops]
        self._done: dict[int, Result] = {}
        self._taken = self._given = 0

    def results(self, clips: Iterable[Clips]) -> Iterator[Result]:
        """The result of every video, in the order of the input.

        Args:
            clips: Of some videos each, as a loader gives them, on the recognizer's device: request ->
                (n, T, 3, H, W). What it raises comes through; what was not yet given is lost.
        """
        source, more = iter(clips), True
        while True:
            segment = self._ready(more)
            if segment is not None:
                self._run(segment)
            elif not more:
                return
            elif (some := next(source, None)) is not None:
                self._take_in(some)
            else:
                more = False
            while self._given in self._done:
                yield self._done.pop(self._given)
                self._given += 1

    def _take_in(self, clips: Clips) -> None:
        now, number = self._clock(), len(next(iter(clips.values())))
        self._buffers[0].add(as_frames(clips), [_Video(self._taken + i, now) for i in range(number)])
        self._taken += number

    def _ready(self, more: bool) -> int | None:
        """The segment that runs next; None: take in more videos, if there are."""
        waiting = [k for k, buffer in enumerate(self._buffers) if len(buffer)]
        full = [k for k in waiting if len(self._buffers[k]) >= self.batch]
        if full or not waiting:
            return full[-1] if full else None
        oldest, segment = min((self._buffers[k].oldest, k) for k in waiting)
        if self._clock() - oldest[1] > self.max_wait_s or len(self._done) >= HELD * self.batch:
            return segment
        return None if more else waiting[0]

    @torch.inference_mode()
    def _run(self, segment: int) -> None:
        device, stop = self.recognizer.mean.device, self.stops[segment]
        state, videos = self._buffers[segment].take(self.batch, device)
        trace = self._trace(len(videos))
        if self.thresholds is None:
            logits = self.recognizer.infer(state, self.point, trace=trace, generator=self._generator)
        else:
            first = self.stops[segment - 1] + 1 if segment else 0
            with self.recognizer.telling(trace):
                state = state if segment else self.recognizer.begin(state, self._generator)
                state, logits = self.recognizer.segment(state, first, stop)
        host = logits.cpu()
        known_s = self._clock()
        self.executed[segment][len(videos)] += 1
        for key, rows in trace.counts.items():
            for video, own in zip(videos, rows.tolist(), strict=True):
                video.counts[key] = video.counts.get(key, 0.0) + own
        stays = np.arange(0)
        if self.thresholds is not None and segment < len(self.stops) - 1:
            stays = staying(host, self.thresholds[stop], self.recognizer.exit_score)
        leaves = np.setdiff1d(np.arange(len(videos)), stays)
        exit_step = None if self.thresholds is None else stop
        for row, own_C in zip(leaves.tolist(), host[torch.from_numpy(leaves)], strict=True):
            video = videos[row]
            self._done[video.place] = Result(video.place, own_C, exit_step, known_s - video.taken_s, video.counts)
        leave(state, leaves)
        if len(stays):
            left = _of(state, stays, device) if len(leaves) else state
            self._buffers[segment + 1].add(left, [videos[row] for row in stays])


class _Buffer:
    """Videos that wait for a segment, in the order in which they came."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, list[_Video]]] = []

    def __len__(self) -> int:
        return sum(len(videos) for _, videos in self.parts)

    @property
    def oldest(self) -> tuple[int, float]:
        """Place of the video that was taken in first, and when that was."""
        return min((video.place, video.taken_s) for _, videos in self.parts for video in videos)

    def add(self, state: Any, videos: list[_Video]) -> None:
        self.parts.append((state, videos))

    def take(self, count: int, device: torch.device) -> tuple[Any, list[_Video]]:
        """State of the first `count` videos, or of all where there are fewer."""
        states, taken = list[Any](), list[_Video]()
        while self.parts and len(taken) < count:
            state, videos = self.parts.pop(0)
            room = count - len(taken)
            if len(videos) > room:
                self.parts.insert(0, (_of(state, np.arange(room, len(videos)), device), videos[room:]))
                state, videos = _of(state, np.arange(room), device), videos[:room]
            states.append(state)
            taken += videos
        return join(states), taken


def whole_trace(results: Sequence[Result]) -> Trace:
    """Rows and exits of all videos of a stream, as a trace of one batch would tell of them."""
    trace = Trace(len(results))
    for row, result in enumerate(results):
        for key, rows in result.counts.items():
            trace.counts.setdefault(key, np.zeros(len(results)))[row] = rows
    exits = [result.exit_step for result in results if result.exit_step is not None]
    trace.exit_step = np.asarray(exits) if exits else None
    return trace


def _of(state: Any, rows: np.ndarray, device: torch.device) -> Any:
    """The state of some of its videos, which holds nothing of the others."""
    return settle(keep(state, rows, torch.from_numpy(rows).to(device)))
