"""The networks that carry nearly all of a method's multiply-accumulates: what is compiled, what half precision is for.

They follow from how a method is built: every backbone by its `trunk`, which each way of calling it goes through;
in a method without backbones every part with weights by its `forward`. What decides (policies, exit scores) and
what is small (heads) stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from harness.layers.backbone import Backbone

Call = Callable[..., Any]


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
def wrapped(model: nn.Module, wrap: Callable[[Call], Call]) -> Iterator[None]:
    """Run every heavy part of `model` through `wrap` of the method that runs its layers, until the end of the block."""
    replaced: list[tuple[HeavyPart, Call | None]] = []
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
