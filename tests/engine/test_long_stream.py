"""Streams from a real loader with workers: the plain loop's results; a broken video or a killed worker is named."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from harness.data.videos import VideoSet, open_dataset
from harness.engine.stream import Rebatching
from harness.errors import BenchError, DataError
from harness.work.processes import told_by_worker
from tests.data.media import write
from tests.data.test_identity import damage
from tests.engine.long_stream import LOADED, calibrated, held_against, loaded, plain, repeated
from tests.engine.toy import THRESHOLDS, Adder, videos

TESTED = 9
REPEATS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifteen videos that differ, with a CSV."""
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for i in range(15):
        noise = rng.integers(0, 60, (8, 64, 64, 3)) + rng.integers(0, 180, (8, 1, 1, 3))
        write(tmp_path / f"v{i:02d}.mp4", noise.astype(np.uint8))
        rows.append(f"v{i:02d}.mp4,{i % 2},{'test' if i < TESTED else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def opened(folder: Path, allow_missing: int = 0) -> VideoSet:
    name = f"csv:{folder / 'labels.csv'}"
    return open_dataset(name, data_root=folder / "data", size="tiny", allow_missing=allow_missing)


def streamed(found: VideoSet, workers: int) -> dict[str, Any]:
    """A stream of the test videos, several times over, against the plain loop."""
    recognizer = Adder()
    point, dataset = calibrated(recognizer, found, "test"), repeated(found, recognizer, "test", REPEATS)
    results = Rebatching(recognizer, point, batch=4).results(loaded(dataset, workers))
    return held_against(results, *plain(recognizer, point, loaded(dataset, 0)))


def test_a_stream_from_workers_says_what_the_plain_loop_says(folder: Path) -> None:
    found = streamed(opened(folder), workers=2)
    assert (found["videos"], found["in_order"]) == (TESTED * REPEATS, True)
    assert (found["differing_logits"], found["differing_exits"]) == (0, 0)
    assert len(found["exits"]) > 1


def test_a_broken_video_ends_it_by_name_and_is_left_out_where_that_is_allowed(folder: Path) -> None:
    before = opened(folder)
    damage(folder / "v07.mp4")
    recognizer = Adder()
    source = loaded(repeated(before, recognizer, "test"), 1)
    with pytest.raises(DataError) as broken:
        list(Rebatching(recognizer, {"exit_at": 0}, batch=2).results(source))
    assert "v07.mp4: cannot be decoded" in told_by_worker(broken.value)
    assert "--allow-missing 1" in told_by_worker(broken.value)
    found = streamed(opened(folder, allow_missing=1), workers=1)
    assert (found["videos"], found["differing_exits"]) == ((TESTED - 1) * REPEATS, 0)


class Killing(Dataset[Any]):
    """Clips in memory; loading one of them kills the process that does."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 4 * LOADED:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"inputs": {"frames": videos(1, seed=index)[0]}, "data_samples": None}


def test_a_killed_worker_ends_it_and_is_named() -> None:
    given: list[int] = []
    ended = r"worker.*(process|pid).* (was killed|killed by signal: Killed|exited unexpectedly)"
    with closing(loaded(Killing(), 1)) as source, pytest.raises((RuntimeError, BenchError), match=ended):
        given.extend(r.place for r in Rebatching(Adder(), THRESHOLDS, batch=4).results(source))
    assert given == list(range(len(given))) and len(given) < 4 * LOADED
