"""Writing H.264 for people to look at; the embedded data sets are encoded by `harness.data.render`."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from harness.errors import DataError


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 (H, W, 3) RGB frames of one even size; the file appears whole or not at all.

    Raises DataError where there are no frames, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"
            stream.options = {"preset": "veryfast", "crf": "18"}
            count = 0
            for count, frame in enumerate(frames, 1):
                if count == 1:
                    stream.height, stream.width = frame.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if not count:
                raise DataError(f"{path}: there are no frames to write")
            container.mux(stream.encode(None))
        temporary.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; see `bench.py doctor`") from None
    finally:
        temporary.unlink(missing_ok=True)
