"""The one writer of H.264 files: films for people to look at, and the clips of the embedded data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.codec.codec import UnknownCodecError

from harness.errors import DataError

ENCODER: Final = "libx264"
FOR_PEOPLE = {"preset": "veryfast", "crf": "18"}


def write_mp4(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    options: Mapping[str, str] = FOR_PEOPLE,
    threads: int | None = None,
) -> None:
    """Write uint8 (H, W, 3) RGB frames of one even size as yuv420p; the file appears whole or not at all.

    Args:
        path: An .mp4 file; one that is there is replaced.
        frames: Taken one by one.
        fps: Frames per second.
        options: The encoder's own options.
        threads: Of the encoder, which chooses itself when None.

    Raises:
        DataError: There are no frames, no encoder, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream(ENCODER, rate=Fraction(fps).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"
            stream.options = dict(options)
            if threads is not None:
                stream.codec_context.thread_count = threads
            count = 0
            for count, frame in enumerate(frames, 1):
                if count == 1:
                    stream.height, stream.width = frame.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if not count:
                raise DataError(f"{path}: there are no frames to write")
            container.mux(stream.encode(None))
        temporary.replace(path)
    except UnknownCodecError:
        raise DataError(f"{path} cannot be written: PyAV was built without {ENCODER}; see `bench.py doctor`") from None
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; see `bench.py doctor`") from None
    finally:
        temporary.unlink(missing_ok=True)
