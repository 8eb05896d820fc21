"""Multiply-accumulates against closed forms, in every grad mode, and against torch's own counter."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import BenchError
from harness.measure import counter
from harness.measure.counter import FORMULAS, MacMeter, aten, counted, counting, declare

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
    with pytest.warns(UserWarning, match="_linalg_svd"), torch.inference_mode(), MacMeter() as meter:
        torch.linalg.svd(torch.randn(3, 4))
    assert meter.unsupported["aten::_linalg_svd"] == 1


def test_cudnn_formula():
    """The operator that nn.LSTM and nn.GRU become on a GPU, by shapes alone (closed form)."""
    lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3)
    x = torch.randn(5, 2, 8)
    macs = FORMULAS[aten._cudnn_rnn]((x, list(lstm.parameters())), {}, None)
    assert macs == 10 * 2 * (4 * 6 * (8 + 3) + 3 * 6 + 4 * 6 * (6 + 3) + 3 * 6)


DENSE = [
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
    "_triton_scaled_dot_attention",
    "_cudnn_attention_forward",
]


@pytest.mark.parametrize("kernel", DENSE)
@pytest.mark.parametrize("key_heads", [6, 2])
def test_attention_kernel_formula(kernel, key_heads):
    """Every kernel that torch may choose, by shapes alone; also with fewer heads of keys than of queries."""
    query, key = torch.empty(2, 6, 5, 4, device="meta"), torch.empty(2, key_heads, 7, 4, device="meta")
    value = torch.empty(2, key_heads, 7, 3, device="meta")
    assert FORMULAS[getattr(aten, kernel)]((query, key, value, None, None), {}, None) == 2 * 6 * 5 * 7 * (4 + 3)


@pytest.mark.parametrize(
    ("kernel", "before", "between"),
    [
        ("_flash_attention_forward", 0, 0),
        ("_flash_attention_forward_no_dropout_inplace", 1, 0),
        ("_cudnn_attention_forward", 0, 1),
        ("_cudnn_attention_forward_no_dropout_inplace", 1, 0),
    ],
)
def test_attention_over_sequences_of_several_lengths(kernel, before, between):
    """Lengths 2 and 3 attend to 4 and 1: products within each sequence only."""
    query, key, value = torch.empty(5, 6, 4), torch.empty(5, 6, 4), torch.empty(5, 6, 3)
    lengths = torch.tensor([0, 2, 5]), torch.tensor([0, 4, 5]), 3, 4
    args = (*before * [query], query, key, value, *between * [None], *lengths)
    assert FORMULAS[getattr(aten, kernel)](args, {}, None) == 6 * (2 * 4 + 3 * 1) * (4 + 3)


def test_flash_attention_has_heads_behind_the_sequence():
    query, key = torch.empty(2, 5, 6, 4), torch.empty(2, 7, 6, 4)
    assert FORMULAS[aten._flash_attention_forward]((query, key, key, None, None, 5, 7), {}, None) == 2 * 6 * 5 * 7 * 8


def test_every_attention_kernel_of_torch_is_known():
    """Forward kernels of the installed torch: counted, taken apart, or refused; none is free."""
    for name in torch._C._dispatch_get_all_op_names():
        library, _, rest = name.partition("::")
        if library == "aten" and "attention" in rest:
            packet, _, overload = rest.partition(".")
            plan = counter._plan(getattr(getattr(aten, packet), overload or "default"))
            assert plan.formula is not None or plan.composite or plan.suspicious, name


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"enable_gqa": True}], ids=str)
def test_attention_backends(backend, options, mode):
    """What masks leave out counts as well: kernels differ in what they skip."""
    heads = 2 if options.get("enable_gqa") else 6
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, heads, 5, 8), torch.randn(2, heads, 5, 8)
    with sdpa_kernel(backend):
        macs = count(nn.functional.scaled_dot_product_attention, query, key, value, mode=mode, **options)
    assert macs == 2 * 6 * 5 * 5 * (8 + 8)


@pytest.mark.parametrize(
    "function", [torch.linalg.inv, torch.linalg.svd, torch.linalg.qr, torch.linalg.cholesky, torch.fft.fft2], ids=str
)
def test_products_in_disguise_are_reported(function):
    """Factorisations and Fourier transforms multiply, too, and have no formula."""
    with pytest.warns(UserWarning, match="no formula"), torch.inference_mode(), MacMeter() as meter:
        function(torch.eye(3))
    assert meter.unsupported


def test_norms_are_free(mode):
    assert count(torch.linalg.vector_norm, torch.ones(3), mode=mode) == 0


def test_operator_smuggled_into_torchs_library_is_reported():
    library = torch.library.Library("aten", "FRAGMENT")
    library.define("smuggled(Tensor x) -> Tensor")
    library.impl("smuggled", lambda x: x @ x, "CPU")
    with pytest.warns(UserWarning, match="aten::smuggled"), torch.inference_mode(), MacMeter() as meter:
        torch.ops.aten.smuggled(torch.eye(3))
    assert meter.unsupported["aten::smuggled"] == 1


@pytest.mark.parametrize("macs", [-1.0, float("nan")])
def test_impossible_formula_is_refused(macs):
    name = f"counter_tests::impossible_{abs(macs):.0f}"
    operator = torch.library.custom_op(name, mutates_args=())(_doubled)
    declare(name, lambda args, kwargs, out: macs)
    with pytest.raises(BenchError, match="multiply-accumulates"), torch.inference_mode(), MacMeter():
        operator(torch.eye(3))


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_operator_of_another_library_is_reported():
    @torch.library.custom_op("counter_tests::harmless", mutates_args=())
    def harmless(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    with pytest.warns(UserWarning, match="counter_tests::harmless"), MacMeter() as meter:
        harmless(torch.eye(3))
    assert meter.unsupported["counter_tests::harmless"] == 1


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
