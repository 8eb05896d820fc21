"""The folder that all results of a run lie in: who holds it, and where records lie. No torch.

    artifacts/KEY/             training artifacts (harness.store.artifacts)
    records/evaluation/KEY/    result.json, per_video.npz, overlay.npz (where the method looks somewhere)
    records/latency/KEY/       result.json
    records/failed/KEY.json    why a cell failed; tried again by the next run
    logs/KEY.log               output of a job that runs, or that ended badly
    report/                    what `bench.py report` wrote
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from harness.errors import BenchError

Kind = Literal["evaluation", "latency"]
"""Kinds of records."""


def record_folder(work_dir: Path, kind: Kind, key: str) -> Path:
    """Where the record `key` lies."""
    return work_dir / "records" / kind / key


def failure_file(work_dir: Path, key: str) -> Path:
    """Where the reason of a failure lies."""
    return work_dir / "records" / "failed" / f"{key}.json"


@contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Hold the work directory; a second run on it is told so. The lock goes with the process."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / ".lock").open("a+") as file:
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
