"""A data set of a few rendered clips, and `bench.py` as a user calls it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ((220, 60, 40), (40, 90, 220))


@pytest.fixture(scope="session")
def clips_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of 8 frames, 64 x 48, two classes told apart by colour; column `split`: train, val, test."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "class", "split"])
        for number in range(24):
            label = number % 2
            write_clip(folder / f"{number:02}.mp4", rng, COLOURS[label])
            split = "train" if number < 16 else "test"
            writer.writerow([f"{number:02}.mp4", label, ("red", "blue")[label], split])
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def undisturbed(clips_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a micro-suite that ran undisturbed."""
    work_dir = tmp_path_factory.mktemp("undisturbed")
    finish(clips_csv, work_dir)
    return work_dir


def finish(clips: Path, work_dir: Path) -> None:
    """Run the micro-suite to its end."""
    done = subprocess.run(command(clips, work_dir), capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def write_clip(path: Path, rng: np.random.Generator, colour: tuple[int, int, int]) -> None:
    """Eight noisy frames of one colour as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            frame = np.clip(np.asarray(colour) + rng.normal(0, 60, (48, 64, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def command(clips: Path, work_dir: Path, *extra: str) -> list[str]:
    """A micro-suite: two methods, two epochs, no latency."""
    options = {"--methods": "tsn,random-patch", "--datasets": f"csv:{clips}", "--epochs": "2", "--jobs": "2"}
    options |= {"--set": "stage.views_per_epoch=1", "--batches": "", "--device": "cpu"}
    options |= {"--work-dir": str(work_dir), "--data-root": str(work_dir / "data")}
    line = [word for pair in options.items() for word in pair]
    return [sys.executable, str(ROOT / "bench.py"), "run", *line, "--no-report", *extra]


def bench(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run bench.py to its end."""
    line = [sys.executable, str(ROOT / "bench.py"), *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        line, capture_output=True, text=True, cwd=cwd or ROOT, timeout=timeout, check=False, env=environment
    )
