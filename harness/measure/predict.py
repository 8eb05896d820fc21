"""One video through a saved checkpoint: classes, cost, time, and where and when the method looked.

    found = predict(Path("clip.mp4"), Path("results/artifacts/KEY"), point="exit@0.30")
    print(found.to_text())

The video goes through the test pipeline of the data set that the checkpoint was trained on. Time is taken
before anything is counted: a counter slows what runs after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.contract.declarations import OperatingPoint
from harness.contract.groups import Positive, check
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card
from harness.contract.trace import Trace
from harness.data.cards import CARDS, CSV_PREFIX, DatasetCard, Geometry, Pipeline, dataset_card
from harness.data.clips import ClipDataset, collate
from harness.data.decode import VideoInfo, iterate, probe
from harness.data.lists import VideoEntry, first_existing, read_classes, read_csv, require_printable, unlike
from harness.data.transforms import draw_test, resize_short
from harness.data.videos import VideoSet
from harness.errors import BenchError, DataError, UsageError, unknown
from harness.measure.cost_table import CostTable, metered
from harness.measure.latency import phases, to_device
from harness.measure.metrics import softmax
from harness.measure.prediction import Box, ClassScore, GivenFrame, Prediction, State
from harness.plan.building import build_recognizer
from harness.plan.pretraining import PRETRAINING
from harness.plan.protocol import budget_label
from harness.store import artifacts
from harness.store.records import read_records

PLAIN_GEOMETRY = Geometry(256, 224)
"""Of a checkpoint that names no data set: what all the papers' sets have in common."""


def predict(
    video: Path,
    checkpoint: Path,
    *,
    dataset: str | None = None,
    classes: Path | None = None,
    point: str | None = None,
    settings: Mapping[str, Any] | None = None,
    top: int = 5,
    device: str = "cpu",
    work_dir: Path | None = None,
    data_root: Path = Path("data"),
) -> Prediction:
    """Classify one video.

    Args:
        video: A video file, or a folder of JPEG frames.
        checkpoint: Artifact folder (of `run` or of `convert`), or model.safetensors in one.
        dataset: Whose pipeline and class names are taken; the checkpoint's own when None.
        classes: File of class names, one per line.
        point: Name of an operating point; calibrated ones are found in the evaluation records of the
            artifact's own work directory and of `work_dir`. The default point when None.
        settings: Settings of an operating point instead (`exit_at`, `thresholds`, `frames`).
        top: How many classes are told.
        device: `cpu` or `cuda`.
        work_dir: Where records of evaluations are looked for too.
        data_root: Where the class file of a real data set is looked for.

    Raises:
        DataError: The video is missing, no video, or too short.
        BenchError, CheckpointError: The checkpoint is foreign or damaged.
        UsageError: The data set does not fit the checkpoint, or there is no such operating point.
    """
    require_printable(video)
    weights, artifact = artifacts.located(checkpoint)
    if artifact["method"] == PRETRAINING:
        raise UsageError(f"{checkpoint} holds a backbone ({artifact['method']}), not a trained method")
    card, notes = _card(checkpoint, artifact, dataset, data_root)
    names, told = _class_names(checkpoint, artifact, card, classes, dataset)
    notes += told
    recognizer = build_recognizer(artifact["method"], artifact["settings"]).to(device).eval()
    artifacts.load_into(recognizer, artifacts.read_weights(weights), origin=str(weights))
    chosen = _point(recognizer, point, settings or {}, _recorded_points(weights, artifact, work_dir))
    requests = recognizer.clip_requests(chosen.settings)

    card = replace(card, templates=(_template(video, card),), pipeline=artifacts.pipeline_of(artifact))
    info = probe(video, template=card.template)
    if info.frames < card.min_frames:
        raise DataError(f"{video}: has {info.frames} frames, {card.title} takes videos of at least {card.min_frames}")
    wanted = max(request.frames for request in requests)
    if info.frames < wanted:
        notes.append(f"the video has {info.frames} frames, {wanted} are asked for: some are used more than once")
    size = artifacts.size_of(artifact)
    entry = VideoEntry(str(video), video, info.frames, (0,))
    videos = VideoSet(card, size, {"test": (entry,)}, fingerprint="", decoder={info.decoder_path: 1})
    timed = phases(recognizer, videos, "test", requests, chosen.settings, device=device, count=1)
    item = ClipDataset(videos, "test", requests, train=False, seed=0, cache_bytes=0)[0]
    clips = to_device(collate([item])["inputs"], torch.device(device))
    trace = Trace(1, details=True)
    with torch.inference_mode():
        logits = recognizer.infer(clips, chosen.settings, trace=trace)
    if not torch.isfinite(logits).all():
        raise BenchError(f"{checkpoint}: the scores of {video} are not finite; the weights diverged in training")
    table = CostTable.of([metered(recognizer, clips, chosen.settings, device=device)[0]])
    meta = item["data_samples"].metainfo
    longest = max(requests, key=lambda r: r.frames).name
    glanced = {n for name, numbers in meta["frame_indices"].items() if name != longest for n in numbers}
    crop = _crop(info, card.geometry[size], card.pipeline)
    if crop.height * crop.width < info.height * info.width / 3:
        seen = f"{crop.width:.0f} x {crop.height:.0f} of {info.width} x {info.height} pixels"
        notes.append(f"the test pipeline of {card.title} shows the method only {seen}")
    card_of_method = method_card(artifact["method"])
    return Prediction(
        video=str(video),
        template=card.template,
        frames=info.frames,
        fps=info.fps or card.fps,
        width=info.width,
        height=info.height,
        checkpoint=str(weights.parent),
        method=card_of_method.name,
        title=card_of_method.title,
        stage=artifact["stage"],
        point=chosen.name,
        settings=dict(chosen.settings),
        classes=_best(logits[0], names, top),
        gflops=float(table.gflops(trace)[0]),
        components={name: float(values[0]) for name, values in table.components(trace).items()},
        seconds=timed["phases_s"],
        frames_decoded=round(timed["frames_decoded"]),
        frames_used=float(wanted if trace.frames_used is None else trace.frames_used[0]),
        clips={name: tuple(numbers) for name, numbers in meta["frame_indices"].items()},
        given=tuple(_given(meta["frame_indices"][longest], trace, glanced, crop)),
        crop=crop,
        exit_step=None if trace.exit_step is None else int(trace.exit_step[0]),
        exits=recognizer.exits,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        notes=tuple(notes),
    )


def shown(found: Prediction, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of frames of the predicted video, ascending, each once."""
    return iterate(found.video, numbers, template=found.template)


def _template(video: Path, card: DatasetCard) -> str:
    """Name of frame i in a folder of frames: the first known one that it holds, the card's own ones first."""
    known = dict.fromkeys((*card.templates, *(t for c in CARDS.values() for t in c.templates)))
    return next((t for t in known if (video / t.format(1)).exists()), card.template)


def _card(
    checkpoint: Path, artifact: Mapping[str, Any], dataset: str | None, data_root: Path
) -> tuple[DatasetCard, list[str]]:
    """The card whose test pipeline is used, with class names where they are known; and what to tell."""
    trained = artifact.get("dataset")
    if dataset and trained and dataset != trained and not (dataset.startswith(CSV_PREFIX) and
                                                           trained.startswith(CSV_PREFIX)):
        raise UsageError(f"{checkpoint} was trained on {trained}; --dataset {dataset} would name its classes wrongly")
    size, resolution = artifacts.size_of(artifact), artifacts.resolution_of(artifact)
    name = dataset or trained
    if name is None:
        geometry = replace(PLAIN_GEOMETRY, resize=round(resolution * 8 / 7), crop=resolution)
        card = replace(dataset_card(CSV_PREFIX + "?"), title="the checkpoint's data set", geometry={size: geometry})
        note = f"no data set is known: shorter side {geometry.resize}, centre {resolution} pixels; see --dataset"
        return card, [note]
    card = dataset_card(name)
    artifacts.require_resolution(checkpoint, artifact, card.title, card.geometry[size].crop)
    if name.startswith(CSV_PREFIX):
        path = Path(name.removeprefix(CSV_PREFIX))
        needed = dataset or (path.is_file() and not artifact.get("classes"))
        known = read_csv(require_printable(path), allow_absolute=True).classes if needed else ()
        return replace(card, classes=known), []
    found = first_existing(data_root / card.name, card.class_files)
    return (replace(card, classes=read_classes(found)) if found else card), []


def _class_names(
    checkpoint: Path, artifact: Mapping[str, Any], card: DatasetCard, file: Path | None, dataset: str | None
) -> tuple[Sequence[str], list[str]]:
    """Names by class: of the file, else of --dataset, which the checkpoint's must equal, else its own."""
    number, own = artifact["settings"]["num_classes"], tuple(artifact.get("classes") or ())
    if file is not None and not file.is_file():
        raise UsageError(f"--classes {file}: there is no such file; it holds one class name per line")
    try:
        names = read_classes(file) if file is not None else (dataset and card.classes) or own or card.classes
    except DataError as error:
        raise UsageError(f"--classes {error}") from None
    if not names:
        return [f"class {i}" for i in range(number)], ["class names are not known; see --dataset and --classes"]
    different = unlike(number, () if file is not None else own, names)
    if different:
        raise UsageError(f"{checkpoint} does not fit {file or card.title}: {different}")
    return names, []


def _recorded_points(weights: Path, artifact: Mapping[str, Any], work_dir: Path | None) -> list[OperatingPoint]:
    """Operating points of this checkpoint's evaluations with its own settings, the newest first.

    Those calibrated for time come last, for by the same names they mean other thresholds. Methods that differ in
    test-time settings share one artifact, and thresholds of one hold for no other.
    """
    home = weights.parents[2] if weights.parent.parent.name == "artifacts" else None
    folders = [f for f in dict.fromkeys((home, work_dir)) if f is not None and f.is_dir()]
    keys = {f"file:{artifact['weights']['sha256'][:16]}", artifact.get("key")}
    found = [
        r.result
        for r in read_records(folders, "evaluation")
        if r.result["artifact"] in keys and r.result["method"]["settings"] == artifact["settings"]
    ]
    found.sort(key=lambda r: str(r["created"]), reverse=True)
    found.sort(key=lambda r: budget_label(r["protocol"]))
    return [
        OperatingPoint(p["name"], p["settings"], p["knob"], p["value"], p["budget"]) for r in found for p in r["points"]
    ]


def _point(
    recognizer: EfficientRecognizer, name: str | None, settings: Mapping[str, Any], recorded: Sequence[OperatingPoint]
) -> OperatingPoint:
    own = list(recognizer.operating_points(()))
    if settings:
        if name is not None:
            raise UsageError("--point names an operating point, --set describes one: give one of them")
        known = {key for p in own for key in p.settings}
        known |= {"thresholds", *recognizer.exit_settings(0)} if recognizer.exits else set()
        for key in settings:
            if key not in known:
                raise unknown("setting of an operating point", key, known)
        if "frames" in settings:
            check("frames", settings["frames"], Positive)
        return OperatingPoint(", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()), dict(settings))
    if name is None:
        return own[0]
    points = [*own, *recorded]
    found = next((p for p in points if p.name == name or _same(p, name)), None)
    if found is None:
        hint = ""
        if recognizer.exits and name.startswith("exit@"):
            hint = "; thresholds come from an evaluation: `bench.py eval --checkpoint ...`, same --work-dir"
        error = unknown("operating point", name, {p.name for p in points})
        raise UsageError(f"{error}{hint}")
    return found


def _same(point: OperatingPoint, name: str) -> bool:
    """Whether `exit@0.5` means this point, `exit@0.50`."""
    knob, _, text = name.partition("@")
    try:
        return point.knob == knob and point.value is not None and float(text) == point.value
    except ValueError:
        return False


def _best(logits_C: torch.Tensor, names: Sequence[str], top: int) -> tuple[ClassScore, ...]:
    probabilities = softmax(logits_C.float().cpu().numpy()[None])[0]
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(ClassScore(int(i), names[i], float(probabilities[i])) for i in order)


def _given(numbers: Sequence[int], trace: Trace, glanced: set[int], crop: Box) -> list[GivenFrame]:
    """Frames of the longest clip with what became of each, and those that only the others hold (`glanced`: numbers)."""
    boxes: dict[int, list[Box]] = {}
    for _, step, _, top, left, height, width in trace.boxes:
        box = Box(crop.top + top * crop.height, crop.left + left * crop.width, height * crop.height, width * crop.width)
        boxes.setdefault(step, []).append(box)
    looked = list(boxes)
    if trace.frames_seen is not None:
        looked = np.flatnonzero(trace.frames_seen[0]).tolist()
    elif not boxes and trace.exit_step is None and not trace.decisions:
        looked = list(range(len(numbers)))
    ranks = {step: rank for rank, step in enumerate(looked, 1)}
    found = [GivenFrame(number, "glanced", None) for number in glanced - set(numbers)]
    for step, number in enumerate(numbers):
        rank = ranks.get(step)
        state: State = "looked" if rank else "glanced" if number in glanced else "left out"
        found.append(GivenFrame(number, state, rank, tuple(boxes.get(step, ()))))
    return sorted(found, key=lambda frame: frame.number)


def _crop(info: VideoInfo, geometry: Geometry, pipeline: Pipeline) -> Box:
    """The test crop in pixels of the video."""
    stored = np.zeros((info.height, info.width, 3), dtype=np.uint8)
    height, width = resize_short(stored, geometry.resize, pipeline).shape[:2]
    top, left, h, w = draw_test(geometry, height, width).box
    down, across = info.height / height, info.width / width
    return Box(top * down, left * across, h * down, w * across)
