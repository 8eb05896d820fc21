"""Training one stage through mmengine's Runner: resumable, deterministic, one artifact out.

Randomness is keyed by (seed, stage, epoch, sample) and checkpoints are taken at epoch ends, so a run
that was killed and resumed gives the weights of an undisturbed one (same thread count).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import save
from torch.utils.data import DataLoader

from harness.compat.checkpoints import AtomicCheckpointHook, checkpoints
from harness.compat.memory import is_out_of_memory
from harness.compat.precision import optim_wrapper
from harness.compat.processes import runner_launch, unwrap, world_size
from harness.compat.seeds import EpochSeedHook, epoch_seed
from harness.contract.declarations import Stage
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import recognizer_class
from harness.data.clips import ClipDataset, collate
from harness.errors import BenchError, CheckpointError, StopRequested
from harness.layers.backbones import imagenet_state
from harness.measure.evaluation import split_metric
from harness.plan.building import build
from harness.plan.pretraining import PRETRAINING
from harness.plan.protocol import Protocol
from harness.plan.units import TrainSpec, Weights, read_stage
from harness.store import artifacts, sources
from harness.store.files import write_atomically
from harness.store.work_dir import set_aside
from harness.work.optimization import build_optimizer, schedulers
from harness.work.stills import StillsDataset, StillsRecognizer

Report = Callable[[Mapping[str, Any]], None]
LARGEST = torch.finfo(torch.float32).max ** 0.5
"""Beyond it the square of a weight overflows, so that no variance or norm of it can be taken."""


def train(spec: TrainSpec, work_dir: Path, *, device: str, report: Report, stop: Callable[[], bool]) -> None:
    """Train the stage of `spec` and commit its artifact below `work_dir`.

    Args:
        spec: What to train.
        work_dir: Root of the results.
        device: `cpu` or `cuda`.
        report: Called about once a second with epoch, epochs, loss and eta_s; with `told` where something was mended.
        stop: Asked after every epoch; True raises StopRequested with the epoch saved.

    Raises:
        BenchError: It diverged, or ran out of memory; nothing is committed then.
    """
    stage = read_stage(spec.stage)
    videos = spec.data.open(None if spec.method == PRETRAINING else spec.fingerprint)
    cls = StillsRecognizer if spec.method == PRETRAINING else recognizer_class(spec.method)
    recognizer = build(cls, spec.settings, name=spec.method, seed=spec.seed, stage=stage.name)
    for weights in spec.weights:
        state = _source_state(weights, work_dir)
        artifacts.load_into(
            recognizer, state, into=weights.into, take=weights.take, origin=weights.key or str(weights.path)
        )
    recognizer.set_stage(stage)
    folder = artifacts.folder(work_dir, spec.key)
    now = _rests_on(spec, work_dir, device)
    _mend(work_dir, folder / "run", report)
    begun, known = artifacts.begin(work_dir, spec.key, now), sources.changed(now, device)
    midway = [what for what in sources.changed(begun, device) if what not in known]
    clock = _Clock(folder / "run" / "seconds.txt")
    runner = _runner(spec, stage, recognizer, videos, folder, device, report, stop, clock)
    with _failures_named(spec):
        runner.train()
    if not is_main_process():
        return
    best = folder / "run" / "best.safetensors"
    state = artifacts.read_weights(best) if best.exists() else recognizer.state_dict()
    samples = stage.epochs * len(runner.train_dataloader.dataset)
    artifacts.commit(
        work_dir,
        spec.key,
        state,
        {
            "method": spec.method,
            "stage": stage.name,
            "settings": spec.settings,
            "recipe": spec.stage,
            "inputs": [w.key or w.path for w in spec.weights],
            "fingerprint": spec.fingerprint,
            "dataset": spec.data.name,
            "size": spec.data.size,
            "pipeline": spec.data.pipeline,
            "classes": list(videos.card.classes),
            "seed": spec.seed,
            "training": spec.training,
            "initialisation": spec.initialisation,
            "seconds": clock.seconds(),
            "samples": samples,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "parameters": sum(p.numel() for p in recognizer.parameters()),
            "departures": list(stage.departures),
            "changed_midway": midway,
            **now,
        },
    )
    artifacts.drop_epochs(work_dir, spec.key)


def _described(work_dir: Path, weights: Weights) -> dict[str, Any]:
    description = artifacts.read(work_dir, weights.key or "")
    if description is None:
        raise BenchError(f"artifact {weights.key} in {work_dir} is not finished; run the stage that makes it first")
    return description


def _rests_on(spec: TrainSpec, work_dir: Path, device: str) -> dict[str, Any]:
    """The code and the surroundings that shape this training."""
    kind: sources.Kind = "stills" if spec.method == PRETRAINING else "training"
    if spec.training["selection"] == "best-val":
        kind = "evaluation"  # which chooses the weights
    inputs = [_described(work_dir, weights)["sources"] for weights in spec.weights if weights.key]
    return {"sources": sources.loaded(kind, inputs), "made_with": sources.made_with(device)}


def _mend(work_dir: Path, run: Path, report: Report) -> None:
    """Set damaged epochs aside, so that training goes on from the newest whole one, or begins anew."""
    best = run / "best.safetensors"
    if best.exists() and not _is_whole(best):  # no other epoch can tell what it was
        where = set_aside(work_dir, run)
        report({"told": [f"{best.name} is damaged: {where} holds what was there, and training begins this stage anew"]})
    found = checkpoints(run)
    while found and not _is_whole(found[-1]):
        damaged = found.pop()
        where = set_aside(work_dir, damaged)
        goes_on = f"goes on from {found[-1].name}" if found else "begins this stage anew"
        report({"told": [f"{damaged.name} is damaged: it is set aside in {where}, and training {goes_on}"]})


def _is_whole(weights: Path) -> bool:
    try:
        artifacts.read_weights(weights)
    except CheckpointError:
        return False
    return True


def _source_state(weights: Weights, work_dir: Path) -> dict[str, torch.Tensor]:
    if weights.key is not None:
        return artifacts.load_state(work_dir, weights.key)
    state = artifacts.read_weights(weights.path or "")
    return imagenet_state(weights.backbone, state) if weights.backbone else state


def _runner(
    spec: TrainSpec,
    stage: Stage,
    recognizer: EfficientRecognizer,
    videos: Any,
    folder: Path,
    device: str,
    report: Report,
    stop: Callable[[], bool],
    clock: _Clock,
) -> Runner:
    protocol = Protocol(**spec.training)
    loader = _loader(spec, stage, recognizer, videos, device)
    hooks: list[Hook] = [
        EpochSeedHook(seed=spec.seed, stage=stage.name),
        _StageHook(stage, report, clock),
        _StopHook(stop),
    ]
    if protocol.selection == "best-val":
        hooks.append(_BestOnVal(spec, videos, folder / "run", device))
    optimizer = build_optimizer(recognizer, stage)
    clip = {"max_norm": stage.clip_grad} if stage.clip_grad else None
    return Runner(
        model=recognizer,
        work_dir=str(folder / "run"),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": stage.epochs},
        optim_wrapper=optim_wrapper(optimizer, protocol.dtype, device=device, clip_grad=clip),
        param_scheduler=schedulers(stage, len(loader)) or None,
        default_hooks={
            "checkpoint": {"type": AtomicCheckpointHook, "interval": 1, "max_keep_ckpts": 2},
            "logger": {"type": "LoggerHook", "interval": 20, "log_metric_by_epoch": True},
        },
        custom_hooks=hooks,
        resume=True,
        log_level="WARNING",
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]},
        randomness={"seed": spec.seed},
        experiment_name=f"{spec.key}-{time.monotonic_ns()}",  # its log's: mmengine shares logs of one name and second
        default_scope="mmengine",
        **runner_launch(device),
    )


def _loader(spec: TrainSpec, stage: Stage, recognizer: EfficientRecognizer, videos: Any, device: str) -> Any:
    if spec.method == PRETRAINING:
        dataset: Any = StillsDataset(spec.data.name, spec.data.size)
    else:
        split = spec.training["train_split"]
        requests = recognizer.clip_requests(stage=stage)
        dataset = ClipDataset(videos, split, requests, train=True, seed=spec.seed, repeats=stage.views_per_epoch)
    size = min(stage.batch_size, len(dataset))
    each = max(1, size // world_size())
    alone = -(-len(dataset) // world_size()) % each == 1  # no batch norm can train on one vector
    workers = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    return DataLoader(
        dataset,
        batch_size=each,
        sampler=DefaultSampler(dataset, shuffle=True, seed=epoch_seed(spec.seed, stage.name, 0) % 2**31),
        num_workers=workers,
        collate_fn=collate,
        drop_last=len(dataset) >= 2 * size or alone,
        pin_memory=device == "cuda",
    )


class _Clock:
    """Training seconds over interruptions, kept beside the checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = _number(path, 0.0)
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(f"{self.seconds():.3f}")
        temporary.replace(self.path)


class _StageHook(Hook):
    """Tells the recognizer and the data the epoch, reports progress, ends a training that diverged."""

    priority = "NORMAL"

    def __init__(self, stage: Stage, report: Report, clock: _Clock) -> None:
        self.stage, self.epochs, self.report, self.clock = stage, stage.epochs, report, clock
        self.finite = torch.tensor(True)
        self.last = 0.0
        self.started: tuple[int, float] | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(runner.epoch)
        unwrap(runner.model).set_progress(runner.epoch, self.epochs)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        now = time.monotonic()
        if self.started is None:
            self.started = (runner.iter, now)
        loss = torch.as_tensor(outputs["loss"]).detach()
        self.finite = self.finite.to(loss.device) & torch.isfinite(loss).all()  # looked at later: no waiting for a GPU
        if now - self.last < 1.0:
            return
        self._check(runner)
        self.last = now
        done = runner.iter - self.started[0]
        eta = (now - self.started[1]) / done * (runner.max_iters - runner.iter - 1) if done else None
        self.report({"epoch": runner.epoch + 1, "epochs": self.epochs, "loss": round(float(loss), 4), "eta_s": eta})

    def after_train_epoch(self, runner: Runner) -> None:
        self._check(runner)
        for name, value in unwrap(runner.model).state_dict().items():
            if value.is_floating_point() and not (value.abs() < LARGEST).all():
                raise self._diverged(runner, f"{name} is not finite, or larger than {LARGEST:.0e}")
        self.clock.save()

    def _check(self, runner: Runner) -> None:
        if not self.finite:
            raise self._diverged(runner, "a loss is not finite")

    def _diverged(self, runner: Runner, what: str) -> BenchError:
        return BenchError(
            f"training diverged in stage {self.stage.name!r}, epoch {runner.epoch + 1} of {self.epochs}: {what}; "
            f"lower the learning rate (--set stage.{self.stage.name}.lr=..., it is {self.stage.lr:g})"
        )


class _StopHook(Hook):
    """Leaves after the epoch's checkpoint is whole, when asked to."""

    priority = "LOWEST"

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def after_train_epoch(self, runner: Runner) -> None:
        if self.stop() and runner.epoch + 1 < runner.max_epochs:
            raise StopRequested


class _BestOnVal(Hook):
    """Keeps the weights of the epoch with the best main metric on `val` (protocol: best-val)."""

    priority = "LOW"

    def __init__(self, spec: TrainSpec, videos: Any, folder: Path, device: str) -> None:
        self.spec, self.videos, self.folder, self.device = spec, videos, folder, device

    def after_train_epoch(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        value = split_metric(model, self.videos, "val", device=self.device)
        model.train()
        mark = self.folder / "best.txt"
        if value > _number(mark, -math.inf):
            state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            write_atomically(self.folder / "best.safetensors", save(state))
            write_atomically(mark, f"{value}".encode())


def _number(path: Path, otherwise: float) -> float:
    """The number that a file holds; `otherwise` where it is not there, or damaged."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return otherwise


@contextlib.contextmanager
def _failures_named(spec: TrainSpec) -> Iterator[None]:
    """Out of memory is a result with a remedy, not a smaller batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BenchError(
            f"out of memory while training {spec.label()} with batch {spec.stage['batch_size']}: "
            f"{str(error).splitlines()[0]}; another batch size is another recipe: --set stage.batch_size=N"
        ) from None
