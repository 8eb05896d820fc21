"""Render an embedded set as real H.264 files: `bench.py data render`, and the first opening of the set.

    DATA_ROOT/glyphs-tiny/train/00000.mp4 ...   libx264, one group of pictures per clip
    DATA_ROOT/glyphs-tiny/manifest.json         version, parameters, videos with label and SHA-256
    DATA_ROOT/glyphs-tiny/truth.npz             SPLIT_boxes (N, T, 4), SPLIT_height (N,), SPLIT_hard (N,)

Work goes on in a hidden folder, which one rename turns into the set: an interrupted rendering is
continued by the next call, and two callers at once wait for each other.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.values import plain
from harness.data.encode import write_mp4
from harness.data.glyphs import VERSION, GlyphParameters, VideoPlan, draw_video, parameters, plan_video
from harness.errors import DataError
from harness.store.files import file_hash, write_arrays, write_json

Progress = Callable[[int, int], None]


def render(
    name: str, size: str, data_root: Path | str, processes: int = 2, progress: Progress | None = None
) -> Path:
    """Render set `name` at `size` below `data_root` unless it is there; returns its folder.

    Args:
        name: glyphs or glyphs-motion.
        size: tiny or paper.
        processes: Renderers side by side.
        progress: Called with (done, all) videos now and then.

    Raises:
        DataError: A set of other parameters is in the way, or a renderer failed.
    """
    wanted = parameters(name, size)
    data_root = Path(data_root)
    folder = data_root / f"{name}-{size}"
    if folder.exists():
        _require_current(folder, wanted)
        return folder
    with _lock(data_root, folder.name):
        if not folder.exists():
            partial = data_root / f".{folder.name}.v{VERSION}.partial"
            _render_all(name, size, wanted, partial, processes, progress)
            _finish(name, size, wanted, partial)
            partial.rename(folder)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a rendered set; raises DataError where there is none."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        return {name: manifest[name] for name in ("version", "parameters", "videos")} | manifest
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder} is not a rendered set (no readable manifest.json); remove it and run "
                        "`bench.py data render`") from None


def truth(folder: Path) -> dict[str, np.ndarray]:
    """Where the target is, for oracle checks: SPLIT_boxes int16 (N, T, 4) in pixels of the stored frame
    (top, left, height, width; -1 where absent), SPLIT_height (N,), SPLIT_hard (N,).
    """
    with np.load(folder / "truth.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def encode(path: Path, frames: np.ndarray, *, fps: int, x264: str) -> None:
    """Write uint8 (T, H, W, 3) RGB as H.264 yuv420p, one group of pictures; the file appears whole or not at all.

    `x264` are the encoder's own parameters (`GlyphParameters.x264`).
    """
    count = len(frames)
    x264 = f"{x264}:keyint={count}:min-keyint={count}:scenecut=0"
    write_mp4(path, frames, fps, options={"preset": "veryfast", "x264-params": x264}, threads=1)


def _require_current(folder: Path, wanted: GlyphParameters) -> None:
    manifest = read_manifest(folder)
    if manifest["version"] != VERSION or manifest["parameters"] != plain(wanted):
        raise DataError(f"{folder} was rendered with other parameters (version {manifest['version']}, now {VERSION}); "
                        "move it away and run `bench.py data render`")


@contextmanager
def _lock(data_root: Path, name: str) -> Iterator[None]:
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        file = (data_root / f".{name}.lock").open("w")
    except OSError as error:
        raise DataError(f"{data_root}: {error.strerror}; choose another --data-root") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tasks(wanted: GlyphParameters) -> list[tuple[str, int]]:
    return [(split, index) for split, count in wanted.counts.items() for index in range(count)]


def _render_all(
    name: str, size: str, wanted: GlyphParameters, partial: Path, processes: int, progress: Progress | None
) -> None:
    for split in wanted.counts:
        (partial / split).mkdir(parents=True, exist_ok=True)
    total = len(_tasks(wanted))
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    workers = [
        context.Process(target=_render_shard, args=(name, size, partial, shard, processes, done), daemon=True)
        for shard in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(0.2)
            if progress:
                progress(done.value, total)
    if any(worker.exitcode for worker in workers):
        raise DataError(f"rendering {name} ({size}) failed in {partial}; see the traceback above, then run the same "
                        "command again: finished clips are kept")


def _render_shard(name: str, size: str, partial: Path, shard: int, shards: int, done: Any) -> None:
    """Render every `shards`-th video; runs in its own process, which ends when its parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    wanted = parameters(name, size)
    for split, index in _tasks(wanted)[shard::shards]:
        path = partial / _video_id(split, index)
        if not path.exists():
            frames, _ = draw_video(name, size, split, index)
            encode(path, frames, fps=wanted.fps, x264=wanted.x264)
        with done.get_lock():
            done.value += 1


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _finish(name: str, size: str, wanted: GlyphParameters, partial: Path) -> None:
    """Write manifest and ground truth next to the videos."""
    videos, arrays = {}, {}
    for split, count in wanted.counts.items():
        plans = [plan_video(name, size, split, index) for index in range(count)]
        videos[split] = [_entry(wanted, partial, split, i, plan) for i, plan in enumerate(plans)]
        arrays[f"{split}_boxes"] = np.stack([plan.boxes() for plan in plans])
        arrays[f"{split}_height"] = np.array([plan.height for plan in plans], dtype=np.int16)
        arrays[f"{split}_hard"] = np.array([plan.hard for plan in plans])
    manifest = {"name": name, "size": size, "version": VERSION, "parameters": wanted, "videos": videos}
    write_json(partial / "manifest.json", {**manifest, "truth": write_arrays(partial / "truth.npz", arrays)})


def _entry(wanted: GlyphParameters, partial: Path, split: str, index: int, plan: VideoPlan) -> dict[str, Any]:
    video_id = _video_id(split, index)
    return {"id": video_id, "label": plan.label, "frames": wanted.frames, "sha256": file_hash(partial / video_id)}


def _video_id(split: str, index: int) -> str:
    return f"{split}/{index:05d}.mp4"
