"""The parts of a method: named once, called through one face.

    @component("glance", variant=lambda model: model.networks.glance, side=lambda model: model.glance_side)
    def see(self, frames_N3HW): ...

    maps, vectors = self.see(frames_N3HW)

A component is a function of tensors whose first axis is rows that do not depend on each other (frames, patches, clips)
and of keywords that are no tensors. In training it is that function. In an evaluation the face tells the trace of the
work, and runs the form that the harness has given the component (harness.engine): compiled, captured, cut into the
numbers of rows that this device likes best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from torch import Tensor

from harness.contract.trace import Trace

Form = Callable[..., Any]
"""Runs a component another way: the same arguments, the same results."""


class Call(NamedTuple):
    """A component with the keywords that say which of its networks runs; what a form belongs to."""

    attribute: str
    """Name of the recognizer's method."""
    keywords: tuple[tuple[str, Any], ...] = ()


class Model(Protocol):
    """What a recognizer has for its components."""

    trace: Trace | None
    """Of the evaluation that is going on; None in training."""
    forms: Mapping[Call, Form]


class Component:
    """What `component` makes of a method: a descriptor, and the declaration that the harness reads.

    Attributes:
        name: As in traces and records.
        attribute: The method's own name.
        fast: Worth a form of its own.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        variant: str | Callable[..., str],
        side: Callable[..., int] | None,
        steps: bool | Callable[..., bool],
        fast: bool,
    ) -> None:
        self.function, self.name, self.fast = function, name, fast
        self._variant, self._side, self._steps = variant, side, steps
        self.attribute = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, model: None, owner: type) -> Component: ...
    @overload
    def __get__(self, model: Model, owner: type) -> Bound: ...
    def __get__(self, model: Model | None, owner: type) -> Component | Bound:
        return self if model is None else Bound(self, model)

    def told(self, model: Model, first: Tensor, keywords: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int]:
        """Variant, input shape of one row and number of rows, as a trace has them, of a call on `first`."""
        steps = self._steps if isinstance(self._steps, bool) else self._steps(model)
        rows, *shape = first.shape
        if steps:
            shape, rows = shape[1:], rows * shape[0]
        if self._side is not None:
            side = self._side(model, **keywords)
            shape[-2:] = side, side
        return self._variant if isinstance(self._variant, str) else self._variant(model, **keywords), tuple(shape), rows


class Bound:
    """A component of one recognizer; calling it runs it."""

    def __init__(self, component: Component, model: Model) -> None:
        self.component, self.model = component, model

    def __call__(
        self,
        *args: Tensor | None,
        videos: Sequence[int] | np.ndarray | None = None,
        training_only: bool = False,
        **keywords: Any,
    ) -> Any:
        """Run it on `args`.

        Args:
            args: Tensors with the same number of rows; the first one says what a row is. None where there is nothing.
            videos: The video of each row, among those still there; None: every video has equally many, in order.
            training_only: No prediction needs this call; it runs only where `model.training_parts` asks for it.
            keywords: Which of the component's networks; no tensors.
        """
        model, trace = self.model, self.model.trace
        if trace is None:
            return self.component.function(model, *args, **keywords)
        first = args[0]
        assert first is not None
        variant, shape, rows = self.component.told(model, first, keywords)
        with trace.work(self.component.name, variant, shape, rows, videos=videos, training_only=training_only):
            form = model.forms.get(Call(self.component.attribute, tuple(sorted(keywords.items()))))
            return self.component.function(model, *args, **keywords) if form is None else form(*args)


def component(
    name: str,
    *,
    variant: str | Callable[..., str] = "",
    side: Callable[..., int] | None = None,
    steps: bool | Callable[..., bool] = False,
    fast: bool = True,
) -> Callable[[Callable[..., Any]], Component]:
    """Declare a method of a recognizer as one of its components.

    Args:
        name: In traces, records and tables: glance, policy, focus, classifier, head.
        variant: What else the cost of a row depends on: channel set, depth, network; if it is a function, it is called
            with the recognizer and the call's keywords.
        side: Side in pixels at which frames are computed, where it is not the one they come with; called likewise.
        steps: The second axis of the first argument is time, and the work is told per step; may depend on the
            recognizer.
        fast: Give it fast forms; off for a linear layer, which has none.
    """
    return lambda function: Component(function, name, variant, side, steps, fast)


def components(cls: type) -> dict[str, Component]:
    """The components of a class of recognizers by the names of their methods."""
    found: dict[str, Component] = {}
    for base in reversed(cls.__mro__):
        found |= {attribute: part for attribute, part in vars(base).items() if isinstance(part, Component)}
    return found
