"""Single frames of one video, asked for in any order: the decoder stays open between questions. No torch.

    reader = open_reader(path, wanted=numbers, prepare=resize)
    image = reader.read(7)        # prepared; equal to what harness.data.decode gives for frame 7
    reader.decoded                # frames that the decoder gave for it

A codec is sequential: it decodes a frame after all frames from a keyframe on. A reader goes on from where it is, or
from the keyframe before the wanted frame, whichever decodes fewer frames. Wanted frames that are passed on the way
are kept as the decoder gave them, and turned into pictures when somebody asks; a decoder that leaves wanted frames
between two keyframes waits there, and another one seeks. So no frame is decoded twice, but where a file would need more
than DECODERS of them.

A frame's number is its place in the decoder's output. Behind a keyframe it follows from the times of the file's
packets, and holds where every packet is one frame and no frame refers beyond the keyframe (closed groups of
pictures). Every frame behind a seek is held against those times; a file that has other frames is read from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from harness.data.decode import naming, opened, read_frame, to_rgb, too_short

SEEKABLE = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg"})
"""Codecs each of whose packets is one frame; others hold invisible or placeholder packets."""
KEPT_BYTES = 64 << 20
"""Of a video's passed frames, as the decoder gave them; what is beyond is prepared at once."""
DECODERS = 4
"""Of a video, at most."""

Prepare = Callable[[np.ndarray], np.ndarray]
"""What becomes of a decoded frame, uint8 (H, W, 3) RGB."""


class Reader(Protocol):
    """Frames of one video."""

    decoded: int
    """Frames that were decoded, wanted or not."""

    def read(self, number: int) -> np.ndarray:
        """Frame `number`, prepared; DataError where it cannot be decoded or is not there."""
        ...

    def close(self) -> None:
        """Close the file and forget its frames; another question opens it again."""
        ...


def open_reader(path: Path, *, wanted: Collection[int], prepare: Prepare, template: str | None = None) -> Reader:
    """A reader of a video file or a folder of JPEG frames; the file is opened by the first question.

    Args:
        path: File or folder.
        wanted: Numbers of all frames that will or may be asked for.
        prepare: Applied to every frame that is asked for, once.
        template: For a folder: name of frame i (1-based).
    """
    return _FolderReader(path, prepare, template) if path.is_dir() else FileReader(path, wanted, prepare)


class _FolderReader:
    """A frame is a file."""

    def __init__(self, path: Path, prepare: Prepare, template: str | None) -> None:
        self.path, self.prepare, self.template = path, prepare, template
        self.decoded = 0
        self._shape: tuple[int, ...] | None = None
        self._ready: dict[int, np.ndarray] = {}

    def read(self, number: int) -> np.ndarray:
        if number not in self._ready:
            image = read_frame(self.path, number, self.template, self._shape)
            self.decoded, self._shape = self.decoded + 1, image.shape
            self._ready[number] = self.prepare(image)
        return self._ready[number]

    def close(self) -> None:
        self._ready.clear()


class _Key(NamedTuple):
    """A frame at which decoding may begin."""

    number: int
    pts: int
    dts: int | None


@dataclass(frozen=True)
class _Index:
    """Where the frames of a file are."""

    times: tuple[int, ...] = ()
    """Presentation time of each frame."""
    keys: tuple[_Key, ...] = ()
    """After the first frame, which needs no seeking."""

    def before(self, number: int) -> _Key | None:
        """The last key up to frame `number`; None: the start of the file."""
        return max((key for key in self.keys if key.number <= number), default=None)


class _Decoder:
    """An open file, decoded from somewhere on.

    Attributes:
        size: Width and height of a frame that needs no scaling.
        next: Number of the frame that comes next.
        sought: Whether it began behind the start of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = ExitStack()
        self._container, self.stream = self._file.enter_context(opened(path))
        self.size = self.stream.codec_context.width, self.stream.codec_context.height
        self._frames: Iterator[VideoFrame] = self._container.decode(self.stream)
        self.next, self.sought = 0, False

    def seek(self, key: _Key) -> bool:
        """Go on from a keyframe; says whether the container leads there."""
        for time in (key.dts, key.pts):  # containers search by one or the other
            if time is not None:
                self._container.seek(time, stream=self.stream)
                packets = self._container.demux(self.stream)
                first = next(packets, None)
                if first is not None and first.pts == key.pts:
                    self._frames = (frame for packet in chain([first], packets) for frame in packet.decode())
                    self.next, self.sought = key.number, True
                    return True
        return False

    def take(self) -> VideoFrame | None:
        """The next frame; None after the last."""
        return next(self._frames, None)

    def close(self) -> None:
        self._frames = iter(())
        self._file.close()


class FileReader:
    """A video file; see `open_reader`."""

    def __init__(self, path: Path, wanted: Collection[int], prepare: Prepare) -> None:
        self.path, self.wanted, self.prepare = path, wanted, prepare
        self.decoded = 0
        self._decoders: list[_Decoder] = []
        """The one used last stands last."""
        self._size: tuple[int, int] | None = None
        """Width and height of the file's first frame, to which others are scaled; None: not seen."""
        self._index: _Index | None = None
        self._missing = set(wanted)
        """Wanted frames that were not decoded yet."""
        self._passed: dict[int, VideoFrame] = {}
        self._ready: dict[int, np.ndarray] = {}
        self._bytes = 0

    @property
    def open(self) -> int:
        """Decoders at work."""
        return len(self._decoders)

    def read(self, number: int) -> np.ndarray:
        if number not in self._ready:
            with naming(self.path):
                frame = self._passed.pop(number, None)
                if frame is None:
                    frame = self._decode(number)
                else:
                    self._bytes -= _bytes(frame)
                self._ready[number] = self._prepared(frame)
        if not self._missing:
            self._close_file()
        return self._ready[number]

    def close(self) -> None:
        self._close_file()
        self._passed.clear()
        self._ready.clear()
        self._bytes, self._missing = 0, set(self.wanted)

    def _close_file(self) -> None:
        while self._decoders:
            self._decoders.pop().close()

    def _decode(self, number: int) -> VideoFrame:
        """Frame `number`; those passed on the way that are wanted are kept."""
        decoder = self._approach(number)
        while (frame := decoder.take()) is not None:
            self.decoded += 1
            if decoder.sought and not self._as_indexed(decoder.next, frame):
                decoder = self._start_over()
                continue
            if decoder.next == 0:
                self._size = frame.width, frame.height
            this, decoder.next = decoder.next, decoder.next + 1
            wanted = this in self._missing
            self._missing.discard(this)
            if this == number:
                return frame
            if wanted:
                self._keep(this, frame)
        raise too_short(self.path, decoder.next, number)

    def _approach(self, number: int) -> _Decoder:
        """The decoder that has the fewest frames to decode up to `number`; it becomes the last of all."""
        if not self._decoders:
            self._decoders.append(_Decoder(self.path))
        nearest = max((d for d in self._decoders if d.next <= number), key=lambda d: d.next, default=None)
        if nearest is None or nearest.next < number:
            if self._index is None:
                self._index = _look_up(self.path, self._decoders[0].stream)
            key = self._index.before(number)
            if nearest is None or (key is not None and key.number > nearest.next):
                return self._begin(key)
        self._decoders.remove(nearest)
        self._decoders.append(nearest)
        return nearest

    def _begin(self, key: _Key | None) -> _Decoder:
        """Decode from a keyframe on, or from the start of the file; a decoder that is still wanted waits."""
        idle = next((d for d in self._decoders if not self._is_wanted(d)), None)
        if idle is None and len(self._decoders) == DECODERS:
            idle = self._decoders[0]
        if idle is not None:
            self._decoders.remove(idle)
            if key is None:
                idle.close()
        decoder = _Decoder(self.path) if idle is None or key is None else idle
        self._decoders.append(decoder)
        if key is not None and not decoder.seek(key):
            return self._start_over()
        return decoder

    def _start_over(self) -> _Decoder:
        """The index does not hold: only the start of the file is known."""
        self._index = _Index()
        self._close_file()
        self._decoders.append(_Decoder(self.path))
        return self._decoders[0]

    def _is_wanted(self, decoder: _Decoder) -> bool:
        """Whether frames are still wanted that it is nearer to than a keyframe is."""
        assert self._index is not None
        end = min((key.number for key in self._index.keys if key.number >= decoder.next), default=None)
        return any(decoder.next <= number and (end is None or number < end) for number in self._missing)

    def _as_indexed(self, number: int, frame: VideoFrame) -> bool:
        """Whether a frame behind a seek is the one that it should be, whole and of the first one's size."""
        assert self._index is not None
        due = self._index.times[number] if number < len(self._index.times) else None
        size = self._size or self._decoders[-1].size
        return frame.pts == due and not frame.is_corrupt and (frame.width, frame.height) == size

    def _keep(self, number: int, frame: VideoFrame) -> None:
        if self._bytes + _bytes(frame) <= KEPT_BYTES:
            self._passed[number] = frame
            self._bytes += _bytes(frame)
        else:
            self._ready[number] = self._prepared(frame)

    def _prepared(self, frame: VideoFrame) -> np.ndarray:
        return self.prepare(to_rgb(frame, self._size))


def _bytes(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


def _look_up(path: Path, stream: VideoStream) -> _Index:
    """The frames and keyframes of a file by its packets, which are read and not decoded."""
    if stream.codec_context.name not in SEEKABLE:
        return _Index()
    entries = stream.index_entries
    if len(entries) >= stream.frames > 0 and sum(entry.is_keyframe for entry in entries) < 2:
        return _Index()  # the container's own table names every frame, and one key
    with opened(path) as (container, video):
        packets = [(p.pts, p.dts, p.is_keyframe, p.is_discard) for p in container.demux(video) if p.size]
    if any(pts is None or discarded for pts, _, _, discarded in packets):
        return _Index()
    times = np.asarray([pts for pts, *_ in packets], dtype=np.int64)
    if len(np.unique(times)) != len(times):
        return _Index()
    latest = np.maximum.accumulate(times)
    earliest = np.minimum.accumulate(times[::-1])[::-1]
    keys = tuple(
        _Key(place, int(times[place]), packets[place][1])
        for place in range(1, len(packets))
        if packets[place][2] and latest[place - 1] < times[place] == earliest[place]  # nothing refers across it
    )
    return _Index(tuple(np.sort(times).tolist()), keys)
