"""The folder that all results of a run lie in: who holds it, and where records lie. No torch.

    artifacts/KEY/             training artifacts (harness.store.artifacts)
    records/evaluation/KEY/    result.json, per_video.npz, overlay.npz (where the method looks somewhere)
    records/latency/KEY/       result.json
    records/failed/KEY.json    why a cell failed; tried again by the next run
    logs/KEY.log               output of a job that runs, or that ended badly
    report/                    what `bench.py report` wrote
    aside/                     what was redone or damaged, under its own path and a number; nothing here is read again
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal, TextIO

from harness.errors import BenchError

Kind = Literal["evaluation", "latency"]
"""Kinds of records."""


def record_folder(work_dir: Path, kind: Kind, key: str) -> Path:
    """Where the record `key` lies."""
    return work_dir / "records" / kind / key


def tuning_folder(work_dir: Path) -> Path:
    """Where measured row times lie (harness.engine.forms)."""
    return work_dir / "tuning"


def failure_file(work_dir: Path, key: str) -> Path:
    """Where the reason of a failure lies."""
    return work_dir / "records" / "failed" / f"{key}.json"


def set_aside(work_dir: Path, path: Path) -> Path:
    """Move a file or folder of the work directory below `aside/`; returns where it lies there.

    One step, or copied before it goes where a part of the work directory lies on another disk.
    """
    place = work_dir / "aside" / path.relative_to(work_dir)
    target = next(t for t in (place.with_name(f"{place.name}.{n}") for n in count(1)) if not t.exists())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    except OSError as error:
        raise BenchError(f"cannot move {path} aside to {target}: {error.strerror or error}") from None
    return target


@contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Hold the work directory; a second run on it is told so. The lock goes with the process.

    Raises:
        BenchError: Another run holds it, or nothing can be written there.
    """
    with _lock_file(work_dir) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BenchError(
                f"another run ({file.read().strip() or 'unknown process'}) is working in {work_dir}; "
                "wait for it or use another --work-dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _lock_file(work_dir: Path) -> TextIO:
    try:
        str(work_dir.absolute()).encode()
        work_dir.mkdir(parents=True, exist_ok=True)
        return (work_dir / ".lock").open("a+", errors="replace")
    except UnicodeError:
        reason = "its name is not UTF-8"
    except OSError as error:
        reason = str(error.strerror)
    name = os.fsencode(work_dir).decode(errors="replace")
    raise BenchError(f"cannot work in {name}: {reason}; choose another --work-dir")
