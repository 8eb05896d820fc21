"""Is a training step here faster than the same step as the authors' script runs it?

    python -m tests.benchmarks.training_step [--batch 2] [--rounds 9] [--threads 2]

AdaFocus V2 at real size: both passes of the focus network, all losses, backward, SGD; float32, drawn weights. Theirs
is a plain process, contiguous and eager; ours is one as `bench.py run` starts it: channels-last, memory that is kept
between operators (harness.work.scheduler.MALLOC). Losses of the first step must agree to a hundredth (drawn weights
magnify rounding; tests/authors replays a step in 64 bits). Both sides take turns step by step, so that what the
machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from harness.engine.memory_format import set_memory_format
from harness.measure.gate import decide
from harness.measure.machine import machine, machine_lock
from harness.work.scheduler import MALLOC
from tests.benchmarks.authors_way import built, inputs

METHOD = "adafocus-v2"
WARMUP = 2
SIDES = ("theirs", "ours")


class Side:
    """A process that takes a step when told to."""

    def __init__(self, side: str, arguments: argparse.Namespace) -> None:
        plain = {name: value for name, value in os.environ.items() if name not in MALLOC}
        threads = {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
        command = [sys.executable, "-m", "tests.benchmarks.training_step", "--side", side, "--size", arguments.size]
        command += ["--batch", str(arguments.batch)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=plain | threads | (MALLOC if side == "ours" else {}),
        )

    def step(self) -> tuple[float, float]:
        """Seconds and loss."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print("step", file=self.process.stdin, flush=True)
        seconds, loss = self.process.stdout.readline().split()
        return float(seconds), float(loss)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def stepping(side: str, batch: int, size: str) -> Callable[[], float]:
    """A step of training on fixed videos; returns the loss."""
    torch.manual_seed(0)
    model = built(METHOD, "cpu", size).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if side == "theirs":
        set_memory_format(model, "contiguous")
    clips, target = inputs(model, batch, "cpu"), torch.arange(batch)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        frames = model.normalise(clips["frames"][:, model.order])
        random = torch.rand(*frames.shape[:2], 2, generator=generator)
        loss = sum(model.losses(frames, target, random).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def serve(side: str, batch: int, size: str) -> None:
    """Take a step for each line of standard input."""
    step = stepping(side, batch, size)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        print(time.perf_counter() - began, loss, flush=True)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="paper", choices=("paper", "tiny"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.side, arguments.batch, arguments.size)
        return
    with machine_lock("tests/benchmarks/training_step"):
        sides = {side: Side(side, arguments) for side in SIDES}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        try:
            for number in range(WARMUP + arguments.rounds):
                found = {side: sides[side].step() for side in (SIDES if number % 2 else SIDES[::-1])}
                if number == 0:
                    torch.testing.assert_close(found["ours"][1], found["theirs"][1], rtol=1e-2, atol=0)
                if number >= WARMUP:
                    for side in SIDES:
                        seconds[side].append(found[side][0])
        finally:
            for side in sides.values():
                side.end()
    speedup = decide(seconds["ours"], seconds["theirs"])
    print(f"{machine().cpu}, {arguments.threads} threads, batch {arguments.batch}, {METHOD}, {arguments.size}")
    for side in SIDES:
        print(f"{side:7}", " ".join(f"{s:.2f}" for s in seconds[side]))
    print(f"training step: {speedup.ratio:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]")


if __name__ == "__main__":
    main()
