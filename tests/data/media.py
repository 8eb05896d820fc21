"""Small real video files of every kind, written on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(*parts: str) -> Path:
    """A file beside the repository; the test is skipped, with this reason, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{'/'.join(parts)}, which is not here")
    return path


def picture(width: int = 96, height: int = 64, frames: int = 6, number: int = 0) -> np.ndarray:
    """Colour fields that no flip or turn maps onto themselves, with a bar that tells the frame number.

    Videos of another `number` hold something else.
    """
    video = np.empty((frames, height, width, 3), dtype=np.uint8)
    video[:, :, : width // 2] = (200, 60, 40)
    video[:, :, width // 2 :] = (30, 120, 220)
    video[:, : height // 4] = (90, 200 - 10 * number, 80)
    for t in range(frames):
        video[t, -(height // 4) :] = 20 + 30 * t % 210
    return video


def write(
    path: Path,
    video: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    colorspace: int | None = None,
    times: list[int] | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encode uint8 (T, H, W, 3); `colorspace` is FFmpeg's number (1: BT.709), `times` are pts in 1/100 s."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream: Any = output.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pix_fmt
        stream.options = {"crf": "8", **options} if codec == "libx264" else options
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for t, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace)
            if times is not None:
                frame.pts, frame.time_base = times[t], Fraction(1, 100)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write a clockwise rotation into the track header of an MP4 file."""
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0), 180: (-one, 0, 0, 0, -one), 270: (0, -one, 0, one, 0)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of version, times, layer and volume
    data[start : start + 20] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path
