"""Two CPU processes under torchrun with gloo, and what upstream does without `runner_launch`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.model import MMDistributedDataParallel

from harness.compat.precision import optim_wrapper
from harness.compat.processes import runner_launch, unwrap, world_size
from harness.errors import UsageError
from tests.compat import toy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment torchrun would set for a single process; loopback, any free port."""
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same parameters, same buffers on both ranks; the averaged statistics are what the checkpoint holds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", toy.__file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        [*command, "--epochs", "2"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output.decode()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    saved = torch.load(tmp_path / "epoch_2.pth", weights_only=True)["state_dict"]
    assert [name for name in first if not torch.equal(first[name], saved[name])] == []
    start = toy.ToyModel().state_dict()
    assert not torch.equal(first["net.0.weight"], start["net.0.weight"])
    assert int(first["net.1.num_batches_tracked"]) == 6  # 40 points, 2 ranks, batch 8, 2 epochs


def test_mmengines_launcher_needs_a_gpu(one_process: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    try:
        init_dist("pytorch", backend="gloo")
    except (AssertionError, RuntimeError):
        return
    pytest.skip("mmengine starts gloo without a GPU now: runner_launch may be simplified")


def test_launch_under_torchrun(one_process: None) -> None:
    arguments = runner_launch("cpu")
    assert arguments["launcher"] == "pytorch"
    assert torch.distributed.get_backend() == "gloo"
    assert arguments["cfg"]["model_wrapper_cfg"]["device_ids"] is None
    assert world_size() == 1


def test_launch_alone() -> None:
    assert runner_launch("cpu") == {"launcher": "none"}
    assert world_size() == 1
    assert get_device() == "cpu", "on a machine with a GPU too"


def test_no_gpu_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="no GPU"):
        runner_launch("cuda")


def test_ddp_bypasses_train_step(one_process: None) -> None:
    """Why no method may override `train_step`: under DDP it is never called."""

    class Own(toy.ToyModel):
        called = False

        def train_step(self, data: Any, optim_wrapper: Any) -> Any:
            self.called = True
            return super().train_step(data, optim_wrapper)

    runner_launch("cpu")
    model = Own()
    wrapped = MMDistributedDataParallel(model, device_ids=None)
    optimizer = optim_wrapper(torch.optim.SGD(model.parameters(), lr=0.1), "float32", device="cpu")
    data = {"inputs": torch.randn(4, 8), "targets": torch.zeros(4, dtype=torch.long)}
    wrapped.train_step(data, optimizer)
    if model.called:
        pytest.skip("MMDistributedDataParallel calls the model's own train_step now")
    assert unwrap(wrapped) is model
