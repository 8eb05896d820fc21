"""What a video holds, wherever it lies and whatever it is called. No torch.

Two videos share an identity if they have equal frame count, size in pixels, size in bytes and equal bytes at
both ends (docs/data.md#identity). Reading all of a large set would take hours; its ends take seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.data.decode import VideoInfo, frame_file

EDGE = 64 << 10
"""Bytes that are read at the beginning and at the end of a file: a smaller one is read whole."""
SAMPLED = 16
"""Frames of a folder, spread over it, whose file sizes and dates stand for all."""


def identified(path: Path, info: VideoInfo, template: str) -> VideoInfo:
    """`info` with the video's identity; of a folder its first, middle and last frame are read whole."""
    hasher = hashlib.sha256(repr((info.frames, info.width, info.height)).encode())
    if path.is_dir():
        files = [path / name for name in sampled_names(info.frames, template)]
        hasher.update(repr([f.stat().st_size for f in files]).encode())
        for frame in (files[0], files[len(files) // 2], files[-1]):
            hasher.update(frame.read_bytes())
    else:
        size = path.stat().st_size
        hasher.update(repr(size).encode())
        with path.open("rb") as file:
            hasher.update(file.read(EDGE))
            file.seek(max(EDGE, size - EDGE))
            hasher.update(file.read())
    return replace(info, content=hasher.hexdigest()[:32])


def stamp(path: Path, names: Iterable[str] = ()) -> str | None:
    """Changes when a file is written to, in place or not; of a folder also its files `names`. None: not there."""
    try:
        states = [os.stat(file) for file in (path, *(path / name for name in names))]
    except OSError:
        return None
    # the change time sees what keeps size and modification time, as `cp -p` over a file does
    seen = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def whole_stamp(path: Path) -> str | None:
    """As `stamp`, over all files of a folder."""
    try:
        return stamp(path, sorted(os.listdir(path)) if path.is_dir() else ())
    except OSError:
        return None


def sampled_names(frames: int, template: str) -> list[str]:
    """Names of at most 16 frames of a folder, the first and the last among them."""
    numbers = np.linspace(0, frames - 1, min(frames, SAMPLED)).round().astype(int)
    return [frame_file(template, int(number)) for number in numbers]
