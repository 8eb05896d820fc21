"""A long stream of short videos from a real loader: the plain loop's results, in memory that does not grow.

    python -m tests.engine.long_stream --data-root DIR [--videos 2000] [--workers 2] [--method adafocus-v2]

prints JSON: videos that leave at each exit, how many differ from the plain loop in a logit (by more than rounding) or
in their exit, and the peak resident memory of this process after the first tenth of the stream and at its end. Weights
are drawn, exits calibrated to half of their number. A broken video, or a killed worker, ends it with one line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.registry import recognizer_class
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.videos import VideoSet, open_dataset
from harness.engine.stream import Rebatching, Result
from harness.errors import BenchError
from harness.plan.building import build_recognizer
from harness.work.processes import told_by_worker

BATCH = 16
LOADED = 5
"""Videos that a loader's worker gives at once: no divisor of the batch."""


def loaded(dataset: Dataset[Any], workers: int) -> Generator[Clips]:
    """Clips of a few videos at a time, decoded by other processes."""
    batches: Any = iter(DataLoader(dataset, batch_size=LOADED, collate_fn=collate, num_workers=workers))
    try:
        for batch in batches:
            yield batch["inputs"]
    except (ConnectionError, EOFError) as error:  # clips on their way from a process that is gone
        dead = ", ".join(str(worker.pid) for worker in batches._workers if not worker.is_alive())
        raise BenchError(f"a worker of the loader (process {dead}) was killed; run again") from error
    finally:
        if workers:
            batches._shutdown_workers()  # else the loader tells of a dead worker again, wherever this process is then


def repeated(videos: VideoSet, recognizer: EfficientRecognizer, split: str, repeats: int = 1) -> ClipDataset:
    """The split through the test pipeline, over and over; every video is decoded each time."""
    requests = recognizer.clip_requests()
    return ClipDataset(videos, split, requests, train=False, seed=0, cache_bytes=0, repeats=repeats)


def calibrated(recognizer: EfficientRecognizer, videos: VideoSet, split: str = "calib") -> dict[str, Any]:
    """Point settings at which about half of the exits' work is done."""
    clips = list(loaded(repeated(videos, recognizer, split), 0))
    with torch.inference_mode():
        logits = [recognizer.infer_exits(some, trace=Trace(_count(some))) for some in clips]
    costs = np.arange(1.0, recognizer.exits + 1)
    return recognizer.calibrate(torch.cat(logits).numpy(), costs, 0.5)


def plain(
    recognizer: EfficientRecognizer, point: Mapping[str, Any], clips: Iterable[Clips]
) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (N, C) and exits (N,) of the loop over batches as they come."""
    logits, exits = [], []
    with torch.inference_mode():
        for some in clips:
            trace = Trace(_count(some))
            logits.append(recognizer.infer(some, point, trace=trace))
            assert trace.exit_step is not None
            exits.append(trace.exit_step)
    return torch.cat(logits), np.concatenate(exits)


def held_against(results: Iterable[Result], logits_NC: torch.Tensor, exits_N: np.ndarray) -> dict[str, Any]:
    """How a stream's results differ from the plain loop's."""
    found = list(results)
    ours = torch.stack([result.logits for result in found])
    far = ~torch.isclose(ours, logits_NC, rtol=1e-4, atol=1e-4).all(1)
    left = np.asarray([result.exit_step for result in found])
    return {
        "videos": len(found),
        "in_order": [result.place for result in found] == list(range(len(logits_NC))),
        "exits": {int(exit): number for exit, number in sorted(Counter(left.tolist()).items())},
        "differing_logits": int(far.sum()),
        "differing_exits": int((left != exits_N).sum()),
        "largest_difference": float((ours - logits_NC).abs().max()),
    }


def noted(results: Iterable[Result], at: int, note: Callable[[], None]) -> Iterator[Result]:
    """The results; `note` is called after the first `at`."""
    for result in results:
        yield result
        if result.place + 1 == at:
            note()


def main() -> int:
    """Run the stream, then the plain loop, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--method", default="adafocus-v2")
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--allow-missing", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        videos = open_dataset(
            asked.dataset, data_root=asked.data_root, size="tiny", allow_missing=asked.allow_missing
        )
        print(json.dumps(run(videos, asked.method, asked.videos, asked.workers), indent=1))
    except (BenchError, RuntimeError) as error:
        print(f"{type(error).__name__}: {told_by_worker(error)}", file=sys.stderr)
        return 1
    return 0


def run(videos: VideoSet, method: str, number: int, workers: int) -> dict[str, Any]:
    """All figures."""
    resolution = videos.card.geometry["tiny"].crop
    settings = recognizer_class(method).settings_for("tiny", resolution)
    recognizer = build_recognizer(
        method, {"num_classes": len(videos.card.classes), "resolution": resolution, **settings}
    ).eval()
    point = calibrated(recognizer, videos)
    whole = repeated(videos, recognizer, "test", -(-number // len(videos.splits["test"])))
    dataset = torch.utils.data.Subset(whole, range(number))
    peaks: list[int] = []
    stream = Rebatching(recognizer, point, batch=BATCH)
    results = list(noted(stream.results(loaded(dataset, workers)), number // 10, lambda: peaks.append(_peak())))
    peaks.append(_peak())
    found = held_against(results, *plain(recognizer, point, loaded(dataset, workers)))
    sizes = {exit: dict(sorted(tally.items())) for exit, tally in zip(stream.stops, stream.executed, strict=True)}
    return found | {"batches": sizes, "peak_rss_bytes": {"after a tenth": peaks[0], "at the end": peaks[1]}}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count(clips: Clips) -> int:
    return len(next(iter(clips.values())))


if __name__ == "__main__":
    sys.exit(main())
