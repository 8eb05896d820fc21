"""What all plots share: colours, markers, type, and saving as PNG, PDF and inline SVG. Agg only, no pyplot state."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

PALETTE = (
    "#0173b2",
    "#d9622b",
    "#1f9e78",
    "#c2549d",
    "#b8860b",
    "#4aa3df",
    "#7a5bb8",
    "#8b5a3c",
    "#c23b4b",
    "#607d8b",
    "#6b8e23",
    "#2f8f9d",
)
MARKERS = "osD^v<>phd*"
INK, FAINT, GRID, PAPER = "#1c2026", "#6a7280", "#dfe3e8", "#fefefe"
"""Colours of everything that is not data; in the page they follow its light or dark theme."""
THEME = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--line)", PAPER: "var(--card)"}
SETTINGS: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.7,
    "grid.color": GRID,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of all figures, while they are made and saved."""
    with matplotlib.rc_context(SETTINGS):
        yield


def colour(index: int) -> str:
    """Colour of the method with this style index."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Marker of the method with this style index; it differs where colours repeat."""
    return MARKERS[index % len(MARKERS)]


def short(text: str, length: int = 34) -> str:
    """`text` cut to `length` characters, for labels inside a figure."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def outline(axes: Axes, x: float, y: float, width: float, height: float, *, weight: float = 1.0) -> None:
    """A box that stands out on any picture; `weight` scales its line."""
    for tint, line in (("#16181c", 2.6 * weight), ("#ffd23f", 1.4 * weight)):
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=tint, linewidth=line, zorder=2))


def reduced(frame: np.ndarray, side: int) -> np.ndarray:
    """The frame (H, W, 3), made smaller where its longer side exceeds `side` pixels."""
    if max(frame.shape[:2]) <= side:
        return frame
    height, width = (max(1, round(n * side / max(frame.shape[:2]))) for n in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def log_ticks(axes: Axes) -> None:
    """A logarithmic x axis labelled at 1, 2, 5 with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.pdf; the same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path, metadata in zip(paths, ({"Software": None}, {"CreationDate": None, "Producer": None}), strict=True):
        figure.savefig(path, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return paths


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element whose neutral colours follow the page; text stays text.

    Matplotlib escapes every string it writes; `description` (for screen readers) is escaped here.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "figure.facecolor": "none"}):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.02,
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for ink, variable in THEME.items():
        svg = svg.replace(ink, variable)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    natural = f"{1.6 * float(width[1]):.0f}px" if width else "100%"
    head = f'<svg role="img" aria-label="{html.escape(description)}" style="width:{natural}"'
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'id="(?!m[0-9a-f]{8}|p[0-9a-f]{8}|image)[^"]*"', "", svg)
    return head + svg.removeprefix("<svg").strip("\n")
