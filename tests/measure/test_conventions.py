"""Each counter of the literature against the figures it printed (docs/measurement.md#counters-compared, #gflops)."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from harness.authors.published import published_part, published_parts
from harness.measure.conventions import (
    CONVENTIONS,
    conv_linear,
    conv_only,
    fvcore_by_operator,
    fvcore_total,
    plus_batch_norm_channels,
    thop,
)


@pytest.fixture(scope="module", name="resnet50")
def _resnet50():
    return torchvision.models.resnet50(num_classes=200)


@pytest.fixture(scope="module", name="mobilenet")
def _mobilenet():
    return torchvision.models.mobilenet_v2().features  # torchvision pools with an operator, the authors with a mean


def frame(side):
    return torch.zeros(1, 3, side, side)


def features(network):
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten())


def test_resnet50_by_every_convention(resnet50):
    head = 2048 * 200
    assert conv_only(resnet50, frame(224)) == 4_087_136_256
    assert conv_linear(resnet50, frame(224)) == 4_087_136_256 + head
    assert thop(resnet50, frame(224)) == 4_110_283_576
    assert fvcore_total(resnet50, frame(224)) == 4_109_464_576 + head
    assert plus_batch_norm_channels(resnet50, frame(224)) == 4_087_136_256 + head + 26_560


@pytest.mark.parametrize(
    ("side", "constant"), [(96, 0.750725056), (128, 1.334601664), (160, 2.08530016), (192, 3.002820544)]
)
def test_adafocus_constants_of_the_patch_network(resnet50, side, constant):
    assert plus_batch_norm_channels(features(resnet50), frame(side)) == pytest.approx(constant * 1e9, abs=1)


def test_mobilenet_by_every_convention(mobilenet):
    assert conv_only(mobilenet, frame(224)) == conv_linear(mobilenet, frame(224)) == 299_494_272
    whole = nn.Sequential(mobilenet, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 200))
    assert thop(whole, frame(84)) == 52_932_696
    assert plus_batch_norm_channels(mobilenet, frame(224)) == pytest.approx(0.299511328e9, abs=1)
    assert fvcore_total(mobilenet, frame(224)) == 312_850_496


def test_fvcore_confirms_the_static_parts(resnet50):
    by_op, unsupported = fvcore_by_operator(resnet50, frame(96))
    assert by_op["conv"] + by_op["linear"] == conv_linear(resnet50, frame(96))
    assert not any("conv" in name or "mm" in name or "linear" in name for name in unsupported)


def test_fvcore_loses_recurrent_layers():
    """Why it is only a cross-check here."""
    gru = nn.GRU(8, 6, batch_first=True)
    x = torch.zeros(2, 5, 8)
    assert conv_linear(gru, x) == 10 * 3 * 6 * 14
    by_op, unsupported = fvcore_by_operator(gru, x)
    assert not sum(by_op.values())
    assert "aten::gru" in unsupported


def test_batch_norm_channels_count_once_per_row():
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    assert plus_batch_norm_channels(norm, torch.zeros(16, 4)) == 16 * (24 + 6)


@pytest.mark.parametrize("name", list(CONVENTIONS))
def test_functions_leave_the_module_as_it_was(name):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    network[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = CONVENTIONS[name](network, frame(8))
    assert first == CONVENTIONS[name](network, frame(8)) > 0
    assert [m.training for m in network] == [True, False, True, True, True]
    assert not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_published_parts_are_this_projects_unit(resnet50, mobilenet):
    variant = "adafocus-v2 mobilenet_v2"
    assert conv_linear(mobilenet, frame(224)) == published_part(variant, "global_CNN_per_frame_224")
    for side in (96, 128, 160, 192):
        assert conv_linear(features(resnet50), frame(side)) == published_part(variant, f"local_CNN_per_frame_{side}")
    gru = nn.GRU(2048, 2048)
    assert conv_linear(gru, torch.zeros(1, 1, 2048)) == published_part(variant, "policy_gru_per_frame")
    parts = {p.component: p for p in published_parts() if p.variant == variant}
    assert fvcore_total(mobilenet, frame(224)) == parts["global_CNN_per_frame_224"].fvcore
