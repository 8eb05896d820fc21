"""The heavy networks of a model: found wherever they are called from, wrapped, converted once, restored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.engine.precision import heavy_parts, in_precision, wrapped
from harness.layers.backbone import Backbone


class Net(Backbone):
    dim, stride = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.seen: list[torch.dtype] = []

    def trunk(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        return self.layers(x)


class Model(nn.Module):
    """Calls its backbone by `features`, deep inside a list, as half of the zoo does."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList([nn.ModuleDict({"backbone": Net()})])
        self.policy = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.paths[0]["backbone"].features(x)
        return self.policy(maps.mean((2, 3)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def test_backbones_are_found_below_lists_and_by_every_call(model: Model) -> None:
    net = model.paths[0]["backbone"]
    assert heavy_parts(model) == [(net, "trunk")]
    calls = []
    with wrapped(model, lambda call: lambda x: calls.append(x.shape) or call(x)):
        model(torch.rand(2, 3, 5, 5))
    assert calls == [(2, 3, 5, 5)]
    assert "trunk" not in vars(net)


def test_wraps_lie_around_each_other(model: Model) -> None:
    order: list[str] = []
    with (
        wrapped(model, lambda call: lambda x: order.append("inner") or call(x)),
        wrapped(model, lambda call: lambda x: order.append("outer") or call(x)),
    ):
        model(torch.rand(1, 3, 2, 2))
    assert order == ["outer", "inner"]


def test_a_model_without_backbones_has_its_parts_with_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert heavy_parts(model) == [(model[0], "forward"), (model[2], "forward")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_converted_once_and_decisions_stay_in_float32(model: Model, dtype: str) -> None:
    net, x = model.paths[0]["backbone"], torch.rand(2, 3, 5, 5)
    expected, before = model(x), net.layers[0].weight.clone()
    net.seen.clear()
    with in_precision(model, dtype), torch.inference_mode():
        assert net.layers[0].weight.dtype == getattr(torch, dtype)
        assert net.layers[1].weight.dtype == torch.float32 == model.policy.weight.dtype
        weights = net.layers[0].weight
        found = model(x)
        assert net.layers[0].weight is weights, "nothing is cast anew in a forward"
    assert net.seen == [getattr(torch, dtype)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert not torch.equal(found, expected)
    assert torch.equal(net.layers[0].weight, before) and torch.equal(model(x), expected)


def test_float32_changes_nothing(model: Model) -> None:
    with in_precision(model, "float32"):
        assert "trunk" not in vars(model.paths[0]["backbone"])
