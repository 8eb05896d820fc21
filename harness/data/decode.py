"""Frames from video files (PyAV) and from JPEG folders (cv2); uint8 RGB, by frame number. No torch.

A frame's number is its place in the decoder's output, which also holds for a variable frame rate. One
thread per decoder: parallelism belongs to the loader. Two paths turn YUV into RGB:

* `pyav+cv2`: `to_ndarray()` as yuv420p, then cv2; about 3.5 times faster, valid for 8-bit yuv420p of
  even size, limited range and BT.601 or unspecified colour;
* `pyav+swscale`: everything else.

The path depends on the file alone and is part of the dataset's fingerprint. Rotation metadata is
applied; the pixel aspect ratio is not.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from harness.errors import DataError

PACKET_PER_FRAME = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mjpeg"})
"""Codecs whose packets can be counted instead of frames; the others (MPEG-4 part 2 in AVI) hold
placeholder packets and are decoded to be counted."""
BT601_OR_UNSPECIFIED = (2, 5, 6)
LIMITED_OR_UNSPECIFIED = (0, 1)
DEFAULT_TEMPLATE = "{:05d}.jpg"
FRAMES_PATH = "frames+cv2"
FAST_PATH = "pyav+cv2"
SWSCALE_PATH = "pyav+swscale"
NARROWEST = 16
"""Longer side of a frame as a multiple of the shorter, at most: the shorter is resized to the same pixels in all
videos, so that a frame of 2 x 4096 pixels would take 400 MB."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file is, without decoding all of it."""

    frames: int
    width: int
    """As shown: after rotation."""
    height: int
    fps: float | None
    decoder_path: str
    rotation: int
    """Degrees counter-clockwise that the decoder turns the stored frames by: 0, 90, 180 or 270."""
    content: str = ""
    """What the video holds (`harness.data.identity`); empty where nobody looked."""


def probe(path: Path | str, *, template: str | None = None, frames: int | None = None) -> VideoInfo:
    """Open a video file, decode its first frame and count its frames; or look at a frame folder.

    Args:
        path: File or folder.
        template: For a folder: name of frame i (1-based).
        frames: For a folder: number of frames of the list; counted where None.

    Raises:
        DataError: Missing, unreadable, empty, not a video, without frames, truncated, or so narrow that no pipeline
            can use it; of a folder: frames that are missing, numbered from 0 or of another size; says which.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path}: missing")
        if path.is_dir():
            info = _probe_folder(path, template or DEFAULT_TEMPLATE, frames)
        elif path.stat().st_size == 0:
            raise DataError(f"{path}: empty file")
        else:
            info = _probe_file(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if max(info.width, info.height) > NARROWEST * min(info.width, info.height):
        raise DataError(f"{path}: {info.width} x {info.height} pixels: the longer side may be at most {NARROWEST} "
                        "times the shorter; cut it")
    return info


def passing(error: BaseException | None) -> bool:
    """Whether a fault is the machine's and not the video's: memory, permissions, open files, a disk, the network."""
    return isinstance(error, MemoryError | OSError) and not isinstance(error, FileNotFoundError)


def frame_file(template: str, number: int) -> str:
    """File name of frame `number` (0-based) in a folder of frames."""
    return template.format(number + 1)


def count_frames(path: Path | str) -> int:
    """Decode the whole file and count; raises DataError where decoding fails on the way."""
    with opened(Path(path)) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def decode(
    path: Path | str,
    indices: Sequence[int] | np.ndarray,
    *,
    template: str | None = None,
    tally: Counter[str] | None = None,
) -> np.ndarray:
    """The frames with the given numbers, uint8 (T, H, W, 3) RGB; numbers may repeat and be unordered.

    `tally["frames"]` grows by the frames that were decoded on the way, wanted or not.

    Raises DataError naming the file where it is broken or ends before the last wanted frame.
    """
    wanted = [int(i) for i in indices]
    found = dict(iterate(path, wanted, template=template, tally=tally))
    return np.stack([found[i] for i in wanted])


def iterate(
    path: Path | str, indices: Sequence[int], *, template: str | None = None, tally: Counter[str] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, uint8 (H, W, 3) RGB frame) for each distinct wanted number, ascending; `tally` as in `decode`."""
    path = Path(path)
    tally = Counter() if tally is None else tally
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0:
        raise DataError(f"{path}: frame numbers must be non-negative, and at least one is needed: {wanted[:3]}")
    if path.is_dir():
        shape: tuple[int, ...] | None = None
        for number in wanted:
            image = read_frame(path, number, template, shape)
            tally["frames"] += 1
            shape = image.shape
            yield number, image
        return
    yield from _decoded(path, wanted, tally)


def read_frame(folder: Path, number: int, template: str | None, shape: Sequence[int] | None) -> np.ndarray:
    """Frame `number` of a folder, uint8 (H, W, 3) RGB; one that has not the `shape` of the others is an error."""
    file = folder / frame_file(template or DEFAULT_TEMPLATE, number)
    image = read_jpeg(file)
    if shape is not None and image.shape != shape:
        raise DataError(f"{file}: {_pixels(image.shape)} pixels, other frames of the folder {_pixels(shape)}; "
                        "extract them again at one size")
    return image


def read_jpeg(path: Path) -> np.ndarray:
    """A JPEG file as uint8 (H, W, 3) RGB; a missing or broken one raises DataError naming it."""
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; run `bench.py data check`") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    if image is None:
        raise DataError(f"{path}: {'not a readable image' if data.size else 'empty file'}; run `bench.py data check`")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_rgb(frame: VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """One decoded frame as uint8 (H, W, 3) RGB, rotated as its metadata say.

    `size` is the (width, height) of the file's first frame, to which a frame of another size is scaled.
    """
    if size is None:
        size = (frame.width, frame.height)
    if _path_of(frame) == FAST_PATH and size == (frame.width, frame.height):
        image = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    else:
        image = frame.reformat(*size, format="rgb24", dst_color_range="JPEG", threads=1).to_ndarray()
    turn = _rotation(frame)
    return np.ascontiguousarray(np.rot90(image, turn // 90)) if turn else image


def _decoded(path: Path, wanted: list[int], tally: Counter[str]) -> Iterator[tuple[int, np.ndarray]]:
    targets = iter(wanted)
    target: int | None = next(targets)
    number, size = -1, None
    with opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            tally["frames"] += 1
            size = size or (frame.width, frame.height)
            if number == target:
                yield number, to_rgb(frame, size)
                target = next(targets, None)
                if target is None:
                    return
    raise too_short(path, number + 1, target)


def too_short(path: Path, frames: int, wanted: int | None) -> DataError:
    """The error of a file that ends before a frame that was wanted."""
    return DataError(f"{path}: ends after {frames} frames, frame {wanted} was wanted; run `bench.py data check --full`")


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream; every error of FFmpeg becomes a DataError that names the file."""
    if not path.exists():
        raise DataError(f"{path}: missing")
    with naming(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise DataError(f"{path}: holds no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield container, stream


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of FFmpeg become DataErrors that name the file.

    Their cause tells a broken video from a fault that passes (`passing`).
    """
    try:
        yield
    except (av.FFmpegError, ValueError) as error:  # FFmpeg's own for the system are OSError and MemoryError as well
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be decoded ({reason})") from error


def _count(path: Path, container: InputContainer, stream: VideoStream) -> tuple[int, VideoFrame]:
    """Number of frames and the first one; truncation that the container's header tells is an error."""
    if stream.codec_context.name not in PACKET_PER_FRAME:
        first, count = next(container.decode(stream), None), 1
        count += sum(1 for _ in container.decode(stream))
    else:
        first = next(container.decode(stream), None)
        container.seek(0)
        count = _count_packets(path, container, stream)
    if first is None:
        raise DataError(f"{path}: holds no decodable frame")
    if stream.frames - count > max(3, stream.frames // 50):
        raise DataError(f"{path}: truncated: {count} of the {stream.frames} frames that its header names")
    _check_riff(path)
    return count, first


def _count_packets(path: Path, container: InputContainer, stream: VideoStream) -> int:
    """Frames by packets, which is 20 times faster than decoding; a file that ends early is an error."""
    count, end = 0, 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise DataError(f"{path}: truncated or damaged (corrupt packet {count})")
        count += packet.size > 0 and not packet.is_discard
        end = max(end, (packet.pts or 0) + (packet.duration or 0))
    stated = _stated_seconds(stream.metadata.get("DURATION", ""))
    if stream.time_base is not None and stated - float(end * stream.time_base) > max(1.0, 0.02 * stated):
        raise DataError(f"{path}: truncated: ends after {float(end * stream.time_base):.1f} of {stated:.1f} seconds")
    return count


def _stated_seconds(tag: str) -> float:
    """Matroska's DURATION tag, `00:01:02.500`, in seconds; 0 where there is none."""
    parts = tag.split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _check_riff(path: Path) -> None:
    """An AVI file's header says how long the file must be."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little") + 8
        if path.stat().st_size < size:
            raise DataError(f"{path}: truncated: {path.stat().st_size} of {size} bytes")


def _path_of(frame: VideoFrame) -> str:
    fast = (
        frame.format.name == "yuv420p"
        and frame.width % 2 == 0
        and frame.height % 2 == 0
        and frame.colorspace in BT601_OR_UNSPECIFIED
        and frame.color_range in LIMITED_OR_UNSPECIFIED
    )
    return FAST_PATH if fast else SWSCALE_PATH


def _rotation(frame: VideoFrame) -> int:
    return round(frame.rotation / 90) * 90 % 360


def _probe_file(path: Path) -> VideoInfo:
    with opened(path) as (container, stream):
        count, first = _count(path, container, stream)
        rate = stream.average_rate
        turn = _rotation(first)
        width, height = (first.width, first.height)[:: -1 if turn % 180 else 1]
        return VideoInfo(count, width, height, float(rate) if rate else None, _path_of(first), turn)


def _probe_folder(path: Path, template: str, frames: int | None) -> VideoInfo:
    first = frame_file(template, 0)
    names = [file.name for file in path.iterdir()]
    numbers = {int(n[1]) for n in map(_numbered(template).fullmatch, names) if n and template.format(int(n[1])) == n[0]}
    if 0 in numbers:
        raise DataError(f"{path}: frames are numbered from 0 ({template.format(0)}); number them from 1 ({first})")
    if not numbers:
        raise DataError(f"{path}: no frame named {first}{f'; it holds {min(names)}' if names else ''}")
    last = max(numbers) if frames is None else frames
    if last < 1:
        raise DataError(f"{path}: the list names {frames} frames")
    missing = last - sum(number <= last for number in numbers)
    if missing:
        gap = template.format(next(i for i in itertools.count(1) if i not in numbers))
        stated = f" (the list names {frames} frames)" if frames is not None else ""
        raise DataError(f"{path}: {missing} of its frames missing, the first is {gap}{stated}")
    numbers_shown = sorted({0, (last - 1) // 2, last - 1})
    shown = [image for _, image in iterate(path, numbers_shown, template=template)]
    return VideoInfo(last, shown[0].shape[1], shown[0].shape[0], None, FRAMES_PATH, 0)


@cache
def _numbered(template: str) -> re.Pattern[str]:
    before, after = re.split(r"\{.*\}", template)
    return re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}")


def _pixels(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
