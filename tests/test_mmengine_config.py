"""An ordinary mmengine config trains AdaFocusV2 by mmaction2's own tool, without our harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SIDE, FRAMES = 64, 8


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve clips of two classes, a red and a blue square that drifts, and their lists."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for split, count in (("train", 8), ("val", 4)):
        lines = []
        for index in range(count):
            label = index % 2
            render(folder / f"{split}{index}.mp4", label, rng)
            lines.append(f"{split}{index}.mp4 {label}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def render(path: Path, label: int, rng: np.random.Generator) -> None:
    """A grey H.264 clip with a 16-pixel square in the class's colour."""
    top, left = rng.integers(0, SIDE - 16 - FRAMES, size=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for step in range(FRAMES):
            image = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
            image[top + step : top + step + 16, left : left + 16] = (220, 40, 40) if label == 0 else (40, 40, 220)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_mmaction2s_tool_trains_it(tmp_path: Path, clips: Path) -> None:
    import harness.compat.imports  # noqa: F401  (before mmaction)

    import mmaction

    tool = Path(mmaction.__file__).parent / ".mim" / "tools" / "train.py"
    config = ROOT / "tests" / "configs" / "adafocus_v2.py"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "FOCUSBENCH_TEST_CLIPS": str(clips),
    }
    command = [sys.executable, str(tool), str(config), "--work-dir", str(tmp_path / "work")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    (log,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 8  # 4 epochs of 2 batches
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    (accuracy,) = (row["acc/top1"] for row in rows if "acc/top1" in row)
    assert 0 <= accuracy <= 1
    assert (tmp_path / "work" / "epoch_4.pth").exists()
