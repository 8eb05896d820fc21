"""What all plots share: colours, markers, type, and saving as PNG, PDF and inline SVG. Agg only, no pyplot state."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

SAFE = sns.color_palette("colorblind").as_hex()
PALETTE = (*SAFE[:5], SAFE[9], "#aa3377", "#8877ff", "#cc0022", "#447744", "#88aa66", SAFE[7])
"""Seaborn's colours for the colour-blind less tan, pink and yellow, which are lost among the others or on paper.
The ones added keep their distance to all others under every kind of colour blindness, on a light and a dark page."""
MARKERS = "osD^v<>phd*"
INK, FAINT, GRID, PAPER = "#1c2026", "#6a7280", "#dfe3e8", "#fefefe"
"""Colours of everything that is not data; in the page they follow its light or dark theme."""
THEME = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--line)", PAPER: "var(--card)"}
SETTINGS: Any = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper", font_scale=0.92),
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.bottom": True,
    "ytick.left": True,
    "grid.color": GRID,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
"""Seaborn's white grid at the size of paper, in the page's colours and one typeface."""


@contextmanager
def style() -> Iterator[None]:
    """Settings of all figures, while they are made and saved."""
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


def wrapped(text: str) -> str:
    """`text` in full, in lines of at most 44 characters."""
    return textwrap.fill(text, 44)


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
    svg = re.sub(r'id="(?!m[0-9a-f]{8}|p[0-9a-f]{8}|C[0-9a-f]+_|image)[^"]*"', "", svg)
    return head + svg.removeprefix("<svg").strip("\n")
