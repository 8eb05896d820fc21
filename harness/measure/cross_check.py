"""fvcore's count beside ours: every convolution and linear layer that really ran, at the shape it ran on.

    layers = LayerCalls()
    with layers:
        recognizer.infer(clips, trace=Trace(1, observe=layers.observe))
    layers.fvcore_macs()        # kind of work -> multiply-accumulates

fvcore traces a module and forgets what does not reach its output through tensors, so on a method that decides in
between it loses parts; on single layers it is sound. It counts no recurrent cells (its "flop" is one
multiply-accumulate).
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from harness.compat.counting import FlopCountAnalysis
from harness.contract.trace import EventKey

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class LayerCalls:
    """Watches layers run, as a context manager; hand `observe` to the trace."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[EventKey, nn.Module, tuple[int, ...]]] = Counter()
        """How often a layer ran within a kind of work, on an input of this shape."""
        self._running: list[EventKey] = []

    def __enter__(self) -> LayerCalls:
        self._handle = register_module_forward_hook(self._saw)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @contextmanager
    def observe(self, key: EventKey) -> Iterator[None]:
        """Layers that run in this block belong to `key`."""
        self._running.append(key)
        try:
            yield
        finally:
            self._running.pop()

    def fvcore_macs(self) -> dict[EventKey, float]:
        """MACs by kind of work, as fvcore counts them."""
        found: dict[EventKey, float] = {}
        for (key, layer, shape), times in self.calls.items():
            found[key] = found.get(key, 0.0) + times * _fvcore_macs(layer, shape)
        return found

    def _saw(self, module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        if self._running and isinstance(module, LAYERS) and isinstance(inputs[0], Tensor):
            self.calls[self._running[-1], module, tuple(inputs[0].shape)] += 1


def _fvcore_macs(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """fvcore's MACs of one call: those of one row, times the rows."""
    if isinstance(layer, nn.Linear):
        return torch.Size(shape[:-1]).numel() * _of_a_row(str(layer), layer, shape[-1:])
    return shape[0] * _of_a_row(str(layer), layer, shape[1:])


_KNOWN: dict[tuple[str, tuple[int, ...]], float] = {}


def _of_a_row(description: str, layer: nn.Module, row: tuple[int, ...]) -> float:
    """What fvcore counts for one row; counted once for layers that torch describes alike (sizes, stride, groups)."""
    if (description, row) not in _KNOWN:
        bare = copy.copy(layer)  # without hooks such as the temporal shift's
        bare._forward_hooks, bare._forward_pre_hooks = OrderedDict(), OrderedDict()
        weight = next(layer.parameters())
        analysis = FlopCountAnalysis(bare, torch.zeros(1, *row, dtype=weight.dtype, device=weight.device))
        total = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        _KNOWN[description, row] = float(total)
    return _KNOWN[description, row]
