"""The stopwatch of segments: how long a trained method takes from one stop to the next, by the videos still there.

What a budget in milliseconds is calibrated with (harness.measure.segmentation). Runs in a process of its own, which
`harness.work.timing_session.time_segments` starts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.compat.memory import is_out_of_memory
from harness.contract.exits import NEVER, staying
from harness.contract.frames import as_frames
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.segments import keep
from harness.data.clips import ClipDataset, collate
from harness.errors import BenchError
from harness.measure.latency import Unrecorded, describe, device_conditions, prepared, to_device, wait
from harness.measure.machine import OthersMeter, slowed
from harness.measure.segmentation import candidate_stops
from harness.measure.trained import trained_recognizer
from harness.plan.units import EvalSpec
from harness.store import sources

VIDEOS = 32
"""Real calibration videos that are timed, spread over the split; whole batches, two at least."""
ROUNDS = (3, 9)
"""Through the whole table: at least, and at most."""
SECONDS = 60.0
"""After which no further round begins, once the least number is reached."""
Cell = tuple[int, int, int]
"""First and last segment, rows."""


def time_segments(spec: EvalSpec, work_dir: Path) -> dict[str, Any]:
    """What `segment_times` of the record of `spec` holds, but for what disturbed it; and `sources`.

    Raises:
        BenchError: memory ran out.
    """
    assert spec.timed_on is not None
    batch, split = spec.protocol["budget_batch"], spec.protocol["calib_split"]
    target = torch.device(spec.timed_on["device"])
    recognizer = trained_recognizer(
        spec.method, spec.settings, work_dir, artifact=spec.artifact, checkpoint=spec.checkpoint
    )
    videos = spec.data.open(spec.fingerprint)
    if not videos.splits.get(split):
        raise BenchError(f"{videos.card.name} has no videos to time segments on")
    dataset = ClipDataset(videos, split, recognizer.clip_requests(), train=False, seed=0)
    number = -(-max(VIDEOS, 2 * batch) // batch) * batch
    chosen = np.linspace(0, len(dataset) - 1, number).round().astype(int)
    samples = [dataset[int(i)] for i in chosen]
    batches = [collate(samples[i : i + batch])["inputs"] for i in range(0, number, batch)]
    code = sources.loaded("latency")
    form = {name: spec.timed_on[name] for name in ("dtype", "engine", "memory_format")}
    with prepared(recognizer, device=target, **form):
        before, others = device_conditions(target), OthersMeter()
        try:
            table = measured(recognizer, batches, batch=batch, device=target)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BenchError(f"memory ran out at batch {batch}; protocol.budget_batch takes a smaller one") from error
        share, after = others.share(), device_conditions(target)
    return {
        **table,
        "videos": len(np.unique(chosen)),
        "device": describe(target),
        **form,
        "threads": torch.get_num_threads(),
        "others": share,
        "slowed": slowed(before, after),
        "clocks": {"before": before, "after": after},
        "sources": code,
    }


def measured(
    recognizer: EfficientRecognizer, batches: Sequence[Clips], *, batch: int, device: torch.device
) -> dict[str, Any]:
    """Median seconds of every merged segment between two stops, round after round through all of them.

    Args:
        recognizer: `prepared`, with exits.
        batches: Real videos on the host, `batch` in each.
        batch: Rows at the first segment; of larger ones fewer are timed as well.
        device: Where the recognizer is.

    Returns:
        `batch`, `rows`, `rounds`, `begin_s` (by rows), `segments`: first, last, seconds (by rows).
    """
    rows = sorted({*(2**n for n in range(batch.bit_length())), batch})
    found: dict[Cell, list[float]] = defaultdict(list)
    with torch.inference_mode(), recognizer.telling(Unrecorded(batch)):
        _round(recognizer, to_device(batches[0], device), rows, device, defaultdict(list))  # to warm up
        began, least, most = time.monotonic(), *ROUNDS
        rounds = 0
        while rounds < least or (rounds < most and time.monotonic() - began < SECONDS):
            clips = to_device(batches[rounds % len(batches)], device)
            _round(recognizer, clips, rows if rounds % 2 else rows[::-1], device, found)
            rounds += 1
    medians = {cell: float(np.median(seconds)) for cell, seconds in found.items()}
    pairs = sorted({cell[:2] for cell in medians if cell[1] >= 0})
    return {
        "batch": batch,
        "rows": rows,
        "rounds": rounds,
        "begin_s": [medians[0, -1, number] for number in rows],
        "segments": [
            {"first": first, "last": last, "seconds": [medians[first, last, number] for number in rows]}
            for first, last in pairs
        ],
    }


def _round(
    recognizer: EfficientRecognizer,
    clips: Clips,
    rows: Sequence[int],
    device: torch.device,
    found: dict[Cell, list[float]],
) -> None:
    """Time every cell once; (0, -1, rows) is what comes before the first segment."""
    candidates = candidate_stops(recognizer.exits)
    for number in rows:
        with _timed(found[0, -1, number], device):
            state = recognizer.begin(as_frames({name: clip[:number] for name, clip in clips.items()}))
        first = 0
        for place, stop in enumerate(candidates):
            for last in reversed(candidates[place:]):  # the one that ends at `stop` comes last: its state goes on
                with _timed(found[first, last, number], device):
                    after = _through(recognizer, state, first, last, number)
            state, first = after, stop + 1


def _through(recognizer: EfficientRecognizer, state: Any, first: int, last: int, rows: int) -> Any:
    """The state behind a segment; the decision who leaves, and the shrinking of the batch, are part of it."""
    state, logits = recognizer.segment(state, first, last)
    if last < recognizer.exits - 1:
        stays = staying(logits, NEVER, recognizer.exit_score)
        if rows > 1:
            state = keep(state, stays, torch.from_numpy(stays).to(logits.device))
    return state


@contextmanager
def _timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    wait(device)
    began = time.perf_counter()
    yield
    wait(device)
    seconds.append(time.perf_counter() - began)
