"""Half precision: the heavy networks of a method compute in it, with weights that are converted once.

Heavy networks carry nearly all of a method's multiply-accumulates. They follow from how a method is built: every
backbone by its `trunk`, which each way of calling it goes through; in a method without backbones every part with
weights by its `forward`. What decides (policies, exit scores) and what is small (heads) stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from harness.layers.backbone import Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Method = Callable[..., Any]


class HeavyPart(NamedTuple):
    """A network and the name of the method that runs its layers."""

    module: nn.Module
    method: str


def heavy_parts(model: nn.Module) -> list[HeavyPart]:
    """The heavy parts of `model`; none of them holds another."""
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if backbones:
        return [HeavyPart(module, "trunk") for module in backbones]
    return [HeavyPart(child, "forward") for child in model.children() if any(True for _ in child.parameters())]


@contextmanager
def wrapped(model: nn.Module, wrap: Callable[[Method], Method]) -> Iterator[None]:
    """Run every heavy part of `model` through `wrap` of the method that runs its layers, until the end of the block."""
    replaced: list[tuple[HeavyPart, Method | None]] = []
    try:
        for part in heavy_parts(model):
            outer = vars(part.module).get(part.method)
            replaced.append((part, outer))
            setattr(part.module, part.method, wrap(getattr(part.module, part.method)))
        yield
    finally:
        for part, outer in replaced:
            delattr(part.module, part.method)
            if outer is not None:
                setattr(part.module, part.method, outer)


@contextmanager
def in_precision(model: nn.Module, dtype: str) -> Iterator[None]:
    """The heavy networks of `model` compute in `dtype` until the end of the block.

    Their weights are converted once, on entry; batch norm keeps float32 parameters. Their inputs are cast on the
    way in and their results to float32 on the way out: everything else, decisions and exit scores above all, stays
    in float32. On exit the weights are what they were.

    Args:
        dtype: A key of `DTYPES`; float32 changes nothing.
    """
    if dtype == "float32":
        yield
        return
    half = DTYPES[dtype]

    def cast(call: Method) -> Method:
        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map(partial(_cast, dtype=half), (args, kwargs))
            return tree_map(partial(_cast, dtype=torch.float32), call(*args, **kwargs))

        return run

    converted = [p for part in heavy_parts(model) for p in _convertible(part.module)]
    originals = [p.data.to("cpu", copy=True) for p in converted]  # not on the device, whose peak memory is measured
    try:
        for parameter in converted:
            parameter.data = parameter.data.to(half)
        with wrapped(model, cast):
            yield
    finally:
        for parameter, original in zip(converted, originals, strict=True):
            parameter.data = original.to(parameter.device)


def _convertible(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` but for those of batch norm, each once."""
    found = [p for part in module.modules() if not isinstance(part, _BatchNorm) for p in part.parameters(recurse=False)]
    return list(dict.fromkeys(found))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
