"""Find every broken video before training starts: `bench.py data check`, and each opening of a dataset.

The quick check opens each file, decodes its first frame, counts its frames and compares with what its
header says; the full check decodes everything. What was found is cached by (path, size, modification
time), so a second opening only looks at file dates.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.data.decode import VideoInfo, count_frames, probe, read_jpeg
from harness.data.lists import VideoEntry
from harness.errors import BenchError, DataError
from harness.store.files import write_atomically

CACHE_VERSION = 1
SHOWN = 20
"""Broken videos that an error lists; the rest is counted."""


@dataclass(frozen=True)
class Problem:
    """A video that cannot be used, and why."""

    id: str
    reason: str


def check(
    entries: Sequence[VideoEntry],
    full: bool = False,
    *,
    template: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Every missing, empty, truncated, non-video or frame-less entry, in list order.

    Args:
        entries: What a list names.
        full: Decode everything, and compare with the frame count of the list where it has one.
        template: Name of frame i (1-based) in frame folders.
        cache_dir: Where results are kept; None keeps none.
        progress: Called with (done, all).
    """
    return inspect(entries, full, template=template, cache_dir=cache_dir, progress=progress)[1]


def inspect(
    entries: Sequence[VideoEntry],
    full: bool = False,
    *,
    template: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, VideoInfo], list[Problem]]:
    """As `check`, with what the good ones are: ({id: VideoInfo}, problems)."""
    cache = _Cache(cache_dir, entries)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = []
        for done, result in enumerate(pool.map(lambda e: _look(e, full, template, cache), entries), 1):
            results.append(result)
            if progress:
                progress(done, len(entries))
    cache.save()
    infos = {e.id: r for e, r in zip(entries, results, strict=True) if isinstance(r, VideoInfo)}
    problems = [Problem(e.id, r) for e, r in zip(entries, results, strict=True) if isinstance(r, str)]
    return infos, problems


def describe(problems: Sequence[Problem], what: str) -> str:
    """The text of an error: the first 20 problems and how many more there are."""
    lines = [f"  {p.id}: {p.reason}" for p in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    return (f"{what}: {len(problems)} broken or missing video{'s' * (len(problems) > 1)}\n" + "\n".join(lines)
            + f"\nrepair the files or the list, or leave them out with --allow-missing {len(problems)}")


def _look(entry: VideoEntry, full: bool, template: str | None, cache: _Cache) -> VideoInfo | str:
    """VideoInfo, or the reason why the entry cannot be used."""
    known = cache.get(entry, full, template)
    if known is None:
        known = _probe_fully(entry, template) if full else _probe(entry, template)
        cache.put(entry, full, template, known)
    if full and isinstance(known, VideoInfo) and entry.frames not in (None, known.frames):
        return f"decodes to {known.frames} frames, the list says {entry.frames}"
    return known


def _probe(entry: VideoEntry, template: str | None) -> VideoInfo | str:
    frames = None if entry.is_video else entry.frames
    try:
        return probe(entry.path, template=template, frames=frames)
    except DataError as error:
        return str(error).removeprefix(f"{entry.path}: ")
    except OSError as error:
        return error.strerror or str(error)


def _probe_fully(entry: VideoEntry, template: str | None) -> VideoInfo | str:
    info = _probe(entry, template)
    if isinstance(info, str):
        return info
    try:
        if not entry.is_video:
            for number in range(info.frames):
                read_jpeg(entry.path / (template or "{:05d}.jpg").format(number + 1))
            return info
        decoded = count_frames(entry.path)
    except DataError as error:
        return str(error).removeprefix(f"{entry.path}: ")
    return info if decoded == info.frames else f"decodes to {decoded} frames, its packets say {info.frames}"


class _Cache:
    """Results by path, valid while a file's size and modification time stay the same."""

    def __init__(self, folder: Path | None, entries: Iterable[VideoEntry]) -> None:
        roots = sorted({str(e.path.parent.absolute()) for e in entries})
        name = f"checked-{hashlib.sha256(chr(10).join(roots).encode()).hexdigest()[:12]}.json"
        self.path = folder / ".checked" / name if folder is not None else None
        self.table: dict[str, list] = {}
        self.changed = False
        if self.path is not None and self.path.exists():
            try:
                stored = json.loads(self.path.read_text())
                self.table = stored["table"] if stored["version"] == CACHE_VERSION else {}
            except (ValueError, KeyError, TypeError):
                self.table = {}

    def get(self, entry: VideoEntry, full: bool, template: str | None) -> VideoInfo | str | None:
        stored = self.table.get(self._key(entry, template))
        if stored is None or stored[0] != _stamp(entry) or (full and not stored[1]):
            return None
        return VideoInfo(**stored[2]) if isinstance(stored[2], dict) else None

    def put(self, entry: VideoEntry, full: bool, template: str | None, result: VideoInfo | str) -> None:
        if isinstance(result, VideoInfo):  # a broken file is looked at again
            self.table[self._key(entry, template)] = [_stamp(entry), full, asdict(result)]
            self.changed = True

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs time, not correctness."""
        if self.path is None or not self.changed:
            return
        text = json.dumps({"version": CACHE_VERSION, "table": self.table}, sort_keys=True)
        try:
            write_atomically(self.path, text.encode())
        except (BenchError, OSError):
            return

    @staticmethod
    def _key(entry: VideoEntry, template: str | None) -> str:
        path = str(entry.path.absolute())
        return path if entry.is_video else f"{path}|{template}|{entry.frames}"


def _stamp(entry: VideoEntry) -> list[int] | None:
    try:
        status = entry.path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
