"""A tiny training run through mmengine's Runner, also started as a process of its own.

    python tests/compat/toy.py WORK_DIR [--epochs N] [--die-at POINT] [--device cpu]

It uses what training with the harness uses: AdamW, a one-cycle schedule per iteration, dropout, batch
norm, gradient clipping and a shuffling sampler. On success the folder holds `rank<N>.pt` with the
parameters and buffers of each process.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import harness.compat.checkpoints  # noqa: F401  (registers the hook that a config names)
from harness.compat.precision import optim_wrapper
from harness.compat.processes import runner_launch, unwrap
from harness.compat.seeds import EpochSeedHook


class ToyData(Dataset):
    """Forty random points of 8 numbers with 4 classes; a point's noise changes with the epoch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.points = torch.randn(40, 8, generator=generator)
        self.targets = self.points[:, :4].argmax(1)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.points[index] + 0.1 * torch.randn(8), "targets": self.targets[index]}


class ToyModel(BaseModel):
    """Linear, batch norm, dropout, linear; with its own weights for its own seed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, inputs: Tensor, targets: Tensor, mode: str = "loss") -> Any:
        """Cross-entropy of a batch (B, 8) against (B,)."""
        return {"loss": nn.functional.cross_entropy(self.net(inputs).float(), targets)}


class DieHook(Hook):
    """Kills its own process as `kill -9` would, at `N` (iterations done) or while checkpoint `cN` is written."""

    priority = "HIGHEST"

    def __init__(self, point: str) -> None:
        self.point = point

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Die at an iteration."""
        if str(runner.iter + 1) == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Die with half a checkpoint on the disk."""
        if self.point == f"c{runner.epoch + 1}":
            part = f".epoch_{runner.epoch + 1}.pth.part"
            (Path(runner.work_dir) / part).write_bytes(b"half a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    work_dir: Path,
    *,
    epochs: int = 4,
    hooks: list[Any] | None = None,
    dtype: str = "float32",
    checkpoint: dict[str, Any] | None = None,
    seed_hook: bool = True,
    resume: bool = True,
    device: str = "cpu",
    schedule: dict[str, Any] | None = None,
) -> Runner:
    """Train the toy, resuming what `work_dir` holds; returns the Runner."""
    torch.set_num_threads(1)
    launch = runner_launch(device)
    model, data = ToyModel(), ToyData()
    loader = DataLoader(data, batch_size=8, sampler=DefaultSampler(data, shuffle=True, seed=0))
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=0.05)
    total = epochs * len(loader)
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper=optim_wrapper(optimizer, dtype, device=device, clip_grad={"max_norm": 1.0}),
        param_scheduler=[schedule or {"type": "OneCycleLR", "eta_max": 0.05, "total_steps": total, "by_epoch": False}],
        default_hooks={
            "checkpoint": checkpoint or {"type": "AtomicCheckpointHook", "max_keep_ckpts": 1},
            "logger": {"type": "LoggerHook", "interval": 2},
        },
        custom_hooks=[*([EpochSeedHook(0, "toy")] if seed_hook else []), *(hooks or [])],
        resume=resume,
        log_level="ERROR",
        randomness={"seed": 0},
        experiment_name=f"{work_dir.name}-{os.urandom(4).hex()}",
        **launch,
    )
    runner.train()
    return runner


def weights(runner: Runner) -> dict[str, Tensor]:
    """Parameters and buffers of the trained model."""
    return {name: value.detach().cpu().clone() for name, value in unwrap(runner.model).state_dict().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--die-at", default="")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    done = run(arguments.work_dir, epochs=arguments.epochs, hooks=[DieHook(arguments.die_at)], device=arguments.device)
    torch.save(weights(done), arguments.work_dir / f"rank{os.environ.get('RANK', 0)}.pt")
