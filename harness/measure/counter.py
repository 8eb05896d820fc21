"""Counting multiply-accumulates while they run.

    with MacMeter() as meter:
        recognizer.infer(clips, trace=Trace(batch, meter=meter))
    meter.total         # MACs of convolution, linear and matmul, recurrent cells and attention included

The formulas are those of `torch.utils.flop_counter` (halved: it counts a multiply-accumulate as two), with
own ones for what it lacks: recurrent layers, the fused attention of `nn.MultiheadAttention` in eval mode,
matrix-vector products, every kernel of scaled dot-product attention, distances, bilinear layers, deformable
convolution. What looks like a matmul, or comes from a library of its own, and has no formula is listed in
`unsupported` and warned about; it is never counted as free in silence. `declare` gives a custom operator its
formula. Bias, normalisation, activations, pooling, sampling and elementwise work count nothing: the convention of
the papers (docs/measurement.md#gflops).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.errors import BenchError

aten = torch.ops.aten
Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], float]
"""Arguments, keyword arguments and result of an operator -> MACs."""

MATMUL_LIKE = re.compile(
    r"(?:^|_)(?:[a-z]*mm|matmul|v?dot|(?:add)?mv|conv(?!ert)\w*|rnn|lstm|gru|linear|attention|transformer|cdist"
    r"|trilinear|fft\w*|svd|eigh?|cholesky\w*|inverse|solve\w*|qr|ormqr|lu)(?:_|$)|^_?linalg_"
)
"""Operator names that promise multiply-accumulates."""
FREE = re.compile(
    r"_thnn_fused_|_flatten_weight|_reorder_conv|linalg_(?:vector_norm|cross|check_errors)|fftfreq|fftshift"
)
"""Names that match but move weights or work elementwise (the gates' matmuls are operators of their own)."""
LIBRARIES = ("aten", "prim", "profiler", "torchvision")
"""Torch's own."""
KNOWN = frozenset(
    {f"torchvision::{name}" for name in ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")}
    | {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith(LIBRARIES)}
)
"""Operators that count nothing unless they have a formula or a matmul-like name: those that torch came with."""

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]

_running = 0
_ever = False
_declared: dict[str, Formula] = {}


def declare(operator: str, formula: Formula) -> None:
    """Say what a custom operator costs, so that a method may run it; records name it as declared.

    Args:
        operator: `library::name`, as it was defined with torch.library.
        formula: Its MACs; `lambda args, kwargs, out: 0.0` for one that only moves or combines elements.

    Raises:
        BenchError: The operator is torch's own, or has another formula already.
    """
    if not declarable(operator):
        raise BenchError(f"{operator}: only operators of a library of their own (`library::name`) can be declared")
    if _declared.get(operator, formula) is not formula:
        raise BenchError(f"{operator} has been declared with another formula")
    _declared[operator] = formula
    _plans.clear()


def declarable(operator: str) -> bool:
    """Whether `operator` is of a library of its own, so that `declare` takes a formula for it."""
    library, _, name = operator.partition("::")
    return bool(name) and library not in LIBRARIES


def counted_operators() -> set[str]:
    """`library::name` of every operator that has a formula."""
    own = {f"aten::{packet.__name__}" for packet in (*FORMULAS, *flop_registry) if isinstance(packet, OpOverloadPacket)}
    return own | set(OTHER_LIBRARIES) | set(_declared)


def product(operator: str, shapes: Sequence[Shape], macs: float | None = None) -> tuple[tuple[str, Shapes], float]:
    """One call of a counted operator: kind and number, in a form that two witnesses of the same forward agree on.

    Matrix products are summed up as MACs, for torch chooses among their kernels by who watches; other operators are
    calls by the shapes of their tensors (sorted, without dimensions of 1).

    Args:
        operator: `library::name`.
        shapes: Of its arguments; in order, and () for what is no tensor, where `macs` is not known.
    """
    if operator in MATRIX_PRODUCTS:
        if macs is None:
            macs = MATRIX_PRODUCTS[operator]([torch.empty(shape, device="meta") for shape in shapes], {}, None)
        return ("matrix product", ()), macs
    squeezed = (tuple(side for side in shape if side != 1) for shape in shapes)
    return (operator, tuple(sorted(shape for shape in squeezed if shape))), 1


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
        unsupported: Operators seen that are matmul-like or of an unknown library and have no formula, with their number
            of calls; where it is not empty, `total` is too small.
        products: What was counted, see `product`.
        declared: Custom operators that were counted by a formula given to `declare`.
        believed: One of those runs now; what its kernel does is not looked at.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.by_op: defaultdict[str, float] = defaultdict(float)
        self.unsupported: Counter[str] = Counter()
        self.products: defaultdict[tuple[str, Shapes], float] = defaultdict(float)
        self.declared: set[str] = set()
        self.believed = False
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

    def saw(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Called before every operator, for meters that watch more than the count."""


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
        plan = _plan(func)
        if plan.formula is None and plan.composite:
            with self:
                return func.decompose(*args, **kwargs)
        self.meter.saw(func, args, kwargs)
        self.meter.believed = plan.name in _declared
        try:
            out = func(*args, **kwargs)
        finally:
            self.meter.believed = False
        if plan.formula is not None:
            macs = plan.formula(args, kwargs, out)
            if not macs >= 0:
                raise BenchError(f"the formula of {plan.name} gives {macs} multiply-accumulates")
            shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            kind, number = product(plan.name, shapes, macs)
            self.meter.products[kind] += number
            if plan.name in _declared:
                self.meter.declared.add(plan.name)
            self.meter.add(func._overloadpacket.__name__, macs)
        elif plan.suspicious:
            self.meter.unsupported[plan.name] += 1
        return out


class _Plan(NamedTuple):
    """What is to be done with an operator."""

    name: str
    formula: Formula | None
    composite: bool
    """It can be taken apart into others."""
    suspicious: bool
    """It must not be taken for free where it has no formula."""


_plans: dict[Any, _Plan] = {}


def _plan(func: Any) -> _Plan:
    """Looked up once for each operator."""
    if func not in _plans:
        packet, name = func._overloadpacket, func.name().partition(".")[0]
        formula = _declared.get(name) or OTHER_LIBRARIES.get(name) or FORMULAS.get(packet)
        if formula is None and packet in flop_registry:
            formula = _halved(flop_registry[packet])
        key = torch._C.DispatchKey.CompositeImplicitAutograd
        composite = key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        matmul_like = bool(MATMUL_LIKE.search(packet.__name__)) and not FREE.search(packet.__name__)
        _plans[func] = _Plan(name, formula, composite, matmul_like or name not in KNOWN)
    return _plans[func]


def _halved(flops: Callable[..., float]) -> Formula:
    return lambda args, kwargs, out: flops(*args, **kwargs, out_val=out) / 2


def _mm(first: int) -> Formula:
    """Matrix product (.., m, k) x (.., k, n) or (.., k) of the arguments `first` and the one after."""

    def macs(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
        left, right = args[first].shape, args[first + 1].shape
        return prod(left) * (right[-1] if len(right) > 1 else 1)

    return macs


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Input (..., I), weight (O, I) or (I,)."""
    return prod(args[0].shape) * prod(args[1].shape[:-1])


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """(..., m, k) x (..., k, n), or (k,) on either side; leading dimensions broadcast."""
    left, right = args[0].shape, args[1].shape
    batch = torch.broadcast_shapes(left[:-2], right[:-2])
    return prod(batch) * prod(left[-2:]) * (right[-1] if len(right) > 1 else 1)


def _recurrent_layer(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """oneDNN's RNN, LSTM or GRU layer: input (T, B, in), weights (gates x h, in) and (gates x h, h)."""
    return prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel())


def _cudnn_recurrent(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """cuDNN's: every step of every layer and direction multiplies by each of its weight matrices once."""
    return prod(args[0].shape[:-1]) * sum(w.numel() for w in args[1] if w.ndim == 2)


def _recurrent(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Whole RNN, LSTM or GRU: input, state, weights; or the steps of packed sequences, batch sizes, state, weights."""
    return _cudnn_recurrent((args[0], args[2] if isinstance(args[3], bool) else args[3]), kwargs, out)


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
    return batch * (2 * length + 2 * keys) * width * width + batch * 2 * length * keys * width


def _dot_product_attention(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Query (B, H, L, E), key (B, H or fewer, S, E), value (B, H or fewer, S, V); masked pairs count as well."""
    query, key, value = (tensor.shape for tensor in args[:3])
    return prod(query[:3]) * key[2] * (query[3] + value[3])


def _flash_attention(first: int) -> Formula:
    """Query (B, L, H, E) at the place `first`, then key and value; or sequences of given lengths in a row (., H, E)."""
    forward = flop_registry[aten._flash_attention_forward]
    return lambda args, kwargs, out: forward(*args[first : first + 7]) / 2


def _cudnn_attention(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """As `_dot_product_attention`; or sequences of given lengths in a row, which follow the bias."""
    if args[4] is None:
        return _dot_product_attention(args, kwargs, out)
    return _flash_attention(0)((*args[:3], *args[4:8]), kwargs, out)


def _affine_grid(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    """Each position of the grid, in homogeneous coordinates, by the matrix (B, d, d + 1) of its row."""
    return args[0].numel() * prod(out.shape[1:-1])


def _distances(extra: int) -> Formula:
    """Each row (.., P, M) with each row (.., R, M); as a matrix product of rows with `extra` columns more."""
    return lambda args, kwargs, out: out.numel() * (args[0].shape[-1] + extra)


def _trilinear(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """Two factors first, summed over what the third does not have; then that with the third."""
    shapes = []
    for tensor, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(tensor.shape)
        for dim in expanded:
            shape.insert(dim, 1)
        shapes.append(shape)
    first = torch.broadcast_shapes(*shapes[:2])
    left = [1 if dim in args[6] and dim in args[5] else side for dim, side in enumerate(first)]
    return prod(first) + prod(torch.broadcast_shapes(left, shapes[2]))


_MATRIX_PRODUCTS: dict[Any, Formula] = {
    aten.linear: _linear,  # these two not taken apart: torch would choose other kernels where a mode watches
    aten.matmul: _matmul,
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
}
MATRIX_PRODUCTS = {f"aten::{packet.__name__}": formula for packet, formula in _MATRIX_PRODUCTS.items()}
"""Formulas that need shapes only, by the operator's qualified name."""
FORMULAS: dict[Any, Formula] = {
    **_MATRIX_PRODUCTS,
    aten.convolution: _convolution,
    **dict.fromkeys((aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu), _recurrent),  # nor these, for that reason
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
    aten._triton_multi_head_attention: _attention,
    aten._triton_scaled_dot_attention: _dot_product_attention,
    aten._scaled_dot_product_flash_attention: _dot_product_attention,
    aten._scaled_dot_product_flash_attention_for_cpu: _dot_product_attention,
    aten._scaled_dot_product_efficient_attention: _dot_product_attention,
    aten._scaled_dot_product_cudnn_attention: _dot_product_attention,
    aten._scaled_dot_product_fused_attention_overrideable: _dot_product_attention,
    aten._scaled_dot_product_attention_math_for_mps: _dot_product_attention,
    aten._flash_attention_forward: _flash_attention(0),
    aten._flash_attention_forward_no_dropout_inplace: _flash_attention(1),
    aten._cudnn_attention_forward: _cudnn_attention,
    aten._cudnn_attention_forward_no_dropout_inplace: _flash_attention(1),
    aten._transformer_encoder_layer_fwd: _encoder_layer,
    aten.affine_grid_generator: _affine_grid,
    aten._cdist_forward: _distances(0),
    aten._euclidean_dist: _distances(2),
    aten._trilinear: _trilinear,
}
"""Formulas that complete torch's, correct them (gradients of grouped convolution), or are quicker to reach."""
OTHER_LIBRARIES: dict[str, Formula] = {"torchvision::deform_conv2d": _plain_convolution}
"""Formulas by qualified name, so that the libraries need not be imported."""
