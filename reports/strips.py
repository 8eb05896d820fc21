"""Strips of real frames with the patches a method looked at and the step at which it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.collect import Method
from reports.drawing import FAINT, INK, outline, reduced, short

VIDEOS = 4
COLUMNS = 12
WIDTH = 7.6
GAP = 0.05
SIDE = 144
"""Frames are shown no larger than this, in pixels."""


def strip(method: Method, classes: Sequence[str]) -> Figure | None:
    """Up to four videos, from early to late exits; None where the method keeps no frames.

    Frames that were not looked at before the video left are faded.
    """
    overlay = next((found for r in method.records if (found := r.overlay()) is not None and len(found["frames"])), None)
    if overlay is None:
        return None
    chosen = _choose(overlay)
    columns = min(COLUMNS, overlay["frames"].shape[1])
    pitch = 1 + GAP
    figure = Figure(figsize=(WIDTH, len(chosen) * (WIDTH / (columns * pitch) + 0.34)))
    grid = figure.subplots(len(chosen), 1, squeeze=False, gridspec_kw={"hspace": 0.3})
    for axes, video in zip(grid[:, 0], chosen, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _draw(axes, overlay, video, classes, columns)
    return figure


def _choose(overlay: Mapping[str, np.ndarray]) -> list[int]:
    order = np.argsort(overlay["exits"], kind="stable")
    return [int(i) for i in order[np.unique(np.linspace(0, len(order) - 1, VIDEOS).round().astype(int))]]


def _draw(axes: Axes, overlay: Mapping[str, np.ndarray], video: int, classes: Sequence[str], columns: int) -> None:
    frames = overlay["frames"][video]
    boxes = overlay["boxes"][overlay["boxes"][:, 0] == video]
    looked = sorted({int(step) for step in boxes[:, 1]})
    left_early = int(overlay["exits"][video]) >= 0
    for column, step in enumerate(_steps(len(frames), looked, columns)):
        x = column * (1 + GAP)
        seen = not left_early or not looked or step in looked
        frame, alpha = reduced(frames[step], SIDE), 1.0 if seen else 0.22
        axes.imshow(frame, interpolation="none", extent=(x, x + 1, 1, 0), alpha=alpha)
        for _, _, top, left, height, width in boxes[boxes[:, 1] == step]:
            outline(axes, x + left, top, width, height)
        axes.text(x + 0.5, 1.04, str(step + 1), ha="center", va="top", fontsize=6.5, color=INK if seen else FAINT)
    axes.set(xlim=(0, columns * (1 + GAP) - GAP), ylim=(1, 0))
    axes.set_title(_caption(overlay, video, classes), fontsize=8, fontweight="normal", pad=4)


def _caption(overlay: Mapping[str, np.ndarray], video: int, classes: Sequence[str]) -> str:
    label, prediction = int(overlay["labels"][video]), int(overlay["predictions"][video])
    named = [short(classes[i], 28) if 0 <= i < len(classes) else str(i) for i in (label, prediction)]
    verdict = "✓" if label == prediction else f"✗ predicted {named[1]}"
    step = int(overlay["exits"][video])
    return f"{named[0]} {verdict}" + (f"  ·  leaves after step {step + 1}" if step >= 0 else "")


def _steps(length: int, looked: Sequence[int], columns: int) -> list[int]:
    """Which frames are shown: all, or evenly chosen ones with those looked at first."""
    if length <= columns:
        return list(range(length))
    spread = [int(i) for i in np.linspace(0, length - 1, columns).round()]
    if len(looked) >= columns:
        return [looked[i] for i in np.linspace(0, len(looked) - 1, columns).round().astype(int)]
    return sorted([*looked, *[s for s in spread if s not in looked][: columns - len(looked)]])
