"""Evaluation: one execution gives logits, trace and cost; thresholds come from the calibration split.

Every forward of a test video runs under the audit (harness.measure.audit), so that accuracy, decisions and
multiply-accumulates are of the very same run; a seeded sample of batches runs once more as it is timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.contract.declarations import OperatingPoint
from harness.contract.exits import exit_scores
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.transforms import VIEWS
from harness.errors import BenchError
from harness.measure.audit import Audited, audited, repeat
from harness.measure.cost_table import CostTable, metered, whole_check
from harness.measure.metrics import metric, softmax
from harness.measure.segmentation import Choice, SegmentTimes, choose_stops, without_exits
from harness.plan.protocol import Protocol

OVERLAY_VIDEOS = 12
"""Videos whose frames and boxes are kept for the report's picture."""
REPEATED = 2
"""Batches of each operating point and view that run once more without a meter."""


@dataclass
class AuditSummary:
    """What the audit of one operating point found, batch after batch."""

    table: CostTable = field(default_factory=lambda: CostTable({}))
    """MACs per row of every kind of work that ran."""
    videos: int = 0
    """Forwards of one video."""
    worst: float = 0.0
    """Largest relative difference of a batch between all that ran and trace x table."""
    repeated: int = 0
    """Forwards of one video that ran once more without a meter."""
    host_values: float = 0.0
    """Most values per video of a batch that left torch."""
    declared: frozenset[str] = frozenset()
    """Custom operators whose cost the method declared."""

    def add(self, done: Audited, name: str) -> None:
        """Take in one batch of the method `name`; raises BenchError where trace x table is not what ran."""
        self.table = self.table.merged(CostTable.of([done.trace]))
        check = whole_check(self.table, [(done.trace, done.macs)], name)
        self.videos += done.trace.videos
        self.worst = max(self.worst, check["max_relative_difference"])
        self.host_values = max(self.host_values, done.host_values / done.trace.videos)
        self.declared |= done.declared

    def merged(self, other: AuditSummary) -> AuditSummary:
        """Both as one; raises BenchError where a row of one kind of work cost differently."""
        return AuditSummary(
            self.table.merged(other.table),
            self.videos + other.videos,
            max(self.worst, other.worst),
            self.repeated + other.repeated,
            max(self.host_values, other.host_values),
            self.declared | other.declared,
        )


@dataclass
class PointResult:
    """What one operating point gave on N videos."""

    point: OperatingPoint
    logits: np.ndarray
    """(N, C) float32, mean over views."""
    trace: Trace
    """Of all N videos together, all views added up."""
    audit: AuditSummary
    overlay: dict[str, np.ndarray] | None = None


class Evaluator:
    """Runs a trained recognizer over a data set at its operating points.

    Args:
        recognizer: With its weights, on any device.
        videos: The opened VideoSet.
        protocol: Splits, views, randomness, batch.
        device: `cpu` or `cuda`.
        report: Called with a line of progress.
        counted: Run under the audit; without it there is no cost, as for choosing an epoch while training.
        times: Of the method's segments, where budgets are shares of time; else they are of multiply-accumulates.

    Attributes:
        choices: Name of an operating point -> what was chosen and predicted for it from `times`.
    """

    def __init__(
        self,
        recognizer: EfficientRecognizer,
        videos: Any,
        protocol: Protocol,
        *,
        device: str = "cpu",
        report: Callable[[Mapping[str, Any]], None] = lambda _: None,
        counted: bool = True,
        times: SegmentTimes | None = None,
    ) -> None:
        self.recognizer = recognizer.to(device).eval()
        self.videos, self.protocol, self.device, self.report = videos, protocol, device, report
        self.counted, self.times = counted, times
        self.choices: dict[str, Choice] = {}
        self._seed = _seed(self.recognizer) if counted else 0
        self._drawn = np.random.default_rng(self._seed)

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
        if self.times is not None:
            self.choices = self._choices(points, logits, self.times)
            chosen = {name: {"thresholds": list(choice.thresholds)} for name, choice in self.choices.items()}
            return [replace(p, settings={**p.settings, **chosen[p.name]}) if p.budget else p for p in points]
        costs = self._exit_costs()
        return [
            replace(p, settings={**p.settings, **recognizer.calibrate(logits, costs, p.budget)}) if p.budget else p
            for p in points
        ]

    def run(self, point: OperatingPoint, split: str, *, overlay: bool = False) -> PointResult:
        """Logits and trace of every video of `split` at `point`."""
        views = VIEWS[self.protocol.views]
        first, *others = (self._run_view(point, split, view, overlay and view == 0) for view in range(views))
        for other in others:
            first.logits = first.logits + other.logits
            _add_counts(first.trace.counts, other.trace.counts, len(first.logits))
            _add_counts(first.trace.accounted, other.trace.accounted, len(first.logits))
            first.audit = first.audit.merged(other.audit)
        first.logits /= views
        return first

    def cost_table(self, results: Sequence[PointResult]) -> tuple[CostTable, dict[str, Any]]:
        """MACs per row of every kind of work in `results`, and the check of the record (`cost.whole_check`).

        Raises:
            BenchError: A row of one kind of work cost differently at two points, or the accounting is impossible.
        """
        audit = AuditSummary()
        for result in results:
            audit = audit.merged(result.audit)
        for result in results:
            audit.table.gflops_accounted(result.trace)
        return audit.table, {
            "videos": audit.videos,
            "max_relative_difference": audit.worst,
            "repeated": {"videos": audit.repeated, "seed": self._seed},
            "host_values": audit.host_values,
            "declared": sorted(audit.declared),
        }

    def _run_view(self, point: OperatingPoint, split: str, view: int, overlay: bool) -> PointResult:
        dataset = self._dataset(split, point, view)
        whole = Trace(len(dataset))
        logits: list[np.ndarray] = []
        kept: dict[str, list[Any]] = {}
        generator, start, audit = self._generator(), 0, AuditSummary()
        batches = -(-len(dataset) // self.protocol.eval_batch)
        drawn = self._drawn.permutation(batches)[:REPEATED].tolist()
        for index, (clips, samples) in enumerate(self._batches(dataset)):
            trace, out = self._forward(clips, point, generator, audit, again=index in drawn)
            if overlay and start < OVERLAY_VIDEOS:
                _keep(kept, clips, samples, trace, out, OVERLAY_VIDEOS - start, start)
            logits.append(out.numpy())
            _put(whole, trace, clips, start)
            start += len(samples)
            self.report({"note": f"evaluating {point.name}", "done": start, "total": len(dataset)})
        return PointResult(point, np.concatenate(logits), whole, audit, _overlay(kept))

    def _forward(
        self,
        clips: Mapping[str, torch.Tensor],
        point: OperatingPoint,
        generator: torch.Generator | None,
        audit: AuditSummary,
        *,
        again: bool,
    ) -> tuple[Trace, torch.Tensor]:
        """Trace and logits (B, C) of one batch, on the host; `again`: it runs once more, and must do the same."""
        settings = point.settings
        if not self.counted:
            trace = Trace(len(next(iter(clips.values()))), details=True)
            with torch.inference_mode():
                out = self.recognizer.infer(clips, settings, trace=trace, generator=generator)
            return trace, out.float().cpu()
        before = None if generator is None else generator.clone_state()
        done = audited(self.recognizer, clips, settings, generator=generator, details=True)
        audit.add(done, type(self.recognizer).__name__)
        if again:
            repeat(self.recognizer, clips, settings, done, generator=before)
            audit.repeated += done.trace.videos
        return done.trace, done.logits

    def _exit_logits(self, split: str) -> np.ndarray:
        dataset = self._dataset(split, OperatingPoint("full"), 0)
        parts = []
        for clips, samples in self._batches(dataset):
            with torch.inference_mode():
                parts.append(self.recognizer.infer_exits(clips, trace=Trace(len(samples))).float().cpu().numpy())
        return np.concatenate(parts)

    def _choices(
        self, points: Sequence[OperatingPoint], logits_NKC: np.ndarray, times: SegmentTimes
    ) -> dict[str, Choice]:
        """Point name -> its stops and thresholds; the default point's are those of no exits."""
        main, targets = metric(self.videos.card.metric), self.targets(self.protocol.calib_split)
        scores_NK = exit_scores(torch.from_numpy(logits_NKC), self.recognizer.exit_score).numpy()
        probabilities_NKC, videos = softmax(logits_NKC), np.arange(len(logits_NKC))

        def quality(exits_N: np.ndarray) -> float:
            return main(probabilities_NKC[videos, exits_N], targets)

        budgets = {p.name: p.budget for p in points if p.budget}
        found = choose_stops(scores_NK, times, list(budgets.values()), quality)
        return {points[0].name: without_exits(times, len(videos), quality), **dict(zip(budgets, found, strict=True))}

    def _exit_costs(self) -> np.ndarray:
        """Measured MACs of stopping one video at each exit (K,)."""
        costs = []
        for step in range(self.recognizer.exits):
            settings = self.recognizer.exit_settings(step)
            clips = self._clips(self.protocol.calib_split, [0], OperatingPoint("exit", settings))
            costs.append(metered(self.recognizer, clips, settings, device=self.device)[1])
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


def _seed(recognizer: torch.nn.Module) -> int:
    """Out of the weights: the same whenever they are evaluated, and nothing that a method's author could know."""
    content = hashlib.sha256()
    for value in recognizer.state_dict().values():
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(content.digest()[:4], "big")


def split_metric(recognizer: EfficientRecognizer, videos: Any, split: str, *, device: str) -> float:
    """The card's main metric on `split` at the default point (used for best-on-val selection)."""
    evaluator = Evaluator(recognizer, videos, Protocol(), device=device, counted=False)
    point = next(iter(recognizer.operating_points()))
    result = evaluator.run(point, split)
    return metric(videos.card.metric)(softmax(result.logits), evaluator.targets(split))


def _put(whole: Trace, part: Trace, clips: Mapping[str, torch.Tensor], start: int) -> None:
    """Copy the trace of a batch into the rows from `start` on of the whole one."""
    rows = slice(start, start + part.videos)
    for key, values in part.counts.items():
        whole.counts.setdefault(key, np.zeros(whole.videos))[rows] = values
    for reason, values in part.accounted.items():
        whole.accounted.setdefault(reason, np.zeros(whole.videos))[rows] = values
    for name, values in part.decisions.items():
        table = whole.decisions.setdefault(name, np.full((whole.videos, values.shape[1]), -1, dtype=np.int64))
        table[rows] = values
    if part.exit_step is not None:
        if whole.exit_step is None:
            whole.exit_step = np.full(whole.videos, -1, dtype=np.int64)
        whole.exit_step[rows] = part.exit_step
    if whole.frames_used is None:
        whole.frames_used = np.zeros(whole.videos)
    longest = max(clip.shape[1] for clip in clips.values())
    whole.frames_used[rows] = longest if part.frames_used is None else part.frames_used


def _add_counts(into: dict[Any, np.ndarray], more: Mapping[Any, np.ndarray], videos: int) -> None:
    for key, values in more.items():
        into[key] = into.get(key, np.zeros(videos)) + values


def _keep(
    kept: dict[str, list[Any]],
    clips: Mapping[str, torch.Tensor],
    samples: Sequence[Any],
    trace: Trace,
    logits: torch.Tensor,
    room: int,
    start: int,
) -> None:
    name = max(clips, key=lambda n: clips[n].shape[1])
    for row, sample in enumerate(samples[:room]):
        kept.setdefault("frames", []).append(clips[name][row].permute(0, 2, 3, 1).cpu().numpy())
        kept.setdefault("ids", []).append(str(sample.metainfo["video_id"]))
        kept.setdefault("labels", []).append(int(sample.gt_label.reshape(-1)[0]))
        kept.setdefault("predictions", []).append(int(logits[row].argmax()))
        kept.setdefault("exits", []).append(-1 if trace.exit_step is None else int(trace.exit_step[row]))
        kept.setdefault("boxes", []).extend((start + row, b[1], *b[3:]) for b in trace.boxes if b[0] == row)


def _overlay(kept: Mapping[str, list[Any]]) -> dict[str, np.ndarray] | None:
    """Arrays for the picture; None for a method that looks nowhere in particular."""
    if not kept.get("boxes"):
        return None
    return {name: np.asarray(values, dtype=np.float32 if name == "boxes" else None) for name, values in kept.items()}
