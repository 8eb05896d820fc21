"""Counting multiply-accumulates while they run.

    with MacMeter() as meter:
        recognizer.infer(clips, trace=Trace(batch, meter=meter))
    meter.total         # MACs of convolution, linear and matmul, recurrent cells and attention included

The formulas are those of `torch.utils.flop_counter` (halved: it counts a multiply-accumulate as two), with
own ones for what it lacks: fused recurrent layers, the fused attention of `nn.MultiheadAttention` in eval
mode, matrix-vector products. What looks like a matmul and has no formula is listed in `unsupported` and
warned about; it is never counted as free in silence. Bias, normalisation, activations, pooling, sampling
and elementwise work count nothing: the convention of the papers (docs/measurement.md#gflops).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], float]
"""Arguments, keyword arguments and result of an operator -> MACs."""

MATMUL_LIKE = re.compile(
    r"(?:^|_)(?:[a-z]*mm|matmul|v?dot|(?:add)?mv|conv(?!ert)\w*|rnn|lstm|gru|linear|attention|transformer|cdist"
    r"|trilinear)(?:_|$)"
)
"""Operator names that promise multiply-accumulates."""
FREE = re.compile(r"_thnn_fused_|_flatten_weight|_reorder_conv")
"""Names that match but move weights or work elementwise (the gates' matmuls are operators of their own)."""

_running = 0
_ever = False


def counting() -> bool:
    """Whether a meter runs in this process now."""
    return _running > 0


def counted() -> bool:
    """Whether a meter ever ran in this process; timing must not share a process with counting."""
    return _ever


class MacMeter:
    """Counts the multiply-accumulates of every operator that runs inside `with`, forward and backward.

    May be entered again; the counts then go on. Each operator is counted as it is executed, in grad,
    no-grad and inference mode alike, on any device; results are those of the run without a meter.

    Attributes:
        total: MACs so far; grows while operators run.
        by_op: MACs per operator name.
        unsupported: Operators seen that are matmul-like and have no formula, with their number of calls;
            where it is not empty, `total` is too small.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.by_op: defaultdict[str, float] = defaultdict(float)
        self.unsupported: Counter[str] = Counter()
        self._modes: list[_CountingMode] = []

    def __enter__(self) -> Self:
        global _running, _ever
        mode = _CountingMode(self)
        mode.__enter__()
        self._modes.append(mode)
        _running, _ever = _running + 1, True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _running
        _running -= 1
        self._modes.pop().__exit__(kind, error, trace)
        if self.unsupported and kind is None:
            names = ", ".join(sorted(self.unsupported))
            warnings.warn(f"no formula for {names}: the count is too small; add one to {__name__}", stacklevel=2)

    def add(self, name: str, macs: float) -> None:
        """Count `macs` for the operator `name`."""
        self.total += macs
        self.by_op[name] += macs


class _CountingMode(TorchDispatchMode):
    """Sees every operator below autograd; composite ones (all of them in inference mode) are taken apart."""

    supports_higher_order_operators = True

    def __init__(self, meter: MacMeter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.meter.unsupported[str(func)] += 1
            return func(*args, **kwargs)
        formula, composite, suspicious = _plan(func)
        if formula is None and composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula is not None:
            self.meter.add(func._overloadpacket.__name__, formula(args, kwargs, out))
        elif suspicious:
            self.meter.unsupported[func._overloadpacket.__name__] += 1
        return out


_plans: dict[Any, tuple[Formula | None, bool, bool]] = {}


def _plan(func: Any) -> tuple[Formula | None, bool, bool]:
    """(formula, is composite, looks like a matmul) of an operator, looked up once."""
    if func not in _plans:
        packet = func._overloadpacket
        formula = FORMULAS.get(packet)
        if formula is None and packet in flop_registry:
            formula = _halved(flop_registry[packet])
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        composite = key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        name = packet.__name__
        _plans[func] = formula, composite, bool(MATMUL_LIKE.search(name)) and not FREE.search(name)
    return _plans[func]


def _halved(flops: Callable[..., float]) -> Formula:
    return lambda args, kwargs, out: flops(*args, **kwargs, out_val=out) / 2


def _mm(first: int) -> Formula:
    """Matrix product (.., m, k) x (.., k, n) or (.., k) of the arguments `first` and the one after."""

    def macs(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
        left, right = args[first].shape, args[first + 1].shape
        return prod(left) * (right[-1] if len(right) > 1 else 1)

    return macs


def _recurrent_layer(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """oneDNN's RNN, LSTM or GRU layer: input (T, B, in), weights (gates x h, in) and (gates x h, h)."""
    return prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel())


def _cudnn_recurrent(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """cuDNN's: every step of every layer and direction multiplies by each of its weight matrices once."""
    return prod(args[0].shape[:-1]) * sum(w.numel() for w in args[1] if w.ndim == 2)


def _twice(forward: Formula) -> Formula:
    """Backward of a product: one product for the input's gradient, one for the weights'."""
    return lambda args, kwargs, out: 2 * forward(args, kwargs, out)


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    """`aten.convolution`: input, weight, bias, stride, padding, dilation, transposed, ..."""
    return _convolved(args[0], args[1], args[0] if args[6] else out)


def _plain_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    """Kernels whose input and weight come first and which do not transpose."""
    return _convolved(args[0], args[1], out)


def _convolution_backward(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """As much as the forward for each gradient asked for (torch's formula ignores groups)."""
    grad, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
    return _convolved(x, weight, x if transposed else grad) * (bool(mask[0]) + bool(mask[1]))


def _convolved(x: Tensor, weight: Tensor, sites: Tensor) -> float:
    """The whole weight is used once at every site (output pixel, or input pixel where transposed) of a row."""
    return x.shape[0] * prod(sites.shape[2:]) * weight.numel()


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Fused multi-head self-attention (query, key, value (B, L, E), E, heads, W_qkv, b, W_out, ...)."""
    query, key, width = args[0], args[1], args[3]
    return _attention_macs(query.shape, key.shape[1], width, args[4])


def _encoder_layer(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Fused transformer encoder layer: self-attention and the two layers of the MLP."""
    source, width, heads, mlp_in, mlp_out = args[0], args[1], args[2], args[14], args[16]
    tokens = source.shape[0] * source.shape[1]
    attention = _attention_macs(source.shape, source.shape[1], width, heads)
    return attention + tokens * (mlp_in.numel() + mlp_out.numel())


def _attention_macs(query: Sequence[int], keys: int, width: int, heads: int) -> float:
    batch, length, _ = query
    head = (batch, heads, length, width // heads), (batch, heads, keys, width // heads)
    projections = batch * (2 * length + 2 * keys) * width * width
    return projections + sdpa_flop_count(head[0], head[1], head[1]) / 2


FORMULAS: dict[Any, Formula] = {
    aten.convolution: _convolution,
    aten.mm: _mm(0),
    aten.bmm: _mm(0),
    aten.addmm: _mm(1),
    aten.baddbmm: _mm(1),
    aten.mv: _mm(0),
    aten.dot: _mm(0),
    aten.vdot: _mm(0),
    aten.addmv: _mm(1),
    aten.addmv_: _mm(1),
    aten.addmm_: _mm(1),
    aten.baddbmm_: _mm(1),
    aten.addbmm: _mm(1),
    aten.addbmm_: _mm(1),
    aten._addmm_activation: _mm(1),
    aten.mkldnn_rnn_layer: _recurrent_layer,
    aten.mkldnn_rnn_layer_backward: _twice(_recurrent_layer),
    aten._cudnn_rnn: _cudnn_recurrent,
    aten._cudnn_rnn_backward: _twice(_cudnn_recurrent),
    aten.convolution_backward: _convolution_backward,
    aten.mkldnn_convolution: _plain_convolution,
    aten.cudnn_convolution_relu: _plain_convolution,
    aten.cudnn_convolution_add_relu: _plain_convolution,
    aten._conv_depthwise2d: _plain_convolution,
    aten.conv_depthwise3d: _plain_convolution,
    aten._native_multi_head_attention: _attention,
    aten._transformer_encoder_layer_fwd: _encoder_layer,
}
"""Formulas that complete torch's, correct them (gradients of grouped convolution), or are quicker to reach."""
