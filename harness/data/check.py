"""Find every broken video before training starts: `bench.py data check`, and each opening of a dataset.

The quick check opens each file, decodes its first frame, counts its frames, compares with what its header
says and takes its identity; the full check decodes everything. What was found is cached by path, size and
dates, so that a second opening only looks at file dates. A video that the full check or a training could
not decode stays broken until it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.data.decode import DEFAULT_TEMPLATE, VideoInfo, count_frames, iterate, passing, probe
from harness.data.identity import identified, sampled_names, stamp, whole_stamp
from harness.data.lists import VideoEntry
from harness.errors import BenchError, DataError
from harness.store.files import file_hash, write_atomically, write_json

CACHE_VERSION = 2
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
    template: str = DEFAULT_TEMPLATE,
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
    template: str = DEFAULT_TEMPLATE,
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


def remember_broken(path: Path, reason: str, cache_dir: Path | None) -> bool:
    """Keep what only decoding shows, until the file changes or `data check --full` finds it good.

    A file for each broken video: jobs side by side may find several. Says whether it could be written.
    """
    marked = whole_stamp(path)
    if cache_dir is None or marked is None:
        return False
    verdict = {"version": CACHE_VERSION, "path": str(path.absolute()), "stamp": marked, "reason": reason}
    try:
        write_json(_verdict_file(path, cache_dir), verdict)
    except (BenchError, OSError):
        return False
    return True


def _remembered(cache_dir: Path | None) -> dict[str, tuple[str, str]]:
    """Absolute path -> (stamp, reason) of the videos that decoding found broken."""
    found = {}
    for file in sorted((cache_dir / ".checked" / "broken").glob("*.json")) if cache_dir is not None else ():
        try:
            verdict = json.loads(file.read_text())
            if verdict["version"] == CACHE_VERSION:
                found[str(verdict["path"])] = (str(verdict["stamp"]), str(verdict["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _verdict_file(path: Path, cache_dir: Path) -> Path:
    return cache_dir / ".checked" / "broken" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]}.json"


def _look(entry: VideoEntry, full: bool, template: str, cache: _Cache) -> VideoInfo | str:
    """VideoInfo, or the reason why the entry cannot be used."""
    known = cache.get(entry, full, template)
    if known is None:
        known = _probe(entry, template)
        if full and isinstance(known, VideoInfo):
            try:
                known = _decode_whole(entry, template, known)
            except DataError as error:  # which says nothing of the video
                return reason_of(entry.path, error)
            cache.judge(entry, known)
        cache.put(entry, full, template, known)
    if full and isinstance(known, VideoInfo) and entry.frames not in (None, known.frames):
        return f"decodes to {known.frames} frames, the list says {entry.frames}"
    return known


def _probe(entry: VideoEntry, template: str) -> VideoInfo | str:
    frames = None if entry.is_video else entry.frames
    try:
        info = identified(entry.path, probe(entry.path, template=template, frames=frames), template)
        if entry.sha256 is not None and file_hash(entry.path) != entry.sha256:
            return "was changed after it was rendered; move the set's folder away and run `bench.py data render`"
        return info
    except DataError as error:
        return reason_of(entry.path, error)
    except OSError as error:
        return error.strerror or str(error)


def _decode_whole(entry: VideoEntry, template: str, info: VideoInfo) -> VideoInfo | str:
    try:
        if entry.path.is_dir():
            for _ in iterate(entry.path, range(info.frames), template=template):
                pass
            return info
        decoded = count_frames(entry.path)
    except DataError as error:
        if passing(error.__cause__):
            raise
        return reason_of(entry.path, error)
    return info if decoded == info.frames else f"decodes to {decoded} frames, its packets say {info.frames}"


def reason_of(path: Path, error: DataError) -> str:
    """What an error of a video says, without the path that it opens with."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/")


@cache
def _row() -> Any:
    """What holds a row of the table against its types: stamp, whether all of it was decoded, what it is."""
    from pydantic import TypeAdapter  # a tenth of a second, which `--help` need not wait for

    return TypeAdapter(tuple[str, bool, VideoInfo])


class _Cache:
    """Results by path, valid while size and dates of a file stay the same; and verdicts of `remember_broken`."""

    def __init__(self, folder: Path | None, entries: Iterable[VideoEntry]) -> None:
        self.folder = folder
        roots = sorted({str(e.path.parent.absolute()) for e in entries})
        name = f"checked-{hashlib.sha256(os.fsencode(chr(10).join(roots))).hexdigest()[:12]}.json"
        self.path = folder / ".checked" / name if folder is not None else None
        self.table: dict[str, Any] = {}
        self.broken = _remembered(folder)
        self.changed = False
        try:
            stored = json.loads(self.path.read_text()) if self.path is not None else {}
            if stored["version"] == CACHE_VERSION and isinstance(stored["table"], dict):
                self.table = stored["table"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass

    def get(self, entry: VideoEntry, full: bool, template: str) -> VideoInfo | str | None:
        verdict = self.broken.get(str(entry.path.absolute()))
        if verdict is not None and verdict[0] == whole_stamp(entry.path):
            return None if full else verdict[1]  # a full check decodes it again
        try:
            marked, whole, info = _row().validate_python(self.table.get(self._key(entry, template)))
        except ValueError:  # not there, or damaged
            return None
        return info if (whole or not full) and marked == self._stamp(entry, info, template) else None

    def put(self, entry: VideoEntry, full: bool, template: str, result: VideoInfo | str) -> None:
        if isinstance(result, str):  # a file that cannot be opened is looked at again
            return
        marked = self._stamp(entry, result, template)
        if marked is not None:
            self.table[self._key(entry, template)] = [marked, full, asdict(result)]
            self.changed = True

    def judge(self, entry: VideoEntry, result: VideoInfo | str) -> None:
        """Keep or withdraw the verdict of a full check."""
        if isinstance(result, str):
            remember_broken(entry.path, result, self.folder)
        elif self.folder is not None:
            with suppress(OSError):
                _verdict_file(entry.path, self.folder).unlink(missing_ok=True)

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs time, not correctness."""
        if self.path is None or not self.changed:
            return
        text = json.dumps({"version": CACHE_VERSION, "table": self.table}, sort_keys=True)
        with suppress(BenchError, OSError):
            write_atomically(self.path, text.encode())

    @staticmethod
    def _key(entry: VideoEntry, template: str) -> str:
        path = str(entry.path.absolute())
        listed = f"|{entry.sha256}" if entry.sha256 is not None else ""
        return f"{path}{listed}" if entry.is_video else f"{path}|{template}|{entry.frames}"

    @staticmethod
    def _stamp(entry: VideoEntry, info: VideoInfo, template: str) -> str | None:
        return stamp(entry.path, sampled_names(info.frames, template) if entry.path.is_dir() else ())
