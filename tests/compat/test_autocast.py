"""Mixed precision: bfloat16 on the CPU, float16 with loss scaling on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from torch import nn

from harness.compat.precision import AutocastOptimWrapper, optim_wrapper
from harness.errors import UsageError
from tests.compat import toy


def wrapper(dtype: str, model: nn.Module, **options: Any) -> AutocastOptimWrapper:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return AutocastOptimWrapper(dtype, optimizer=optimizer, **options)


def test_mmengines_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    try:
        AmpOptimWrapper(dtype="bfloat16", optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    except AssertionError:
        return
    pytest.skip("mmengine's AmpOptimWrapper works on the CPU now: AutocastOptimWrapper may go")


def test_forward_is_bfloat16_and_weights_stay_float32() -> None:
    model = nn.Linear(4, 2)
    amp = wrapper("bfloat16", model)
    with amp.optim_context(model):
        output = model(torch.randn(3, 4))
    assert output.dtype == torch.bfloat16
    amp.update_params(output.float().square().sum())
    assert model.weight.dtype == torch.float32
    assert model(torch.randn(3, 4)).dtype == torch.float32, "autocast ends with the step"


def test_a_step_is_the_optimizers(tmp_path: Path) -> None:
    """With a loss outside autocast, the wrapper does what plain SGD does."""
    model, twin = nn.Linear(4, 1), nn.Linear(4, 1)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(5, 4)
    wrapper("bfloat16", model).update_params(model(x).square().sum())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, twin.weight)


def test_gradients_are_clipped() -> None:
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()
    amp = wrapper("bfloat16", model, clip_grad={"max_norm": 1e-3})
    amp.update_params(1e3 * model(torch.ones(1, 4)).sum())
    assert (model.weight - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_training_learns(tmp_path: Path) -> None:
    values, _ = toy.run(tmp_path, epochs=8, dtype="bfloat16").message_hub.get_scalar("train/loss").data
    assert values[-5:].mean() < 0.8 * values[:5].mean()


def test_state_round_trip() -> None:
    model = nn.Linear(2, 1)
    amp = wrapper("bfloat16", model)
    amp.load_state_dict(amp.state_dict())
    plain = optim_wrapper(torch.optim.SGD(model.parameters(), lr=0.05), "float32", device="cpu")
    amp.load_state_dict(plain.state_dict())
    assert amp.get_lr()["lr"] == [0.05]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        wrapper("float16", nn.Linear(1, 1))
    with pytest.raises(UsageError, match="float32 needs no autocast"):
        wrapper("float32", nn.Linear(1, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_learns_on_the_gpu(tmp_path: Path, dtype: str) -> None:
    runner = toy.run(tmp_path, epochs=8, dtype=dtype, device="cuda")
    values, _ = runner.message_hub.get_scalar("train/loss").data
    assert values[-5:].mean() < 0.8 * values[:5].mean()
    assert next(runner.model.parameters()).is_cuda
