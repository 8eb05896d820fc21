"""Half precision: the heavy networks of a method in it, and parts that must keep theirs inside an autocast region."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from harness.layers.heavy import Call, heavy_parts, wrapped

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    def cast(call: Call) -> Call:
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


def no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A region without autocast on the device of `like`; the tensors' own types then decide."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 where its type holds less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _convertible(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` but for those of batch norm, each once."""
    found = [p for part in module.modules() if not isinstance(part, _BatchNorm) for p in part.parameters(recurse=False)]
    return list(dict.fromkeys(found))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
