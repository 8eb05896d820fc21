"""Evaluation: one forward path gives logits, trace and cost; thresholds come from the calibration split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.contract import EMPTY, OperatingPoint
from harness.cost.counter import MacMeter
from harness.cost.table import CostTable
from harness.data.clips import ClipDataset, collate
from harness.errors import BenchError
from harness.metrics import METRICS
from harness.protocol import Protocol
from harness.recognizer import EfficientRecognizer
from harness.trace import EventKey, Trace

OVERLAY_VIDEOS = 12
"""Videos whose frames and boxes are kept for the report's picture."""


@dataclass
class PointResult:
    """What one operating point gave on N videos."""

    point: OperatingPoint
    logits: np.ndarray
    """(N, C) float32, mean over views."""
    counts: dict[EventKey, np.ndarray]
    """Rows of each kind of work per video (N,)."""
    exits: np.ndarray | None
    frames: np.ndarray
    accounted: dict[str, np.ndarray] = field(default_factory=dict)
    decisions: dict[str, np.ndarray] = field(default_factory=dict)
    overlay: dict[str, np.ndarray] | None = None

    def gflops(self, table: Mapping[EventKey, float]) -> np.ndarray:
        """Executed GFLOPs per video (N,)."""
        return sum((n * table[k] for k, n in self.counts.items()), np.zeros(len(self.logits))) / 1e9


class Evaluator:
    """Runs a trained recognizer over a data set at its operating points.

    Args:
        recognizer: With its weights, on any device.
        videos: The opened VideoSet.
        protocol: Splits, views, randomness, batch.
        device: `cpu` or `cuda`.
        report: Called with a line of progress.
    """

    def __init__(
        self,
        recognizer: EfficientRecognizer,
        videos: Any,
        protocol: Protocol,
        *,
        device: str = "cpu",
        report: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.recognizer = recognizer.to(device).eval()
        self.videos, self.protocol, self.device, self.report = videos, protocol, device, report

    def targets(self, split: str) -> np.ndarray:
        """Class indices (N, L), padded with -1."""
        labels = [entry.labels for entry in self.videos.splits[split]]
        targets = np.full((len(labels), max(map(len, labels))), -1, dtype=np.int64)
        for row, values in enumerate(labels):
            targets[row, : len(values)] = values
        return targets

    def points(self) -> list[OperatingPoint]:
        """All operating points, the ones with a budget calibrated on the calibration split."""
        recognizer = self.recognizer
        points = list(recognizer.operating_points(self.protocol.budgets if recognizer.exits else ()))
        if not any(p.budget for p in points):
            return points
        if not self.videos.splits.get(self.protocol.calib_split):
            raise BenchError(f"{self.videos.card.name} has no videos to calibrate exit thresholds on")
        self.report({"note": "calibrating exits"})
        logits = self._exit_logits(self.protocol.calib_split)
        costs = self._exit_costs()
        return [
            replace(p, settings={**p.settings, **recognizer.calibrate(logits, costs, p.budget)}) if p.budget else p
            for p in points
        ]

    def run(self, point: OperatingPoint, split: str, *, overlay: bool = False) -> PointResult:
        """Logits and trace of every video of `split` at `point`."""
        views = 1 if self.protocol.views == "centre" else 3
        results = [self._run_view(point, split, view, overlay and view == 0) for view in range(views)]
        first = results[0]
        if views > 1:
            first.logits = np.mean([r.logits for r in results], axis=0, dtype=np.float32)
            keys = {k for r in results for k in r.counts}
            zero = np.zeros(len(first.logits))
            first.counts = {k: sum((r.counts.get(k, zero) for r in results), zero) for k in keys}
        return first

    def cost_table(self, results: Sequence[PointResult], split: str) -> tuple[CostTable, dict[str, Any]]:
        """MACs per row of every kind of work in `results`, measured by running videos that show it.

        Returns the table and the whole-forward check: the relative difference between all MACs that ran
        and trace x table, on the same videos.
        """
        self.report({"note": "counting multiply-accumulates"})
        wanted = {key for r in results for key, counts in r.counts.items() if counts.any()}
        table = CostTable()
        seen: set[EventKey] = set()
        videos, worst = 0, 0.0
        for result in results:
            for batch_videos in _covering(result.counts, seen):
                clips = self._clips(split, batch_videos, result.point)
                with torch.inference_mode(), MacMeter() as meter:
                    trace = Trace(len(batch_videos), meter=meter)
                    self.recognizer.infer(clips, result.point.settings, trace=trace, generator=self._generator())
                table.add(trace)
                traced = sum(float(n.sum()) * table[k] for k, n in trace.counts.items())
                worst = max(worst, abs(traced - meter.total) / max(meter.total, 1.0))
                videos += len(batch_videos)
                seen |= set(trace.counts)
        if worst > 0.005:
            raise BenchError(
                f"{type(self.recognizer).__name__}: the trace explains the executed work only to {worst:.1%} "
                "(limit 0.5 %); some work runs outside `trace.event`"
            )
        if wanted - seen:
            raise BenchError(f"no video shows {[k.label() for k in sorted(wanted - seen)]} again; the method is not deterministic")
        return table, {"videos": videos, "max_relative_difference": worst}

    def _run_view(self, point: OperatingPoint, split: str, view: int, overlay: bool) -> PointResult:
        dataset = self._dataset(split, point, view)
        total = len(dataset)
        logits: list[np.ndarray] = []
        counts: dict[EventKey, np.ndarray] = {}
        exits: list[np.ndarray] = []
        frames: list[np.ndarray] = []
        decisions: dict[str, list[np.ndarray]] = {}
        accounted: dict[str, np.ndarray] = {}
        kept: dict[str, list[Any]] = {}
        generator, start = self._generator(), 0
        for clips, samples in self._batches(dataset):
            size = len(samples)
            trace = Trace(size, details=True)
            with torch.inference_mode():
                out = self.recognizer.infer(clips, point.settings, trace=trace, generator=generator)
            logits.append(out.float().cpu().numpy())
            for key, value in trace.counts.items():
                counts.setdefault(key, np.zeros(total))[start : start + size] = value
            for reason, value in trace.accounted.items():
                accounted.setdefault(reason, np.zeros(total))[start : start + size] = value
            if trace.exit_step is not None:
                exits.append(np.asarray(trace.exit_step))
            frames.append(_frames_used(trace, clips))
            for name, value in trace.decisions.items():
                decisions.setdefault(name, []).append(value)
            if overlay and start < OVERLAY_VIDEOS:
                _keep(kept, clips, samples, trace, out, OVERLAY_VIDEOS - start, start)
            start += size
            self.report({"note": f"evaluating {point.name}", "done": start, "total": total})
        return PointResult(
            point,
            np.concatenate(logits),
            counts,
            np.concatenate(exits) if exits else None,
            np.concatenate(frames),
            accounted,
            {name: np.concatenate(parts) for name, parts in decisions.items()},
            _overlay(kept) if kept else None,
        )

    def _exit_logits(self, split: str) -> np.ndarray:
        dataset = self._dataset(split, OperatingPoint("full"), 0)
        parts = []
        for clips, samples in self._batches(dataset):
            with torch.inference_mode():
                parts.append(self.recognizer.infer_exits(clips, trace=Trace(len(samples))).float().cpu().numpy())
        return np.concatenate(parts)

    def _exit_costs(self) -> np.ndarray:
        """Measured MACs of stopping one video at each exit (K,)."""
        costs = []
        for step in range(self.recognizer.exits):
            settings = self.recognizer.exit_settings(step)
            clips = self._clips(self.protocol.calib_split, [0], OperatingPoint("exit", settings))
            with torch.inference_mode(), MacMeter() as meter:
                self.recognizer.infer(clips, settings, trace=Trace(1, meter=meter))
            costs.append(meter.total)
        return np.asarray(costs)

    def _dataset(self, split: str, point: OperatingPoint, view: int) -> ClipDataset:
        requests = self.recognizer.clip_requests(point.settings)
        return ClipDataset(self.videos, split, requests, train=False, seed=0, view=view, views=self.protocol.views)

    def _batches(self, dataset: ClipDataset) -> Iterator[tuple[dict[str, torch.Tensor], Sequence[Any]]]:
        loader = DataLoader(dataset, batch_size=self.protocol.eval_batch, collate_fn=collate)
        for batch in loader:
            yield {k: v.to(self.device) for k, v in batch["inputs"].items()}, batch["data_samples"]

    def _clips(self, split: str, indices: Sequence[int], point: OperatingPoint) -> dict[str, torch.Tensor]:
        dataset = self._dataset(split, point, 0)
        batch = collate([dataset[i] for i in indices])
        return {k: v.to(self.device) for k, v in batch["inputs"].items()}

    def _generator(self) -> torch.Generator | None:
        if self.protocol.test_randomness == "deterministic":
            return None
        return torch.Generator(self.device).manual_seed(self.protocol.test_seed)


def split_metric(recognizer: EfficientRecognizer, videos: Any, split: str, *, device: str) -> float:
    """The card's main metric on `split` at the default point (used for best-on-val selection)."""
    evaluator = Evaluator(recognizer, videos, Protocol(), device=device)
    point = next(iter(recognizer.operating_points()))
    result = evaluator.run(point, split)
    return METRICS[videos.card.metric].value(result.logits, evaluator.targets(split))


def accounted_gflops(result: PointResult, table: Mapping[EventKey, float]) -> np.ndarray | None:
    """GFLOPs per video by the paper's accounting; None where all that is saved is really saved."""
    if not result.accounted:
        return None
    return result.gflops(table) - sum(result.accounted.values()) / 1e9


def _covering(counts: Mapping[EventKey, np.ndarray], seen: set[EventKey]) -> list[list[int]]:
    """Batches of videos (one, then two together) that show every kind of work not yet in `seen`."""
    missing = {k for k in counts if k not in seen and counts[k].any()}
    chosen = []
    while missing:
        rows = np.sum([counts[k] > 0 for k in missing], axis=0)
        video = int(np.argmax(rows))
        chosen.append([video])
        missing -= {k for k in missing if counts[k][video] > 0}
    number = len(next(iter(counts.values())))
    return [*chosen, sorted({0, number // 2, number - 1})]


def _frames_used(trace: Trace, clips: Mapping[str, torch.Tensor]) -> np.ndarray:
    if trace.frames_used is not None:
        return np.asarray(trace.frames_used, dtype=np.float64)
    return np.full(trace.videos, float(max(v.shape[1] for v in clips.values())))


def _keep(
    kept: dict[str, list[Any]], clips: Mapping[str, torch.Tensor], samples: Sequence[Any], trace: Trace, logits: torch.Tensor,
    room: int, start: int,
) -> None:
    name = max(clips, key=lambda n: clips[n].shape[1])
    for row, sample in enumerate(samples[:room]):
        kept.setdefault("frames", []).append(clips[name][row].permute(0, 2, 3, 1).cpu().numpy())
        kept.setdefault("ids", []).append(str(sample.metainfo["video_id"]))
        kept.setdefault("labels", []).append(int(sample.gt_label.reshape(-1)[0]))
        kept.setdefault("predictions", []).append(int(logits[row].argmax()))
        kept.setdefault("exits", []).append(-1 if trace.exit_step is None else int(trace.exit_step[row]))
        kept.setdefault("boxes", []).extend((start + row, b[1], *b[3:]) for b in trace.boxes if b[0] == row)


def _overlay(kept: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
    boxes = np.asarray(kept.get("boxes") or np.zeros((0, 6)), dtype=np.float32)
    return {**{k: np.asarray(v) for k, v in kept.items() if k != "boxes"}, "boxes": boxes}


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run with `number` torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_point(recognizer: EfficientRecognizer) -> OperatingPoint:
    """The point a method is compared at unless another is asked for."""
    return next(iter(recognizer.operating_points(())), OperatingPoint("full", EMPTY))
