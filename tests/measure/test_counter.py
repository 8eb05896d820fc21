"""Multiply-accumulates against closed forms, in every grad mode, and against torch's own counter."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.measure.counter import MacMeter, counted, counting

MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


@pytest.fixture(params=list(MODES), name="mode")
def _mode(request):
    return MODES[request.param]


def count(function, *args, mode=torch.inference_mode, **kwargs):
    with warnings.catch_warnings(), mode(), MacMeter() as meter:
        warnings.simplefilter("error", UserWarning)
        function(*args, **kwargs)
    assert not meter.unsupported
    assert sum(meter.by_op.values()) == pytest.approx(meter.total)
    return meter.total


LAYERS = {
    "conv": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 10, 10), 2 * 100 * 8 * 6 * 9),
    "strided conv": (nn.Conv2d(3, 16, 7, stride=2, padding=3), (1, 3, 32, 32), 16 * 16 * 16 * 3 * 49),
    "grouped conv": (nn.Conv2d(6, 12, 3, groups=3, bias=False), (2, 6, 10, 10), 2 * 64 * 12 * 2 * 9),
    "depthwise conv": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (4, 8, 5, 5), 4 * 25 * 8 * 9),
    "dilated conv": (nn.Conv2d(2, 2, 3, dilation=2), (1, 2, 9, 9), 25 * 2 * 2 * 9),
    "conv1d": (nn.Conv1d(4, 6, 5), (3, 4, 20), 3 * 16 * 6 * 4 * 5),
    "conv3d": (nn.Conv3d(2, 4, (3, 1, 1), padding=(1, 0, 0)), (1, 2, 8, 5, 5), 200 * 4 * 2 * 3),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 2 * 25 * 4 * 6 * 9),
    "linear": (nn.Linear(8, 6), (2, 5, 8), 2 * 5 * 8 * 6),
    "linear on a vector": (nn.Linear(8, 6), (8,), 8 * 6),
    "rnn": (nn.RNN(8, 6, batch_first=True), (2, 5, 8), 10 * 6 * (8 + 6)),
    "gru": (nn.GRU(8, 6, batch_first=True), (2, 5, 8), 10 * 3 * 6 * (8 + 6)),
    "lstm": (nn.LSTM(8, 6, batch_first=True), (2, 5, 8), 10 * 4 * 6 * (8 + 6)),
    "two-layer lstm, both ways": (
        nn.LSTM(8, 6, num_layers=2, bidirectional=True),
        (5, 2, 8),
        10 * 2 * 4 * 6 * ((8 + 6) + (12 + 6)),
    ),
    "gru cell": (nn.GRUCell(8, 6), (3, 8), 3 * 3 * 6 * 14),
    "lstm cell": (nn.LSTMCell(8, 6), (3, 8), 3 * 4 * 6 * 14),
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, dim_feedforward=32, batch_first=True),
        (2, 5, 8),
        2 * (5 * (4 * 64 + 2 * 8 * 32) + 2 * 5 * 5 * 8),
    ),
    "free": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
        (1, 3, 8, 8),
        0,
    ),
}


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("training", [False, True])
def test_layer(name, training, mode):
    layer, shape, macs = LAYERS[name]
    assert count(layer.train(training), torch.randn(shape), mode=mode) == macs


def test_attention(mode):
    batch, queries, keys, width = 2, 5, 7, 8
    attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()
    x, y = torch.randn(batch, queries, width), torch.randn(batch, keys, width)
    own = batch * (4 * queries * width**2 + 2 * queries * queries * width)
    cross = batch * ((2 * queries + 2 * keys) * width**2 + 2 * queries * keys * width)
    assert count(attention, x, x, x, mode=mode) == own
    assert count(attention, x, y, y, mode=mode) == cross
    heads = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    macs = 2 * 3 * 5 * 7 * (4 + 6)
    assert count(nn.functional.scaled_dot_product_attention, *heads, mode=mode) == macs


def test_products(mode):
    a, b, v = torch.randn(4, 5), torch.randn(5, 6), torch.randn(5)
    batch, other = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    assert count(torch.matmul, a, b, mode=mode) == 120
    assert count(torch.matmul, a, v, mode=mode) == 20
    assert count(torch.matmul, v, v, mode=mode) == 5
    assert count(torch.addmv, torch.randn(4), a, v, mode=mode) == 20
    assert count(torch.bmm, batch, other, mode=mode) == 360
    assert count(torch.addbmm, torch.randn(4, 6), batch, other, mode=mode) == 360
    assert count(torch.einsum, "bij,bjk->bik", batch, other, mode=mode) == 360
    assert count(torch.matmul, batch, b, mode=mode) == 360


@pytest.mark.parametrize(
    ("build", "side", "macs"),
    [
        (torchvision.models.resnet50, 224, 4_087_136_256),
        (torchvision.models.resnet50, 128, 1_334_575_104),
        (torchvision.models.resnet50, 96, 750_698_496),
        (torchvision.models.mobilenet_v2, 224, 299_494_272),
    ],
)
def test_published_backbones(build, side, macs):
    """Feature extractors of the papers to the last digit (docs/measurement.md#gflops)."""
    with torch.device("meta"):
        network = build().eval()
        network.fc = network.classifier = nn.Identity()
        assert count(network, torch.empty(1, 3, side, side), mode=torch.no_grad) == macs


def test_published_policy_gru():
    """V2's GRU(2048, 2048): 25,165,824 MACs per frame."""
    with torch.device("meta"):
        assert count(nn.GRU(2048, 2048), torch.empty(16, 1, 2048), mode=torch.no_grad) == 16 * 25_165_824


def test_training_step_is_three_forwards():
    """Backward costs the forward once for the inputs' gradients and once for the weights'."""
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    forward = count(conv, x)
    assert count(lambda: conv(x).sum().backward(), mode=torch.enable_grad) == 3 * forward
    assert count(lambda: conv(x.detach()).sum().backward(), mode=torch.enable_grad) == 2 * forward
    lstm, clip = nn.LSTM(4, 6), torch.randn(5, 2, 4)
    assert count(lambda: lstm(clip)[0].sum().backward(), mode=torch.enable_grad) == 3 * count(lstm, clip)


def test_agrees_with_torchs_counter():
    """The oracle, on a whole network without grouped convolution backward or recurrent layers."""
    network, x = torchvision.models.resnet18(), torch.randn(2, 3, 64, 64)
    with FlopCounterMode(display=False) as oracle:
        network(x).sum().backward()
    assert count(lambda: network(x).sum().backward(), mode=torch.enable_grad) == oracle.get_total_flops() / 2


def test_counting_changes_no_result(mode):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    with mode():
        plain = network(x)
        with MacMeter():
            metered = network(x)
    assert torch.equal(plain, metered)


def test_total_grows_while_running_and_over_several_blocks():
    a = torch.randn(4, 4)
    meter = MacMeter()
    with meter:
        a @ a
        assert meter.total == 64
        a @ a
    with meter:
        a @ a
    assert meter.total == 3 * 64
    a @ a
    assert meter.total == 3 * 64


def test_nested_meters_count_both():
    a = torch.randn(4, 4)
    with torch.inference_mode(), MacMeter() as outer, MacMeter() as inner:
        nn.functional.linear(a, a)
    assert (outer.total, inner.total) == (64, 64)


def test_unknown_matmul_is_reported():
    bilinear = nn.Bilinear(4, 4, 2)
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="_trilinear"), torch.inference_mode(), MacMeter() as meter:
        bilinear(x, x)
    assert meter.unsupported["_trilinear"] == 1


def test_custom_operator_that_convolves_is_reported():
    deform = torchvision.ops.deform_conv2d
    with pytest.warns(UserWarning, match="deform_conv2d"), MacMeter() as meter:
        deform(torch.randn(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), torch.randn(1, 1, 1, 1))
    assert meter.unsupported


def test_cudnn_formula():
    """The operator that nn.LSTM and nn.GRU become on a GPU, by shapes alone (closed form)."""
    from harness.measure.counter import FORMULAS, aten

    lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3)
    x = torch.randn(5, 2, 8)
    macs = FORMULAS[aten._cudnn_rnn]((x, list(lstm.parameters())), {}, None)
    assert macs == 10 * 2 * (4 * 6 * (8 + 3) + 3 * 6 + 4 * 6 * (6 + 3) + 3 * 6)


def test_process_knows_that_it_counts():
    with MacMeter():
        assert counting()
    assert not counting()
    assert counted()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in LAYERS if n != "free"])
@pytest.mark.parametrize("training", [False, True])
def test_layer_on_gpu(name, training, mode):
    layer, shape, macs = LAYERS[name]
    layer = layer.cuda().train(training)
    try:
        assert count(layer, torch.randn(shape, device="cuda"), mode=mode) == macs
    finally:
        layer.cpu()
