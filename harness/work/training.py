"""Training one stage through mmengine's Runner: resumable, deterministic, one artifact out.

Randomness is keyed by (seed, stage, epoch, sample) and checkpoints are taken at epoch ends, so a run
that was killed and resumed gives the weights of an undisturbed one (same thread count).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
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

from harness.compat.checkpoints import AtomicCheckpointHook
from harness.compat.memory import is_out_of_memory
from harness.compat.precision import optim_wrapper
from harness.compat.processes import runner_launch, unwrap, world_size
from harness.compat.seeds import EpochSeedHook, epoch_seed
from harness.contract.declarations import Stage
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import recognizer_class
from harness.data.clips import ClipDataset, collate
from harness.errors import BenchError, DataError, StopRequested
from harness.layers.backbones import imagenet_state
from harness.plan.building import build
from harness.plan.pretraining import PRETRAINING
from harness.plan.protocol import Protocol
from harness.plan.units import TrainSpec, Weights, read_stage
from harness.store import artifacts, sources
from harness.store.files import write_atomically, write_json
from harness.work.optimization import build_optimizer, schedulers
from harness.work.stills import StillsDataset, StillsRecognizer

Report = Callable[[Mapping[str, Any]], None]


def train(spec: TrainSpec, work_dir: Path, *, device: str, report: Report, stop: Callable[[], bool]) -> None:
    """Train the stage of `spec` and commit its artifact below `work_dir`.

    Args:
        spec: What to train.
        work_dir: Root of the results.
        device: `cpu` or `cuda`.
        report: Called about once a second with epoch, epochs, loss and eta_s.
        stop: Asked after every epoch; True raises StopRequested with the epoch saved.
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
    made_with = sources.loaded(_described(work_dir, weights)["sources"] for weights in spec.weights if weights.key)
    _forget_if_changed(folder / "run", made_with)
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
            "classes": list(videos.card.classes),
            "seed": spec.seed,
            "training": spec.training,
            "initialisation": spec.initialisation,
            "seconds": clock.seconds(),
            "samples": samples,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "parameters": sum(p.numel() for p in recognizer.parameters()),
            "departures": list(stage.departures),
            "sources": made_with | sources.loaded(),
        },
    )


def _described(work_dir: Path, weights: Weights) -> dict[str, Any]:
    description = artifacts.read(work_dir, weights.key or "")
    if description is None:
        raise BenchError(f"artifact {weights.key} in {work_dir} is not finished; run the stage that makes it first")
    return description


def _forget_if_changed(run: Path, made_with: Mapping[str, str]) -> None:
    """Start anew where the code has changed since an unfinished training began."""
    mark = run / "sources.json"
    if run.exists() and (not mark.exists() or sources.changed(json.loads(mark.read_text()))):
        shutil.rmtree(run)
    if not mark.exists():
        write_json(mark, made_with)


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
        _StageHook(stage.epochs, report, clock),
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
            "checkpoint": {"type": AtomicCheckpointHook, "interval": 1, "max_keep_ckpts": 1},
            "logger": {"type": "LoggerHook", "interval": 20, "log_metric_by_epoch": True},
        },
        custom_hooks=hooks,
        resume=True,
        log_level="WARNING",
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]},
        randomness={"seed": spec.seed},
        experiment_name=spec.key,
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
        self.before = float(path.read_text()) if path.exists() else 0.0
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(f"{self.seconds():.3f}")
        temporary.replace(self.path)


class _StageHook(Hook):
    """Tells the recognizer and the data the epoch, reports progress, refuses a loss that is not finite."""

    priority = "NORMAL"

    def __init__(self, epochs: int, report: Report, clock: _Clock) -> None:
        self.epochs, self.report, self.clock = epochs, report, clock
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
        if now - self.last < 1.0:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise BenchError(
                f"the loss is {loss} in epoch {runner.epoch + 1}, iteration {runner.iter}; lower the learning rate"
            )
        self.last = now
        done = runner.iter - self.started[0]
        eta = (now - self.started[1]) / done * (runner.max_iters - runner.iter - 1) if done else None
        self.report({"epoch": runner.epoch + 1, "epochs": self.epochs, "loss": round(loss, 4), "eta_s": eta})

    def after_train_epoch(self, runner: Runner) -> None:
        for name, parameter in unwrap(runner.model).named_parameters():
            if not torch.isfinite(parameter).all():
                raise BenchError(f"{name} is not finite after epoch {runner.epoch + 1}; lower the learning rate")
        self.clock.save()


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
        from harness.measure.evaluation import split_metric  # else every training would rest on its sources

        value = split_metric(model, self.videos, "val", device=self.device)
        model.train()
        mark = self.folder / "best.txt"
        if not mark.exists() or value > float(mark.read_text()):
            state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            write_atomically(self.folder / "best.safetensors", save(state))
            write_atomically(mark, f"{value}".encode())


@contextlib.contextmanager
def _failures_named(spec: TrainSpec) -> Iterator[None]:
    """Out of memory is a result with a remedy, not a smaller batch; a broken video is named in one line."""
    try:
        yield
    except DataError as error:  # torch puts a worker's traceback before the text
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BenchError(
            f"out of memory while training {spec.label()} with batch {spec.stage['batch_size']}: "
            f"{str(error).splitlines()[0]}; another batch size is another recipe: --set stage.batch_size=N"
        ) from None
