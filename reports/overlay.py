"""What `bench.py predict` draws: a picture of the frames a method was given, and a short film of the video.

    overlay.write(prediction, Path("out"), frames=shown, save_film=write_mp4)

Boxes show where it looked closely, frames that it left out are grey, and the frame after which it was
sure enough to stop is marked. Frames come from the caller and the film goes through the caller's writer:
reports decode and encode nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from harness.errors import BenchError
from harness.measure.prediction import STATES, Box, GivenFrame, Prediction, duration
from reports import drawing
from reports.drawing import FAINT, GRID, INK, PALETTE, short

BOX, BOX_EDGE, EXIT = "#ffd23f", "#16181c", "#d9622b"
SHOWN = 48
"""Frames in the picture, at most; the ones looked at come first."""
COLUMNS, WIDTH, GAP = 8, 7.6, 0.05
SMALL = 320
"""Longest side in pixels of a frame in the picture."""
LARGEST, SMALLEST = 640, 320
"""Longest side of the film: larger videos are reduced to the one, smaller ones enlarged to the other."""
PASSING = 150
"""Frames of the film that the method was not given, at most."""
PAUSE_S, END_S, LOWEST_FPS = 0.6, 2.0, 8.0
BAR = 62
"""Height in pixels of the film's caption."""

Frames = Callable[[Prediction, Sequence[int]], Iterator[tuple[int, np.ndarray]]]
"""(prediction, frame numbers) -> (number, uint8 (H, W, 3)), ascending, each once."""
SaveFilm = Callable[[Path, Iterable[np.ndarray], float], None]
"""(path, frames, frames per second): writes a video file."""


def paths(prediction: Prediction, out: Path) -> tuple[Path, Path]:
    """Picture and film that `write` writes: `NAME-predicted.png`, `NAME-predicted.mp4`; NAME is the video's."""
    name = f"{Path(prediction.video).stem}-predicted"
    return out / f"{name}.png", out / f"{name}.mp4"


def write(prediction: Prediction, out: Path, *, frames: Frames, save_film: SaveFilm) -> tuple[Path, Path]:
    """Write picture and film into `out`; returns their `paths`.

    Raises BenchError where the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write pictures to {out}: {error.strerror}; choose another --out") from error
    still, film_path = paths(prediction, out)
    decoded = frames(prediction, [frame.number for frame in _chosen(prediction.distinct())])
    images = {number: drawing.reduced(image, SMALL) for number, image in decoded}
    with drawing.style():
        picture(prediction, images).savefig(still, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    save_film(film_path, film(prediction, frames(prediction, film_numbers(prediction))), film_rate(prediction))
    return still, film_path


def picture(prediction: Prediction, images: dict[int, np.ndarray]) -> Figure:
    """The frames it was given with what became of them, the likeliest classes, cost and time.

    Args:
        images: Number -> uint8 (H, W, 3), of any size, of the frames that the picture shows.
    """
    given = _chosen(prediction.distinct())
    columns = min(COLUMNS if len(given) <= 3 * COLUMNS else 2 * COLUMNS, len(given))
    rows = -(-len(given) // columns)
    aspect = prediction.height / prediction.width
    cell = WIDTH / (columns * (1 + GAP))
    line = (aspect * cell) + 0.22
    bars = 0.34 + 0.2 * max(5, len(prediction.classes))
    figure = Figure(figsize=(WIDTH, rows * line + bars + 0.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(rows * line, bars), hspace=0.1, wspace=0.12)
    axes = figure.add_subplot(grid[0, :])
    pitch = aspect + 0.22 / cell
    _bare(axes)
    for place, frame in enumerate(given):
        x, y = (place % columns) * (1 + GAP), (place // columns) * pitch
        _draw_frame(axes, prediction, frame, images[frame.number], x, y, weight=min(1.0, COLUMNS / columns + 0.1))
    axes.set(xlim=(0, columns * (1 + GAP) - GAP), ylim=(rows * pitch, 0), aspect="equal", anchor="NW")
    axes.set_title(_headline(prediction))
    _draw_classes(figure.add_subplot(grid[1, 0]), prediction)
    _draw_facts(figure.add_subplot(grid[1, 1]), prediction)
    return figure


def film_numbers(prediction: Prediction) -> list[int]:
    """Frame numbers that the film shows, ascending: those given, and evenly chosen ones in between."""
    passing = np.arange(0, prediction.frames, max(1, -(-prediction.frames // PASSING)))
    return sorted({*passing.tolist(), *(frame.number for frame in prediction.given)})


def film_rate(prediction: Prediction) -> float:
    """Frames per second of the film; passing frames run at the video's own speed where all are shown."""
    return max(LOWEST_FPS, min(prediction.fps or 25.0, 30.0))


def film(prediction: Prediction, images: Iterable[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of the film: it pauses at each frame that was looked at, and at the end."""
    given = {frame.number: frame for frame in prediction.distinct()}
    pause, end = (max(1, round(film_rate(prediction) * seconds)) for seconds in (PAUSE_S, END_S))
    painter, last = _Painter(prediction), []
    for number, image in images:
        frame = given.get(number)
        last = [painter.paint(number, image, frame)]
        yield from last * (1 if frame is None or frame.state == "left out" else pause)
    yield from last * end


class _Painter:
    """Draws on single frames of the film."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction, self.given = prediction, prediction.distinct()
        side = max(prediction.width, prediction.height)
        self.scale = min(LARGEST / side, max(1.0, SMALLEST / side))
        self.width, self.height = (max(2, 2 * round(n * self.scale / 2)) for n in (prediction.width, prediction.height))
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.font = ImageFont.truetype(folder / "DejaVuSans.ttf", 13)
        self.bold = ImageFont.truetype(folder / "DejaVuSans-Bold.ttf", 13)
        self.exit_number = _exit_number(prediction)

    def paint(self, number: int, image: np.ndarray, frame: GivenFrame | None) -> np.ndarray:
        """One frame of the film."""
        seen = frame is not None and frame.state != "left out"
        shown = image if seen else _grey(image)
        enlarged = Image.Resampling.NEAREST if self.scale >= 2 else Image.Resampling.LANCZOS
        canvas = Image.new("RGB", (self.width, self.height + BAR), INK)
        canvas.paste(Image.fromarray(shown).resize((self.width, self.height), enlarged), (0, 0))
        pen = ImageDraw.Draw(canvas)
        self._outline(pen, self.prediction.crop, "#9aa3ad", 1)
        for box in frame.boxes if frame else ():
            self._outline(pen, box, BOX_EDGE, 5)
            self._outline(pen, box, BOX, 3)
        if number == self.exit_number:
            pen.rectangle((0, 0, self.width - 1, self.height - 1), outline=EXIT, width=4)
            self._tag(pen, "exit")
        self._caption(pen, number, frame)
        return np.asarray(canvas)

    def _outline(self, pen: ImageDraw.ImageDraw, box: Box, colour: str, width: int) -> None:
        right, bottom = self.width - 1, self.height - 1
        x0, x1 = (min(right, round(n * self.scale)) for n in (box.left, box.left + box.width))
        y0, y1 = (min(bottom, round(n * self.scale)) for n in (box.top, box.top + box.height))
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)

    def _tag(self, pen: ImageDraw.ImageDraw, text: str) -> None:
        _, _, right, bottom = pen.textbbox((0, 0), text, font=self.bold)
        pen.rectangle((0, 0, right + 12, bottom + 8), fill=EXIT)
        pen.text((6, 3), text, font=self.bold, fill="white")

    def _caption(self, pen: ImageDraw.ImageDraw, number: int, frame: GivenFrame | None) -> None:
        """Time line, what happens to this frame, and the answer."""
        y, last = self.height + 10, max(1, self.prediction.frames - 1)
        place = {n: 8 + n / last * (self.width - 17) for n in (number, *(f.number for f in self.given))}
        pen.line((8, y, self.width - 9, y), fill=FAINT, width=2)
        for other in self.given:
            x = place[other.number]
            tint, reach = {"looked": (BOX, 5), "glanced": ("#dfe3e8", 4), "left out": (FAINT, 3)}[other.state]
            tint = EXIT if other.number == self.exit_number else tint
            pen.line((x, y - reach, x, y + reach), fill=tint, width=3)
        x = place[number]
        pen.polygon(((x - 4, y - 10), (x + 4, y - 10), (x, y - 4)), fill="white")
        below = (
            (8, _fate(self.prediction, number, frame), self.font, "#dfe3e8"),
            (27, _answer(self.prediction), self.bold, "white"),
        )
        for down, text, font, tint in below:
            pen.text((8, y + down), _fitted(pen, text, font, self.width - 16), font=font, fill=tint)


def _draw_frame(
    axes: Axes, prediction: Prediction, frame: GivenFrame, image: np.ndarray, x: float, y: float, *, weight: float
) -> None:
    width, aspect = prediction.width, prediction.height / prediction.width
    left_out = frame.state == "left out"
    shown = _grey(image) if left_out else image
    axes.imshow(shown, interpolation="none", extent=(x, x + 1, y + aspect, y), zorder=1)
    for box in frame.boxes:
        place = (x + box.left / width, y + box.top / width, box.width / width, box.height / width)
        drawing.outline(axes, *place, weight=weight)
    is_exit = frame.number == _exit_number(prediction)
    if is_exit:
        axes.add_patch(Rectangle((x, y), 1, aspect, fill=False, edgecolor=EXIT, linewidth=2.4 * weight, zorder=3))
    label = str(frame.number) + (f" · {frame.rank}." if frame.rank and _shuffled(prediction) else "")
    tint = EXIT if is_exit else FAINT if left_out else INK
    axes.text(x + 0.5, y + aspect + 0.02, label + (" exit" if is_exit else ""), ha="center", va="top", fontsize=6.5,
              color=tint)


def _draw_classes(axes: Axes, prediction: Prediction) -> None:
    names = [short(c.name, 26) for c in prediction.classes]
    values = [100 * c.probability for c in prediction.classes]
    places = range(len(names))
    axes.barh(places, values, color=[PALETTE[0], *[GRID] * (len(names) - 1)], height=0.62)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 1.5, place, f"{value:.1f} %", va="center", fontsize=7.5)
    axes.set(xlim=(0, 122), ylim=(max(4.6, len(names) - 0.4), -0.6), yticks=list(places), yticklabels=names, xticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_facts(axes: Axes, prediction: Prediction) -> None:
    _bare(axes)
    times = prediction.seconds
    words = {"looked": "looked at", "glanced": "only glanced at", "left out": "left out"}
    fates = [(sum(f.state == state for f in prediction.distinct()), word) for state, word in words.items()]
    loading = times["decode"] + times["transform"] + times["transfer"]
    rows = [
        ("GFLOPs", f"{prediction.gflops:.4g}"),
        ("model", f"{duration(times['model'])} on {short(prediction.device, 24)}"),
        ("decode, resize", f"{duration(loading)}, {prediction.frames_decoded} of {prediction.frames} frames"),
        ("frames", ", ".join(f"{number} {word}" for number, word in fates if number)),
    ]
    if prediction.exit_step is not None:
        rows.append(("exit", f"{prediction.exit_step + 1} of {prediction.exits}"))
    for i, (name, value) in enumerate(rows):
        axes.text(0.0, 1 - (i + 0.6) / 5.2, name, fontsize=7.5, color=FAINT, va="center")
        axes.text(0.31, 1 - (i + 0.6) / 5.2, value, fontsize=7.5, color=INK, va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _headline(prediction: Prediction) -> str:
    point = "" if prediction.point == "full" else f" ({prediction.point})"
    return short(f"{_answer(prediction)} · {prediction.title}{point}", 92)


def _answer(prediction: Prediction) -> str:
    best = prediction.classes[0]
    return f"{short(best.name, 40)}: {100 * best.probability:.1f} %"


def _fate(prediction: Prediction, number: int, frame: GivenFrame | None) -> str:
    """What became of a frame of the film, in words."""
    time = f" · {number / prediction.fps:.1f} s" if prediction.fps else ""
    if frame is None:
        return f"frame {number}{time} · not taken"
    fate = "skipped" if frame.state == "left out" else "glanced at"
    if frame.rank is not None:
        fate = f"look {frame.rank} of {sum(f.rank is not None for f in prediction.given)}"
    if prediction.exit_step is not None and number == _exit_number(prediction):
        fate += f" · stops here, {prediction.exit_step + 1} of {prediction.exits}"
    return f"frame {number}{time} · {fate}"


def _exit_number(prediction: Prediction) -> int | None:
    """Number of the frame after which the method stopped: the last one looked at, or the last one glanced at
    where it was sure before the first look. None where it went to the end, or has no exits.
    """
    if prediction.exit_step is None or prediction.exit_step == prediction.exits - 1:
        return None
    looked = [f for f in prediction.given if f.rank is not None]
    if looked:
        return max(looked, key=lambda f: f.rank or 0).number
    return max((f.number for f in prediction.given if f.state == "glanced"), default=None)


def _shuffled(prediction: Prediction) -> bool:
    """Whether frames were looked at in another order than the video's."""
    ranks = [f.rank for f in prediction.given if f.rank is not None]
    return ranks != sorted(ranks)


def _chosen(given: Sequence[GivenFrame]) -> list[GivenFrame]:
    """All frames, or as many as the picture holds, evenly: those looked at first, then those glanced at."""
    wanted: list[int] = []
    for state in STATES:
        wanted += _evenly([i for i, f in enumerate(given) if f.state == state], SHOWN - len(wanted))
    return [given[i] for i in sorted(wanted)]


def _evenly(values: Sequence[int], count: int) -> list[int]:
    if len(values) <= count:
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, count).round()] if count else []


def _grey(image: np.ndarray) -> np.ndarray:
    """Without colour and with half the contrast towards light grey: readable, but plainly left out."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return np.repeat((0.45 * luma + 95).astype(np.uint8)[..., None], 3, axis=2)


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, cut to `width` pixels."""
    length = len(text)
    while pen.textlength(short(text, length), font=font) > width and length > 1:
        length -= 1
    return short(text, length)
