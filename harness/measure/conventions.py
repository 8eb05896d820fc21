"""The counters papers used, as named pure functions over one module, to compare with what they printed.

Every function takes a module and example inputs of one video, frame or whatever the figure is per, and returns
multiply-accumulates by that convention ("GFLOPs" x 1e9). Only `conv_linear` is this project's own unit; it is
what `MacMeter` counts. Sources: docs/measurement.md#counters-compared (conventions side by side), #gflops.

torch and fvcore are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.measure.counter import MacMeter


def conv_linear(module: nn.Module, *inputs: Tensor) -> float:
    """Convolution, linear and matmul, recurrent cells and attention included: this project's GFLOPs."""
    return _metered(module, inputs).total


def conv_only(module: nn.Module, *inputs: Tensor) -> float:
    """Convolution alone: TSM's 32.7 for eight frames is 8 x ResNet-50's 4.087."""
    return sum(macs for name, macs in _metered(module, inputs).by_op.items() if "conv" in name)


def plus_batch_norm_channels(module: nn.Module, *inputs: Tensor) -> float:
    """AdaFocus's constants: `conv_linear`, and 1 per batch-norm channel (not per element) and row."""
    from torch import nn

    channels = 0.0

    def add(norm: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal channels
        channels += args[0].shape[0] * norm.num_features

    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    with _hooked(module, {batch_norms: add}):
        macs = conv_linear(module, *inputs)
    return macs + channels


def thop(module: nn.Module, *inputs: Tensor) -> float:
    """thop as AR-Net used it: convolution, 2 per batch-norm input, 1 per input of adaptive or average pooling
    modules, and (2 x in - 1) x out per linear layer (docs/measurement.md#counters-compared); recurrent cells
    count nothing.
    """
    from torch import nn

    extra = 0.0

    def norm(layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal extra
        extra += 2 * args[0].numel()

    def pool(layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal extra
        extra += args[0].numel()

    def linear(layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal extra
        extra += (2 * layer.in_features - 1) * out.numel()

    counted = {
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d): norm,
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): pool,
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): pool,
        (nn.Linear,): linear,
    }
    with _hooked(module, counted):
        macs = conv_only(module, *inputs)
    return macs + extra


def fvcore_total(module: nn.Module, *inputs: Tensor) -> float:
    """fvcore's total: convolution, linear, batch norm (2 per element) and adaptive average pooling.

    It misses what does not go through tensors (a decision taken in Python) and recurrent layers: see
    `fvcore_by_operator`.
    """
    return sum(fvcore_by_operator(module, *inputs)[0].values())


def fvcore_by_operator(module: nn.Module, *inputs: Tensor) -> tuple[dict[str, float], dict[str, int]]:
    """fvcore's count per operator, and the operators it saw and did not count.

    `conv`, `linear`, `matmul`, `addmm` and `bmm` together cross-check `conv_linear` on static parts.
    """
    from fvcore.nn import FlopCountAnalysis

    with _evaluating(module):
        analysis = FlopCountAnalysis(module, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return dict(analysis.by_operator()), dict(analysis.unsupported_ops())


CONVENTIONS: dict[str, Callable[..., float]] = {
    "conv-linear": conv_linear,
    "conv-only": conv_only,
    "plus-bn-channels": plus_batch_norm_channels,
    "thop": thop,
    "fvcore": fvcore_total,
}
"""By the name used in tables; the first is this project's own."""


def _metered(module: nn.Module, inputs: tuple[Tensor, ...]) -> MacMeter:
    import torch

    from harness.measure.counter import MacMeter

    with _evaluating(module), torch.no_grad(), MacMeter() as meter:
        module(*inputs)
    return meter


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own mode restored after."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


@contextmanager
def _hooked(module: nn.Module, hooks: dict[tuple[type, ...], Callable[..., None]]) -> Iterator[None]:
    """Call a hook after each forward of submodules of these types."""
    handles = [
        child.register_forward_hook(hook)
        for types, hook in hooks.items()
        for child in module.modules()
        if isinstance(child, types)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
