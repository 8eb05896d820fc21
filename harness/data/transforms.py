"""The spatial pipeline: one train and one test transform per dataset card, on uint8 frames.

Training clips draw one `SpatialDraw` per clip (per request where it wants its own crop); the same draw
applies to all frames. Sources: GroupMultiScaleCrop of TSN and the 256/224 test crop, docs/data.md#crops; circular
shift and jitter of the embedded sets, docs/embedded-sets.md#recipes.

There are two pipelines (`Protocol.pipeline`, docs/data.md#crops). `harness`: the shorter side is resized first, in
training too, by OpenCV. `authors`: training crops come from frames as they are stored, and all resizing is PIL's
bilinear filter, as in the code of AR-Net, TSM and AdaFocus.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from harness.data.cards import DatasetCard, Geometry, Pipeline
from harness.errors import UsageError

SCALES = (1.0, 0.875, 0.75, 0.66)
MAX_DISTORT = 1
"""Width and height are taken from neighbouring scales at most this far apart."""
MAX_SHIFT = 3 / 64
"""Largest circular shift as a share of the side: three pixels of the tiny size."""
CONTRAST = (0.8, 1.2)
GAIN = (0.9, 1.1)
BRIGHTNESS = 12
VIEWS = {"centre": 1, "three-crop": 3}


@dataclass(frozen=True)
class SpatialDraw:
    """What is done to every frame of a clip, in this order."""

    box: tuple[int, int, int, int]
    """(top, left, height, width) of the crop, in pixels of the resized frame."""
    side: int
    """The crop is resized to this side."""
    flip: bool = False
    shift: tuple[int, int] = (0, 0)
    """Circular shift down and right, pixels."""
    lut: np.ndarray | None = None
    """Colour table (256, 3) uint8."""
    pipeline: Pipeline = "harness"
    """Whose resizing."""


def stored_side(geometry: Geometry, pipeline: Pipeline, *, train: bool) -> int | None:
    """Shorter side of the frames that clips are cropped from; None: as the files hold them."""
    return None if train and pipeline == "authors" else geometry.resize


def resize_short(frame: np.ndarray, short: int | None, pipeline: Pipeline = "harness") -> np.ndarray:
    """Resize (H, W, 3) so that the shorter side has `short` pixels; None keeps it."""
    height, width = frame.shape[:2]
    if short is None or min(height, width) == short:
        return frame
    if pipeline == "authors":  # the longer side is cut off to whole pixels, as torchvision's Resize does
        return _by_pil(frame, short * width // min(height, width), short * height // min(height, width))
    scale = short / min(height, width)
    size = (max(short, round(width * scale)), max(short, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def draw_train(card: DatasetCard, geometry: Geometry, height: int, width: int, rng: np.random.Generator) -> SpatialDraw:
    """The training draw of a clip whose resized frames are `height` x `width`."""
    side = geometry.crop
    if card.crop_family == "multiscale":
        box = multiscale_box(height, width, side, rng)
    else:
        box = centre_box(height, width, side)
    flip = bool(card.flip and rng.random() < 0.5)
    shift = (0, 0)
    if card.crop_family == "shift":
        reach = round(MAX_SHIFT * side)
        down, right = rng.integers(-reach, reach + 1, size=2)
        shift = (int(down), int(right))
    return SpatialDraw(box, side, flip, shift, colour_table(rng) if card.jitter else None)


def draw_test(geometry: Geometry, height: int, width: int, view: int = 0, views: str = "centre") -> SpatialDraw:
    """The test crop: the centre, or crop `view` of three along the longer side."""
    if views not in VIEWS or not 0 <= view < VIEWS[views]:
        raise UsageError(f"view {view} of {views!r}: views are {', '.join(f'{k} ({n})' for k, n in VIEWS.items())}")
    top, left, h, w = centre_box(height, width, geometry.crop)
    if views == "three-crop":
        if width >= height:
            left = (0, left, width - w)[view]
        else:
            top = (0, top, height - h)[view]
    return SpatialDraw((top, left, h, w), geometry.crop)


def centre_box(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """The central `side` x `side` box; the whole shorter side where the frame is smaller."""
    h, w = min(side, height), min(side, width)
    return round((height - h) / 2), round((width - w) / 2), h, w


def multiscale_box(height: int, width: int, side: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """GroupMultiScaleCrop: a size from neighbouring scales of the shorter side, at one of 13 places."""
    base = min(height, width)
    sizes = [side if abs(int(base * s) - side) < 3 else int(base * s) for s in SCALES]
    pairs = [(h, w) for i, h in enumerate(sizes) for j, w in enumerate(sizes) if abs(i - j) <= MAX_DISTORT]
    h, w = pairs[int(rng.integers(len(pairs)))]
    h, w = min(h, height), min(w, width)
    places = fixed_offsets(height, width, h, w)
    top, left = places[int(rng.integers(len(places)))]
    return top, left, h, w


def fixed_offsets(height: int, width: int, h: int, w: int) -> list[tuple[int, int]]:
    """The 13 (top, left) places of TSN's multi-scale crop: a 3 x 3 grid and the four quarter points."""
    down, right = (height - h) // 4, (width - w) // 4
    grid = [(a * down, b * right) for a in (0, 2, 4) for b in (0, 2, 4)]
    return grid + [(a * down, b * right) for a in (1, 3) for b in (1, 3)]


def colour_table(rng: np.random.Generator) -> np.ndarray:
    """A random contrast, brightness and per-channel gain as a table (256, 3) uint8."""
    contrast = rng.uniform(*CONTRAST)
    gains = rng.uniform(*GAIN, size=3)
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    values = (np.arange(256)[:, None] - 128) * contrast + 128 + brightness
    return np.clip(np.rint(values * gains), 0, 255).astype(np.uint8)


def apply(draw: SpatialDraw, frames: np.ndarray, side: int | None = None) -> np.ndarray:
    """Transform resized frames (T, H, W, 3) uint8 to a clip (T, 3, S, S) uint8.

    `side` is the request's own resolution; None keeps the card's.
    """
    top, left, h, w = draw.box
    clip = frames[:, top : top + h, left : left + w]
    if (h, w) != (draw.side, draw.side):
        clip = _resized(clip, draw.side, draw.pipeline)
    if side is not None and side != draw.side:
        clip = _resized(clip, side, draw.pipeline)
    if draw.flip:
        clip = clip[:, :, ::-1]
    if draw.shift != (0, 0):
        scale = clip.shape[1] / draw.side
        clip = np.roll(clip, tuple(round(s * scale) for s in draw.shift), axis=(1, 2))
    if draw.lut is not None:
        clip = np.stack([draw.lut[:, c][clip[..., c]] for c in range(3)], axis=1)
        return np.ascontiguousarray(clip)
    return np.ascontiguousarray(clip.transpose(0, 3, 1, 2))


def _resized(clip: np.ndarray, side: int, pipeline: Pipeline) -> np.ndarray:
    if pipeline == "authors":
        return np.stack([_by_pil(frame, side, side) for frame in clip])
    shrinks = side < min(clip.shape[1:3])
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (side, side), interpolation=how) for frame in clip])


def _by_pil(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
