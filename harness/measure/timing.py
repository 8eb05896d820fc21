"""What one process of a timing session does: a launch that times an evaluated model at all its points and batch
sizes, or the examination that timing must not share a process with.

`harness.work.timing_session` starts both and joins what they found (harness.measure.launches).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contract.declarations import ClipRequest, OperatingPoint
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.contract.trace import Trace
from harness.contract.values import from_mapping
from harness.data.clips import ClipDataset, collate
from harness.data.videos import VideoSet
from harness.errors import BenchError
from harness.measure.cost_table import CostTable
from harness.measure.evaluation import Evaluator
from harness.measure.files import measure_files
from harness.measure.latency import Output, describe, learn, measure_latency, phases, prepared, to_device
from harness.measure.metrics import evaluate, reported
from harness.measure.streaming import measure_stream
from harness.measure.trained import trained_recognizer
from harness.measure.views import Viewed, joined, view_datasets
from harness.plan.protocol import Protocol
from harness.plan.units import LatencySpec
from harness.store import sources
from harness.store.records import Record, read_record
from harness.store.work_dir import record_folder, tuning_folder

TIMED_VIDEOS = 64
"""Real test videos that are timed, spread over the whole split."""
LEAST_FORWARDS = 20
"""Timed of each point and batch size, over all launches."""
STREAM_BATCHES = 8
"""Full batches of one stream, at least: at its beginning and its end it is not full."""
SAME = 0.02
"""Largest difference of a logit, relative to the video's largest, that rounding explains (TF32, order of sums)."""

Boxes = dict[tuple[Any, ...], tuple[float, ...]]
"""(batch, video, frame, label) -> (top, left, height, width)."""
Arrays = Mapping[str, np.ndarray]
"""Of all test videos: `logits` (N, C) of a point and, where the method exits, `exits` (N,)."""
Clock = Callable[[LatencySpec], tuple[dict[str, Any], list[Output], np.ndarray]]
"""Times a point at a batch size: what was measured, what timed forwards said, and the places of their videos."""


@dataclass
class _Model:
    """An evaluated model and what its evaluation recorded."""

    recognizer: EfficientRecognizer
    record: Record
    videos: VideoSet
    protocol: Protocol

    @cached_property
    def arrays(self) -> Arrays:
        """What the evaluation recorded of each video."""
        return self.record.arrays()

    def point(self, name: str) -> OperatingPoint:
        entry = self.entry(name)
        return OperatingPoint(name, entry["settings"], entry["knob"], entry["value"], entry["budget"])

    def entry(self, name: str) -> Mapping[str, Any]:
        """The record's entry of an operating point."""
        return next(p for p in self.record.result["points"] if p["name"] == name)

    def evaluated(self, name: str) -> Arrays:
        """What the evaluation record holds of a point."""
        prefix = self.entry(name)["prefix"]
        kinds = ("logits", "exits")
        return {kind: self.arrays[f"{prefix}_{kind}"] for kind in kinds if f"{prefix}_{kind}" in self.arrays}

    def requests(self, name: str) -> tuple[ClipRequest, ...]:
        """The clips that are wanted at an operating point."""
        return tuple(self.recognizer.clip_requests(self.entry(name)["settings"]))

    def how(self, spec: LatencySpec) -> dict[str, Any]:
        """How long a point is timed, at what cost and with which seed, as `measure_latency` takes it."""
        launches = int(spec.options.get("launches", 1))
        costs = CostTable.from_rows(self.record.result["cost"]["table"])
        return {
            "min_iterations": -(-LEAST_FORWARDS // launches),
            "min_seconds": spec.options.get("min_seconds", 1.0) / launches,
            "costs": costs.components,
            "test_seed": self.protocol.test_seed if self.protocol.test_randomness == "sampled" else None,
        }

    def chosen(self, batch: int) -> np.ndarray:
        """Places in the test split of the videos that are timed: whole batches, two at least; few videos repeat."""
        count = -(-max(TIMED_VIDEOS, 2 * batch) // batch) * batch
        return np.linspace(0, len(self.videos.splits[self.protocol.test_split]) - 1, count).round().astype(int)

    def views(self, requests: tuple[ClipRequest, ...], **options: Any) -> list[ClipDataset]:
        """The test split, a dataset for each view of the protocol; `options` as `ClipDataset` takes them."""
        return view_datasets(self.videos, self.protocol.test_split, requests, self.protocol.views, **options)


def time_launch(
    specs: Sequence[LatencySpec],
    work_dir: Path,
    *,
    first: bool = True,
    reference: Mapping[str, Arrays] | None = None,
) -> Iterator[tuple[LatencySpec, dict[str, Any]]]:
    """Time one model at the points and batch sizes of `specs`, all of one setup.

    Args:
        first: The first launch, which also measures what does not differ between launches: loading, peak memory.
        reference: Point -> what its forwards must say; the evaluation record's where None.

    Yields:
        Each spec with what `harness.measure.launches.merged` takes of one launch.
    """
    setup = specs[0]
    model = _model(setup, work_dir)
    code = sources.loaded("latency", [model.record.result["sources"]])
    drawn, views = model.protocol.test_randomness == "sampled", model.protocol.views
    timed = model.recognizer if views == "centre" else Viewed(model.recognizer)
    ways: dict[str, dict[str, Any]] = {}  # point -> its phases from file to logits, one video at a time
    with _prepared(model, setup, work_dir) as device:
        gc.collect()
        gc.freeze()  # what is there now is there to the end: collections before timings need not look at it
        batches = _Batches(model, timed, device, first=first)
        clock: dict[str, Clock] = {
            "batch": batches.forwards,
            "stream": batches.streams,
            "file": _Files(model, device),
        }
        for spec in specs:
            measured, outputs, chosen = clock[spec.mode](spec)
            if first and spec.mode == "batch" and measured["status"] == "ok" and spec.point not in ways:
                settings, split = model.entry(spec.point)["settings"], model.protocol.test_split
                requests = model.requests(spec.point)
                ways[spec.point] = phases(timed, model.videos, split, requests, settings, device=device, views=views)
            parts = ways.get(spec.point, {}) if spec.mode == "batch" else {}
            arrays = model.evaluated(spec.point) if reference is None else reference[spec.point]
            dataset = model.record.result["dataset"]
            yield spec, {
                **measured,
                **parts,
                "phases_s": {**parts.get("phases_s", {}), **measured["phases_s"]},
                "outputs": compared(outputs, arrays, chosen) if outputs and not drawn else None,
                "threads": torch.get_num_threads(),
                "device": describe(device),
                "dataset": {"name": dataset["name"], "fingerprint": dataset["fingerprint"]},
                "sources": code,
                "made_with": sources.made_with(setup.device),
            }


class _Batches:
    """Times forwards of batches that lie in memory, and streams of them."""

    def __init__(
        self, model: _Model, timed: EfficientRecognizer | Viewed, device: torch.device, *, first: bool
    ) -> None:
        self.model, self.timed, self.device, self.first = model, timed, device, first
        self.samples: list[list[Any]] = []  # of each view
        self.loaded: tuple[Any, ...] | None = None

    def forwards(self, spec: LatencySpec) -> tuple[dict[str, Any], list[Output], np.ndarray]:
        """Mode `batch`: what `measure_latency` says, and the places in the test split of what was timed."""
        settings, (batches, chosen) = self.model.entry(spec.point)["settings"], self.loaded_batches(spec)
        how = self.model.how(spec)
        measured, outputs = measure_latency(
            self.timed, batches, settings, device=self.device, memory=self.first, **how
        )
        return measured, outputs, chosen

    def streams(self, spec: LatencySpec) -> tuple[dict[str, Any], list[Output], np.ndarray]:
        """Mode `stream`: what `measure_stream` says, and the places in the test split of what was timed."""
        assert isinstance(self.timed, EfficientRecognizer), "a plan refuses streams of several views"
        settings, (batches, chosen) = self.model.entry(spec.point)["settings"], self.loaded_batches(spec)
        repeats, how = -(-STREAM_BATCHES // len(batches)), self.model.how(spec)
        del how["min_iterations"]  # a sample is a whole stream
        measured, output = measure_stream(
            self.timed,
            batches * repeats,
            settings,
            device=self.device,
            max_wait_s=spec.options["max_wait_s"],
            memory=self.first,
            **how,
        )
        return measured, [output] if output is not None else [], np.tile(chosen, repeats)

    def loaded_batches(self, spec: LatencySpec) -> tuple[list[Clips], np.ndarray]:
        """The timed videos in batches, and their places in the test split."""
        model, requests, chosen = self.model, self.model.requests(spec.point), self.model.chosen(spec.batch)
        if (requests, len(chosen)) != self.loaded:  # one point after the other asks for the same clips
            self.samples = [[dataset[int(i)] for i in chosen] for dataset in model.views(requests)]
            self.loaded = (requests, len(chosen))
        batches = [
            joined([collate(view[i : i + spec.batch])["inputs"] for view in self.samples])
            for i in range(0, len(chosen), spec.batch)
        ]
        return batches, chosen


class _Files:
    """Times batches from opening their files to logits: mode `file`."""

    def __init__(self, model: _Model, device: torch.device) -> None:
        self.model, self.device = model, device

    def __call__(self, spec: LatencySpec) -> tuple[dict[str, Any], list[Output], np.ndarray]:
        """What `measure_files` says of a point and batch size, and the places in the test split of its outputs."""
        model, chosen = self.model, self.model.chosen(spec.batch)
        settings, datasets = model.entry(spec.point)["settings"], model.views(model.requests(spec.point), cache_bytes=0)
        batches = chosen.reshape(-1, spec.batch).tolist()
        measured, outputs = measure_files(
            model.recognizer, datasets, batches, settings, device=self.device, **model.how(spec)
        )
        return measured, outputs, np.concatenate([chosen, chosen])


def examine(
    specs: Sequence[LatencySpec], work_dir: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, Arrays]]:
    """What a setup does to the model: accuracy and decisions on the whole test split, computed as it is timed.

    Returns:
        Point -> `precision`: videos, agreement with the eager float32 evaluation (top1, exits, decisions: shares of all
        test videos or of their decisions; boxes: share within a pixel, on the timed videos), and the metrics. And
        point -> arrays of that evaluation.
    """
    setup = specs[0]
    model = _model(setup, work_dir)
    found: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Arrays] = {}
    for name in dict.fromkeys(spec.point for spec in specs):
        precision, arrays[name] = _as_timed(model, name, setup, work_dir)
        found[name] = {"precision": precision}
    return found, arrays


def compared(outputs: Sequence[Output], arrays: Arrays, chosen: np.ndarray) -> dict[str, Any]:
    """Hold what timed forwards said against what was evaluated.

    Args:
        outputs: Of the batches, in order.
        arrays: Of all test videos.
        chosen: Places (N,) of the timed videos among them.

    Returns:
        `videos`, each once however often it was timed; `differing`, how many differ in a logit by more than `SAME` or
        left at another exit; `exits`, how many of those left at another exit; `largest` difference of a logit.
    """
    logits = torch.cat([o.logits for o in outputs]).float().cpu().numpy()
    wanted = arrays["logits"][chosen]
    difference = np.abs(logits - wanted).max(1)
    scale = np.maximum(1.0, np.abs(wanted).max(1))
    exits = np.zeros(len(chosen), dtype=bool)
    if "exits" in arrays:
        steps = [np.full(len(o.logits), -1) if o.exit_step is None else np.asarray(o.exit_step) for o in outputs]
        exits = np.concatenate(steps) != arrays["exits"][chosen]
    differs = exits | ~(difference <= SAME * scale)  # also where it is not a number
    return {
        "videos": len(np.unique(chosen)),
        "differing": len(np.unique(chosen[differs])),
        "exits": len(np.unique(chosen[exits])),
        "largest": float(difference.max()),
    }


def agreement(found: Any, arrays: Arrays, decisions: Arrays) -> dict[str, float | None]:
    """Shares in which a `PointResult` says what was evaluated: predictions, exits, decisions; None: there are none."""
    same_exits = None
    if "exits" in arrays and found.trace.exit_step is not None:
        same_exits = float(np.mean(found.trace.exit_step == arrays["exits"]))
    equal = [found.trace.decisions[name] == values for name, values in decisions.items()]
    return {
        "top1": float(np.mean(found.logits.argmax(1) == arrays["logits"].argmax(1))),
        "exits": same_exits,
        "decisions": float(np.mean(np.concatenate([e.ravel() for e in equal]))) if equal else None,
    }


def box_agreement(ours: Boxes, theirs: Boxes, resolution: int) -> float | None:
    """Share of the boxes `theirs` that lie within a pixel of `ours`; None where nothing is boxed."""
    if not theirs:
        return None
    near = [
        place in ours and max(abs(a - b) for a, b in zip(ours[place], box, strict=True)) * resolution <= 1
        for place, box in theirs.items()
    ]
    return float(np.mean(near))


def _as_timed(model: _Model, name: str, setup: LatencySpec, work_dir: Path) -> tuple[dict[str, Any], Arrays]:
    """What a point says on the whole test split in the setup's form and precision, held against its evaluation."""
    point, evaluated, clips = model.point(name), model.evaluated(name), _clips(model, name)
    evaluator = Evaluator(model.recognizer, model.videos, model.protocol, device=setup.device, counted=False)
    theirs = boxes(model.recognizer, clips, point)
    with _prepared(model, setup, work_dir):
        learn(model.recognizer, clips, point.settings)
        found = evaluator.run(point, model.protocol.test_split)
        ours = boxes(model.recognizer, clips, point)
    prefix = f"{model.entry(name)['prefix']}_decision_"
    decisions = {k.removeprefix(prefix): v for k, v in model.arrays.items() if k.startswith(prefix)}
    card = model.videos.card
    targets = evaluator.targets(model.protocol.test_split)
    arrays = {"logits": found.logits}
    if found.trace.exit_step is not None:
        arrays["exits"] = found.trace.exit_step
    near = box_agreement(ours, theirs, model.recognizer.resolution)
    told = {
        "videos": len(found.logits),
        "agreement": {**agreement(found, evaluated, decisions), "boxes": near},
        "metrics": evaluate(found.logits, targets, reported(card.metric, len(card.classes))),
    }
    return told, arrays


def _prepared(model: _Model, setup: LatencySpec, work_dir: Path) -> AbstractContextManager[torch.device]:
    return prepared(
        model.recognizer,
        device=setup.device,
        dtype=setup.dtype,
        engine=setup.engine,
        memory_format=setup.memory_format,
        table=tuning_folder(work_dir),
    )


def boxes(recognizer: EfficientRecognizer, batches: Sequence[Mapping[str, Tensor]], point: OperatingPoint) -> Boxes:
    """Where a recognizer looks: (batch, video, frame, label) -> box."""
    found: Boxes = {}
    with torch.inference_mode():
        for number, clips in enumerate(batches):
            trace = Trace(len(next(iter(clips.values()))), details=True)
            recognizer.infer(to_device(clips, recognizer.mean.device), point.settings, trace=trace)
            found.update({(number, *box[:3]): box[3:] for box in trace.boxes})
    return found


def _model(spec: LatencySpec, work_dir: Path) -> _Model:
    record = read_record(record_folder(work_dir, "evaluation", spec.evaluation))
    if record is None:
        raise BenchError(f"evaluation {spec.evaluation} is not in {work_dir}; run it before timing it")
    recorded = record.result
    weights = {name: recorded[name] for name in ("artifact", "checkpoint")}
    recognizer = trained_recognizer(spec.method, recorded["method"]["settings"], work_dir, **weights)
    protocol = from_mapping(Protocol, {**recorded["protocol"], "budgets": tuple(recorded["protocol"]["budgets"])})
    videos = spec.data.open(recorded["dataset"]["fingerprint"])
    return _Model(recognizer.eval(), record, videos, protocol)


def _clips(model: _Model, name: str) -> list[dict[str, Tensor]]:
    """The timed videos at a point (the first view), in batches of 16."""
    dataset = model.views(model.requests(name))[0]
    samples = [dataset[int(i)] for i in model.chosen(16)]
    return [collate(samples[i : i + 16])["inputs"] for i in range(0, len(samples), 16)]


