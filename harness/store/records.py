"""Evaluation and latency records: one schema, written once, read by the reports. No torch.

Arrays are written first and their hash goes into `result.json`, whose atomic rename is the commit: a
record either is whole or does not exist.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.values import plain
from harness.errors import BenchError
from harness.store.files import file_hash, read_json, write_arrays, write_json
from harness.store.shapes import SCHEMA_VERSION, Evaluation, Latency, Versioned
from harness.store.work_dir import Kind, record_folder

EVALUATION_SCHEMA: dict[str, str] = {
    "schema": "int, SCHEMA_VERSION",
    "kind": "'evaluation'",
    "key": "str, hash of everything the result depends on",
    "created": "str, UTC, ISO 8601",
    "method.name": "str",
    "method.title": "str",
    "method.class": "str",
    "method.version": "int",
    "method.size": "str, tiny or paper",
    "method.settings": "dict, constructor settings",
    "method.adapts": "list of space/time/sample/resolution/channels",
    "method.fidelity": "str, A B C D or R",
    "method.variant_of": "str or null",
    "method.year": "int",
    "method.source": "str",
    "method.parameters": "int, all parameters of the evaluated recognizer",
    "dataset.name": "str",
    "dataset.title": "str",
    "dataset.fingerprint": "str",
    "dataset.part": "str or null, the fold or selection that was tested",
    "dataset.metric": "str, name of the main metric: top1 or mAP",
    "dataset.classes": "list of str",
    "dataset.videos": "dict split -> int",
    "dataset.resolution": "int, pixels",
    "dataset.decoder": "dict decoder path -> number of videos",
    "dataset.content": "str, hash of what all files hold; part of the fingerprint, but for embedded sets",
    "dataset.missing": "list of video ids left out because they are broken or missing",
    "dataset.dropped": "list of video ids left out because they have fewer frames than the card's min_frames",
    "dataset.duplicates": "list of lists of 'SPLIT: ID', videos of equal content within a split or in several",
    "dataset.untrained": "list of str, classes without a training video",
    "dataset.disclosures": "list of str, what a reader of the figures must know",
    "data": "dict, harness.plan.units.DataSpec: how the data set was opened",
    "protocol": "dict, harness.plan.protocol.Protocol",
    "seed": "int, training seed",
    "artifact": "str, key of the evaluated weights",
    "checkpoint": "str or null, file evaluated without training",
    "disclosures": "list of str, what a reader must know of the evaluated weights",
    "initialisation": "str, where the weights came from: stills, imagenet, scratch",
    "training.seconds": "float, wall clock of all stages, shared ones included",
    "training.own_seconds": "float, of the stages no other method shares",
    "training.samples": "int, training videos seen in all stages (with repeats)",
    "training.stages": "list of {name, method, key, epochs, recipe (hash), seconds, samples, shared, departures, "
    "changed_midway}; the last: list of str, what changed while it was trained (--keep-stale)",
    "training.departures": "list of str, where the recipe leaves the paper",
    "training.device": "str",
    "training.threads": "int",
    "points": "list of operating points, the first is the default; see POINT_SCHEMA",
    "cost.table": "list of {component, variant, shape, training_only, macs}: measured MACs per row",
    "cost.whole_check": "{videos, max_relative_difference, repeated, host_values, declared}: forwards of one video "
    "that were metered (every one, at every point and view); of a batch, whole count against trace x table; repeated "
    "{videos, seed}: forwards run once more without a meter, drawn with this seed; host_values: most values per video "
    "that left torch; declared: custom operators whose formula is the method's own",
    "segment_times": "null (budgets are shares of multiply-accumulates) or {batch, rows, begin_s, segments, rounds, "
    "videos, device, dtype, engine, memory_format, threads, others, gpu_others, slowed, clocks, disturbed}: what "
    "budgets in milliseconds were calibrated with; rows: list of int, videos still there; begin_s: list of float by "
    "rows, seconds before the first segment; segments: list of {first, last (exits), seconds (by rows)}, segments run "
    "as one, with the decision who leaves behind them, medians of so many rounds over so many calibration videos; the "
    "rest as in a latency record",
    "per_video.file": "str",
    "per_video.sha256": "str",
    "overlay.file": "str or absent",
    "overlay.sha256": "str",
    "provenance": "dict: packages, git, cpu, gpu, driver, platform, command",
    "sources": "dict module -> hash of its code, for the project's modules that it rests on (harness.store.sources)",
    "made_with": "dict: device (cpu or cuda), versions of torch, torchvision and av",
}

POINT_SCHEMA: dict[str, str] = {
    "name": "str, unique within the record",
    "knob": "str or null",
    "value": "float or null",
    "budget": "float or null, share of the full cost it was calibrated for",
    "settings": "dict",
    "predicted": "null (budgets are shares of multiply-accumulates) or {seconds, stops, quality, considered}: of the "
    "calibration split, one view; seconds: mean of a video by segment_times; stops: list of int, exits at which "
    "somebody may leave; quality: main metric, of the best of so many sets of stops that were considered, which "
    "flatters it: it chose, and says nothing else",
    "prefix": "str: arrays of per_video.npz are PREFIX_logits (N, C) float32, PREFIX_gflops (N,), "
    "PREFIX_exits (N,) where the method exits, PREFIX_frames (N,) frames used, "
    "PREFIX_decision_NAME (N, T); shared: ids (N,), targets (N, L) padded with -1",
    "metrics": "dict name -> {value, low, high}, in percent, 95 % interval over videos",
    "gflops": "{mean, std, q05, q25, q50, q75, q95} over videos, executed, 1e9 multiply-accumulates",
    "gflops_accounted": "the same by the paper's accounting, or null where it is the same",
    "components": "dict component -> mean GFLOPs per video",
    "frames": "{mean, std} frames used",
    "exits": "list of int, videos per exit, or null",
    "decisions": "dict name -> dict value -> share",
    "rendering": "overlay.npz holds frames (V, T, H, W, 3) uint8, ids, labels, predictions, exits and "
    "boxes (R, 6): video, frame, top, left, height, width",
}

LATENCY_SCHEMA: dict[str, str] = {
    "schema": "int",
    "kind": "'latency'",
    "key": "str",
    "created": "str",
    "evaluation": "str, key of the evaluated record",
    "method.name": "str",
    "method.size": "str",
    "dataset.name": "str",
    "dataset.fingerprint": "str",
    "seed": "int",
    "point": "str, name of the operating point",
    "batch": "int",
    "mode": "str, what is on the clock: batch, one forward of a batch in memory (also where the key is missing); "
    "stream, many batches in memory, rebatched between exits; "
    "file, a batch from opening its files to logits, with lazy clips",
    "eager_clips": "null, or of mode file {wall_s, frames_decoded}: the same batches, in turns with those of wall_s, "
    "all requested frames decoded before",
    "stream": "null (another mode) or {max_wait_s, own_s, plain_s, batches}: age at which a video waited no longer "
    "for others; of each video of all timed streams, in order, seconds from being taken in to its result; seconds of "
    "the plain loop over the same videos, timed in turns with the streams; list of {exit, sizes}: how often a batch of "
    "so many videos (dict size -> int) was run up to that exit, over all timed streams",
    "dtype": "str",
    "compile": "str or null, mode of torch.compile for the heavy networks alone (null where there is an engine)",
    "engine": "'eager', 'compiled' or 'graphs': how components run (harness.engine.forms)",
    "forms": "dict kind of call -> {component, way (eager, compiled, graph), milliseconds: rows -> of a call}",
    "memory_format": "str",
    "threads": "int",
    "compiled_share": "float or null (eager): share of the executed multiply-accumulates in compiled components",
    "precision": "null (eager float32) or {videos, agreement, metrics}: evaluation as timed; agreement with the "
    "eager float32 record as shares: top1, exits, decisions, boxes (within a pixel, on the timed videos), null where "
    "there are none; metrics: dict name -> {value, low, high}",
    "options": "dict: min_seconds (in timed forwards, over all launches), launches, max_wait_s (mode stream)",
    "device": "dict: name, kind (cpu or cuda), fingerprint, driver, clocks (before the first launch, after the last), "
    "kernels (cuda: cudnn, cudnn_benchmark, tf32_convolution, tf32_matmul, deterministic)",
    "status": "'ok' or 'out of memory'",
    "wall_s": "list of float, host wall clock of each timed forward of one batch (mode stream: of each whole stream), "
    "in order",
    "launches": "list, one per process that timed: {forwards (so many of wall_s, in order), warmup, prepare_s "
    "(compiling and measuring forms), unprepared (calls of components without a form), others (share of "
    "the cores' time that other processes took, or null), gpu_others (share of the GPU's time before it, or null), "
    "slowed (list of str, what held the clocks down), clocks {before, after: while the device worked}}",
    "disturbed": "list of str, what disturbed the timing; empty where nothing is known to have done so",
    "outputs": "null (decisions are drawn) or {videos, differing, exits, largest}: timed forwards "
    "against the evaluation, of the launch that differs most: videos whose logits or exit differ, those whose exit "
    "does, largest difference of a logit",
    "device_s": "list of float or null, the same by device events",
    "videos": "list of int, videos in each timed batch or stream",
    "gflops": "list of float, executed GFLOPs of each timed batch or stream",
    "phases_s": "dict decode/transform/transfer/model -> seconds per video (mean); of mode file as the host spends "
    "them within wall_s",
    "frames_decoded": "float per video, frames decoded to reach those that were asked for (of mode file: by the "
    "recognizer; else: in its clips)",
    "peak_memory_bytes": "int or null",
    "warmup": "int, untimed forwards before, of all launches",
    "provenance": "dict",
    "sources": "dict module -> hash",
    "made_with": "dict: device (cpu or cuda), versions of torch, torchvision and av",
}


@dataclass(frozen=True)
class Record:
    """A result and the folder it lies in."""

    path: Path
    result: Mapping[str, Any]

    def arrays(self) -> Mapping[str, np.ndarray]:
        """The per-video arrays; raises BenchError where they do not match the committed hash."""
        return self._load("per_video")

    def overlay(self) -> Mapping[str, np.ndarray] | None:
        """Frames and boxes for the picture, or None."""
        return self._load("overlay") if self.result.get("overlay") else None

    def verify(self) -> None:
        """Raise BenchError where arrays do not match the committed hash."""
        for name in ("per_video", "overlay"):
            if self.result.get(name):
                self._intact(name)

    def _load(self, name: str) -> Mapping[str, np.ndarray]:
        with np.load(self._intact(name), allow_pickle=False) as arrays:
            return dict(arrays)

    def _intact(self, name: str) -> Path:
        entry = self.result[name]
        path = self.path / entry["file"]
        try:
            intact = file_hash(path) == entry["sha256"]
        except OSError:
            intact = False
        if not intact:
            raise BenchError(f"{path} is missing or was changed after it was recorded; remove {self.path} and rerun")
        return path


def commit_record(folder: Path, result: Mapping[str, Any], **arrays: Mapping[str, np.ndarray] | None) -> Record:
    """Write arrays first, then `result.json` with their hashes: its rename makes the record exist."""
    entries = {name: write_arrays(folder / f"{name}.npz", value) for name, value in arrays.items() if value}
    whole = plain({**result, **entries, "schema": SCHEMA_VERSION})
    write_json(folder / "result.json", whole)
    return Record(folder, whole)


def read_record(folder: Path) -> Record | None:
    """The record in `folder`, or None where none was committed.

    Raises:
        BenchError: It is of another schema, damaged or foreign; names file, key and what was expected.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    schema = read_json(path, Versioned)["schema"]
    if schema != SCHEMA_VERSION:
        raise BenchError(f"{path} has record schema {schema}, this version reads {SCHEMA_VERSION}; rerun that cell")
    return Record(folder, read_json(path, Latency if folder.parent.name == "latency" else Evaluation))


def say_left_out(path: Path, reason: str) -> None:
    """Name a record that cannot be read, on standard error."""
    print(f"left out: {reason}", file=sys.stderr)


def read_records(
    work_dirs: Iterable[Path | str], kind: Kind, left_out: Callable[[Path, str], None] = say_left_out
) -> list[Record]:
    """All committed records of `kind` (evaluation, latency) below the work directories, by key.

    Args:
        work_dirs: The work directories.
        kind: evaluation or latency.
        left_out: Told of every folder whose record or arrays cannot be read, and why; by default on standard error.
    """
    found: dict[str, Record] = {}
    for work_dir in work_dirs:
        root = record_folder(Path(work_dir), kind, "")
        if not Path(work_dir).is_dir():
            raise BenchError(f"{work_dir} is not a folder of results; run `bench.py run --work-dir {work_dir}` first")
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            try:
                record = read_record(folder)
                if record is not None:
                    record.verify()
            except BenchError as error:
                left_out(folder, str(error))
                continue
            if record is not None:
                found.setdefault(str(record.result["key"]), record)
    return [found[key] for key in sorted(found)]
