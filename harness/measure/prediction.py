"""What `bench.py predict` finds out about one video: plain data, no torch; `reports.overlay` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.contract.values import plain

State = Literal["looked", "glanced", "left out"]
STATES: tuple[State, ...] = ("looked", "glanced", "left out")
"""The closer look first."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the video as it is shown, not necessarily whole ones."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class GivenFrame:
    """One frame that the method was given, in the order of the video."""

    number: int
    """0-based frame number in the video; a short video repeats its last frame."""
    state: State
    """`looked`: it was looked at closely, or entered the prediction of a method that places no boxes;
    `glanced`: only the light network of a method with two saw it; `left out`: skipped, or never reached."""
    rank: int | None
    """It was the rank-th frame, from 1, to be looked at; None where it was not."""
    boxes: tuple[Box, ...] = ()
    """Where."""


@dataclass(frozen=True)
class ClassScore:
    """A class and its probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """One video through one checkpoint at one operating point."""

    video: str
    template: str
    """Where the video is a folder: the name of frame i, from 1."""
    frames: int
    """In the file."""
    fps: float | None
    width: int
    height: int
    checkpoint: str
    method: str
    title: str
    stage: str
    """Training stage whose weights they are; `official` for a converted file."""
    point: str
    settings: Mapping[str, Any]
    """Of the operating point."""
    classes: tuple[ClassScore, ...]
    """The likeliest ones, best first."""
    gflops: float
    """Executed for this video, 1e9 multiply-accumulates."""
    components: Mapping[str, float]
    """GFLOPs by part of the method."""
    seconds: Mapping[str, float]
    """decode, transform (resize, crop), transfer, model; after one warm-up."""
    frames_decoded: int
    """Distinct frames asked of the decoder."""
    frames_used: float
    """Frames the prediction rests on."""
    clips: Mapping[str, tuple[int, ...]]
    """Clip request -> frame numbers."""
    given: tuple[GivenFrame, ...]
    """Frames of the longest request, and those that only the others hold, in the order of the video."""
    crop: Box
    """What of each frame the method is given."""
    exit_step: int | None
    """0-based exit; None for a method without exits, or where exits were not used."""
    exits: int
    device: str
    threads: int
    notes: tuple[str, ...] = field(default=())
    """What a reader must know: repeated frames, unknown class names."""

    def distinct(self) -> tuple[GivenFrame, ...]:
        """The given frames, each number once, ascending.

        A short video is given some frames several times: such a frame was looked at where one of its places
        was, else glanced at where one was; it has its smallest rank and all boxes.
        """
        places: dict[int, list[GivenFrame]] = {}
        for frame in self.given:
            places.setdefault(frame.number, []).append(frame)
        return tuple(_merged(places[number]) for number in sorted(places))

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        value: dict[str, Any] = plain(self)
        return value

    def to_text(self) -> str:
        """For the terminal."""
        rate = f" at {self.fps:g} fps" if self.fps else ""
        lines = [f"{self.video}: {self.frames} frames{rate}, {self.width} x {self.height}"]
        lines += [f"{self.title} [{self.stage}], point {self.point}", ""]
        lines += [f"{c.probability:7.1%}  {c.name}" for c in self.classes]
        parts = ", ".join(f"{name} {value:.3g}" for name, value in self.components.items())
        times = ", ".join(f"{name} {duration(value)}" for name, value in self.seconds.items())
        lines += [
            "",
            f"GFLOPs   {self.gflops:.4g} executed ({parts})",
            f"time     {times} ({self.device}, {self.threads} thread{'s' * (self.threads != 1)}, after one warm-up)",
            f"decoded  {self.frames_decoded} frames; the prediction rests on {self.frames_used:g}",
        ]
        looked = sorted((f for f in self.given if f.rank is not None), key=lambda f: f.rank or 0)
        distinct = self.distinct()
        for word, numbers in (
            ("looked", [f.number for f in looked]),
            ("glanced", [f.number for f in distinct if f.state == "glanced"]),
            ("left out", [f.number for f in distinct if f.state == "left out"]),
        ):
            lines += [f"{word:8} {' '.join(map(str, numbers))}"] if numbers else []
        if self.exit_step is not None:
            lines.append(f"exit     {self.exit_step + 1} of {self.exits}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _merged(places: Sequence[GivenFrame]) -> GivenFrame:
    """One frame for all places of a number."""
    state = next(s for s in STATES if any(f.state == s for f in places))
    rank = min((f.rank for f in places if f.rank is not None), default=None)
    return GivenFrame(places[0].number, state, rank, tuple(box for f in places for box in f.boxes))


def duration(seconds: float) -> str:
    """A time as people read it."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
