"""The embedded data sets' pictures: handwritten digits on a moving orange plate, among clutter. No torch.

`glyphs` (spot): the class is the digit on the plate, which is visible in one window of the clip; where
and when to look matters. `glyphs-motion` (order): the plate shows one digit, then another; the class is
which pair in which order, so half of it cannot be known without temporal order.

Everything follows from (set, size, split, index): pixels are equal on every call. The parameters are
fixed and versioned; a change raises `VERSION` and all results on the sets are made anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from harness.data.cards import EMBEDDED_VERSION, MOTION_PAIRS
from harness.errors import unknown

VERSION = EMBEDDED_VERSION
SPLIT_CODES = {"train": 0, "val": 1, "calib": 2, "test": 3, "stills-train": 4, "stills-val": 5}
SET_CODES = {"glyphs": 0, "glyphs-motion": 1}
DECOY_HUES = ((60, 90, 200), (60, 160, 80), (140, 80, 180), (40, 160, 165))
INK = (20, 50)


@dataclass(frozen=True)
class GlyphParameters:
    """How one embedded set is rendered at one size; lengths in pixels of the stored frame."""

    side: int
    counts: dict[str, int]
    """Videos per split."""
    window: tuple[float, float]
    """Share of the frames in which the plate is visible: one contiguous window."""
    hard: tuple[int, int]
    """Digit height of hard videos, inclusive."""
    easy: tuple[int, int]
    stills: tuple[int, int, int]
    """(side, smallest, largest digit height) of the pre-training stills."""
    hard_share: float = 0.6
    frames: int = 24
    fps: int = 8
    plate: float = 1.6
    """Side of the plate as a multiple of the digit height."""
    travel: tuple[float, float] = (0.25, 0.7)
    """Way of the plate through the clip, as a share of the side."""
    margin: int = 0
    """The plate keeps this distance from the border (the part that the test crop cuts off)."""
    fragments: int = 3
    decoys: int = 2
    noise: float = 3.0
    """Standard deviation of the luminance noise."""
    colour: tuple[tuple[int, int], ...] = ((215, 245), (130, 165), (30, 70))
    """Range of the target plate's red, green and blue."""
    checks: float | None = None
    """Hard ink is a chequered wave of this period around the plate's own colour, which vanishes when the
    frame is reduced to half its side; None draws solid ink."""
    jitter: float = 0.0
    """Random affine distortion of the digits, standard deviation (radians and share)."""
    x264: str = "crf=18:mbtree=0"
    """Encoder parameters besides the preset. With x264's default mbtree (and SIMD) one small clip in ten
    came out differently from run to run, in pixels too; with mbtree=0 none did."""


_PAPER_COUNTS = {"train": 6000, "val": 1000, "calib": 1000, "test": 2000}


def _tiny(counts: dict[str, int], window: tuple[float, float]) -> GlyphParameters:
    return GlyphParameters(64, counts, window, hard=(11, 15), easy=(20, 28), stills=(32, 7, 22))


def _paper(window: tuple[float, float]) -> GlyphParameters:
    return GlyphParameters(256, _PAPER_COUNTS, window, hard=(38, 52), easy=(70, 98), stills=(128, 24, 76), margin=16,
                           noise=2.0, colour=((180, 195), (105, 130), (60, 75)), checks=2.5, jitter=0.06,
                           x264="crf=17:mbtree=0")


PARAMETERS: dict[tuple[str, str], GlyphParameters] = {
    ("glyphs", "tiny"): _tiny({"train": 1200, "val": 200, "calib": 200, "test": 1000}, (0.2, 0.5)),
    ("glyphs-motion", "tiny"): _tiny({"train": 1200, "val": 160, "calib": 160, "test": 800}, (0.6, 0.95)),
    ("glyphs", "paper"): _paper((0.2, 0.5)),
    ("glyphs-motion", "paper"): _paper((0.6, 0.95)),
}


class VideoPlan(NamedTuple):
    """What a video will show, known before a pixel is drawn."""

    label: int
    digits: tuple[int, ...]
    hard: bool
    height: int
    """Digit height in pixels."""
    plate: int
    """Side of the square plate in pixels."""
    first: int
    """First frame of the visible window."""
    switch: int
    """First frame that shows the second digit (the window's end where there is one digit)."""
    last: int
    """First frame after the window."""
    places: np.ndarray
    """Top-left corner (y, x) of the plate in every frame, int (T, 2), also where it is invisible."""

    def boxes(self) -> np.ndarray:
        """(top, left, height, width) of the plate in every frame, int16 (T, 4); -1 where it is absent."""
        boxes = np.full((len(self.places), 4), -1, dtype=np.int16)
        boxes[self.first : self.last, :2] = self.places[self.first : self.last]
        boxes[self.first : self.last, 2:] = self.plate
        return boxes


def parameters(name: str, size: str) -> GlyphParameters:
    """The parameters of an embedded set; an unknown one raises UsageError."""
    try:
        return PARAMETERS[name, size]
    except KeyError:
        raise unknown("embedded set and size", f"{name} {size}", [" ".join(k) for k in PARAMETERS]) from None


def plan_video(name: str, size: str, split: str, index: int) -> VideoPlan:
    """Class, digit size, window and path of a video: label is `index` modulo the number of classes."""
    p = parameters(name, size)
    rng = _rng(name, split, index, 0)
    label, digits = _label(name, index)
    hard = bool(rng.random() < p.hard_share)
    height = int(rng.integers(*(p.hard if hard else p.easy), endpoint=True))
    length = min(p.frames, max(len(digits), round(rng.uniform(*p.window) * p.frames)))
    first = int(rng.integers(p.frames - length + 1))
    last = first + length
    switch = first + (length + int(rng.integers(2))) // 2 if len(digits) == 2 else last
    plate = round(p.plate * height)
    return VideoPlan(label, digits, hard, height, plate, first, switch, last, _path(p, plate, rng))


def draw_video(name: str, size: str, split: str, index: int) -> tuple[np.ndarray, VideoPlan]:
    """The pixels of a video, uint8 (T, H, W, 3) RGB, and its plan."""
    p, plan = parameters(name, size), plan_video(name, size, split, index)
    rng = _rng(name, split, index, 1)
    colour = _plate_colour(p, rng)
    plates = [_plate(p, plan, digit, split, colour, rng) for digit in plan.digits]
    scene = _background(p, rng)
    for _ in range(p.fragments):
        _paste_fragment(scene, p, split, rng)
    decoys = [_decoy(p, split, rng) for _ in range(p.decoys)]
    frames = np.empty((p.frames, p.side, p.side, 3), dtype=np.uint8)
    for t in range(p.frames):
        canvas = scene.copy()
        for picture, places in decoys:
            _paste(canvas, picture, places[t])
        if plan.first <= t < plan.last:
            _paste(canvas, plates[t >= plan.switch], plan.places[t])
        canvas += rng.normal(0.0, p.noise, (p.side, p.side, 1)).astype(np.float32)
        frames[t] = np.clip(np.rint(canvas), 0, 255)
    return frames, plan


def stills(
    name: str, size: str, count: int, seed: int, part: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures for pre-training: the target plate with a digit, over the videos' clutter.

    Only digits of the training split are shown; `part='val'` draws from an eighth of them that
    `part='train'` never shows.

    Returns:
        uint8 (N, 3, S, S) RGB and the digits, int64 (N,), balanced.
    """
    p = parameters(name, size)
    side, smallest, largest = p.stills
    split = f"stills-{part}"
    if split not in SPLIT_CODES:
        raise unknown("part of the stills", part, ("train", "val"))
    pictures = np.empty((count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    for i, digit in enumerate(labels):
        rng = np.random.default_rng([VERSION, 7, SPLIT_CODES[split], seed, i])
        height = int(rng.integers(smallest, largest, endpoint=True))
        plate = round(p.plate * height)
        canvas = _background(p, rng)[:side, :side].copy()
        _paste_fragment(canvas, p, split, rng)
        picture = _with_ink(p, int(digit), split, height, plate, _plate_colour(p, rng), rng, height < p.easy[0])
        slack = max(0, side - plate)
        place = (side - plate) // 2 if plate >= side else rng.integers(slack + 1, size=2)
        _paste(canvas, picture, np.broadcast_to(place, 2))
        canvas += rng.normal(0.0, p.noise, (side, side, 1)).astype(np.float32)
        pictures[i] = np.clip(np.rint(canvas), 0, 255)
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), labels.astype(np.int64)


@cache
def digit_pool(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits of a split: float32 (N, 8, 8) ink in 0..1, and their classes (N,).

    By index modulo 10 of scikit-learn's digits: 0 to 5 train, 6 val and calib (by parity of the index's
    tens), 7 to 9 test. The modulus mixes writers: the split is not writer-disjoint.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    index = np.arange(len(data.target))
    ones, tens = index % 10, index // 10
    held = tens % 8 == 7
    keep = {
        "train": ones <= 5, "val": (ones == 6) & (tens % 2 == 0), "calib": (ones == 6) & (tens % 2 == 1),
        "test": ones >= 7, "stills-train": (ones <= 5) & ~held, "stills-val": (ones <= 5) & held,
    }[split]
    return (data.images[keep] / 16.0).astype(np.float32), data.target[keep]


def _rng(name: str, split: str, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([VERSION, SET_CODES[name], SPLIT_CODES[split], index, stream])


def _label(name: str, index: int) -> tuple[int, tuple[int, ...]]:
    """Class of a video, and the digits it shows in order."""
    if name == "glyphs":
        return index % 10, (index % 10,)
    label = index % (2 * len(MOTION_PAIRS))
    pair = MOTION_PAIRS[label // 2]
    return label, pair[::-1] if label % 2 else pair


def _path(p: GlyphParameters, plate: int, rng: np.random.Generator) -> np.ndarray:
    """Near-constant velocity with a slight turn, reflected at the borders; int (T, 2) corners."""
    low, high = float(p.margin), float(p.side - p.margin - plate)
    room = max(high - low, 0.0)
    position = rng.uniform(0, room, size=2)
    speed = rng.uniform(*p.travel) * p.side / p.frames
    angle, turn = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.05)
    places = np.empty((p.frames, 2), dtype=np.int64)
    for t in range(p.frames):
        folded = room - np.abs(np.mod(position, 2 * room) - room) if room else np.zeros(2)
        places[t] = np.rint(low + folded)
        position = position + speed * np.array([np.sin(angle), np.cos(angle)])
        angle += turn
    return places


def _background(p: GlyphParameters, rng: np.random.Generator) -> np.ndarray:
    """A smooth, slightly tinted field, float32 (side, side, 3)."""
    grey = rng.uniform(70, 150) + rng.normal(0, 18, (4, 4, 1))
    tint = rng.normal(0, 8, (4, 4, 3))
    field = cv2.resize((grey + tint).astype(np.float32), (p.side, p.side), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 30, 200)


def _ink(p: GlyphParameters, digit: int, split: str, height: int, rng: np.random.Generator) -> np.ndarray:
    """A random digit of the class as an ink mask, float32 (height, height) in 0..1."""
    images, labels = digit_pool(split)
    choices = np.flatnonzero(labels == digit)
    image = images[choices[rng.integers(len(choices))]]
    mask = cv2.resize(image, (height, height), interpolation=cv2.INTER_CUBIC)
    if p.jitter:
        matrix = np.eye(2) + rng.normal(0, p.jitter, (2, 2))
        centre = np.full(2, (height - 1) / 2)
        warp = np.column_stack([matrix, centre - matrix @ centre]).astype(np.float32)
        mask = cv2.warpAffine(mask, warp, (height, height), flags=cv2.INTER_LINEAR)
    return np.clip(mask, 0.0, 1.0)


def _plate_colour(p: GlyphParameters, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.uniform(*channel) for channel in p.colour], dtype=np.float32)


def _plate(
    p: GlyphParameters, plan: VideoPlan, digit: int, split: str, colour: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return _with_ink(p, digit, split, plan.height, plan.plate, colour, rng, plan.hard)


def _with_ink(
    p: GlyphParameters, digit: int, split: str, height: int, plate: int, colour: np.ndarray,
    rng: np.random.Generator, hard: bool,
) -> np.ndarray:
    """The target: a plate with the whole digit in its middle, float32 (plate, plate, 3)."""
    picture = np.broadcast_to(colour, (plate, plate, 3)).copy()
    mask = _ink(p, digit, split, height, rng)[..., None]
    start = (plate - height) // 2
    inner = picture[start : start + height, start : start + height]
    if hard and p.checks:
        inner += mask * _checks(height, p.checks, colour, rng)
    else:
        inner += mask * (rng.uniform(*INK) - inner)
    return picture


def _checks(height: int, period: float, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A zero-mean luminance wave along both axes, float32 (height, height, 1).

    No channel of `colour` leaves 0..255 by it: clipping would change the mean, which shows at any resolution.
    """
    amplitude = max(0.0, min(60.0, 255 - float(colour.max()), float(colour.min())))
    phases = rng.uniform(0, 2 * np.pi, size=2)
    down, right = (np.sin(2 * np.pi * np.arange(height) / period + phase) for phase in phases)
    return (amplitude * np.outer(down, right))[..., None].astype(np.float32)


def _decoy(p: GlyphParameters, split: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A plate of another hue with the top half of a digit, and its path."""
    hard = rng.random() < p.hard_share
    height = int(rng.integers(*(p.hard if hard else p.easy), endpoint=True))
    plate = round(p.plate * height)
    hue = np.array(DECOY_HUES[rng.integers(len(DECOY_HUES))], dtype=np.float32) + rng.normal(0, 10, 3)
    picture = _with_ink(p, int(rng.integers(10)), split, height, plate, hue.astype(np.float32), rng, hard)
    picture[plate // 2 :] = hue
    return picture, _path(p, plate, rng)


def _paste_fragment(scene: np.ndarray, p: GlyphParameters, split: str, rng: np.random.Generator) -> None:
    """Half a digit, somewhere, in light or dark ink; changes `scene`."""
    side = scene.shape[0]
    height = min(int(rng.integers(p.hard[0], p.easy[1], endpoint=True)), side)
    mask = _ink(p, int(rng.integers(10)), split, height, rng)
    half = height // 2
    mask[[slice(half), slice(half, None)][rng.integers(2)]] = 0
    top, left = rng.integers(side - height + 1, size=2)
    ink = rng.uniform(20, 60) if rng.random() < 0.5 else rng.uniform(190, 230)
    inner = scene[top : top + height, left : left + height]
    inner += mask[..., None] * (ink - inner)


def _paste(canvas: np.ndarray, picture: np.ndarray, place: np.ndarray) -> None:
    """Put `picture` with its corner at `place` (y, x), cut at the border; changes `canvas`."""
    (top, left), (h, w) = (int(v) for v in place), picture.shape[:2]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + h, canvas.shape[0]), min(left + w, canvas.shape[1])
    canvas[y0:y1, x0:x1] = picture[y0 - top : y1 - top, x0 - left : x1 - left]
