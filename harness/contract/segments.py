"""Leaving early: the loop over the exits of a method, written once.

A method with K exits is a sequence of K segments. What it knows of its videos is a state: tensors and Frames, rows
first, in tuples, lists, dicts or dataclasses. Segments between which nobody leaves are run as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.contract.exits import NEVER, staying
from harness.contract.frames import Frames
from harness.contract.trace import Trace


class Segmented(Protocol):
    """What the loop asks of a recognizer, see EfficientRecognizer."""

    exits: int
    exit_score: str

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> Any:
        """The state before the first segment."""
        ...

    def segment(self, state: Any, first: int, last: int) -> tuple[Any, Tensor]:
        """The state after segment `last`, and the logits of its exit."""
        ...


def stops(thresholds: Sequence[float]) -> list[int]:
    """The exits at which somebody may leave, the last one included."""
    found: list[int] = []
    for exit, threshold in enumerate(thresholds):
        if threshold <= -NEVER:
            return [*found, exit]
        if threshold < NEVER or exit == len(thresholds) - 1:
            found.append(exit)
    return found


def until_sure(
    recognizer: Segmented,
    clips: Mapping[str, Frames],
    thresholds: Sequence[float],
    trace: Trace,
    generator: torch.Generator | None,
) -> Tensor:
    """Logits (B, C): segment by segment; videos that are sure leave, and the batch shrinks."""
    state, first = recognizer.begin(clips, generator), 0
    there, exits = np.arange(trace.videos), np.zeros(trace.videos, dtype=np.int64)
    plan, result = stops(thresholds), torch.empty(0)
    rows: Tensor | None = None  # places of those still there, on the device, once somebody has left
    for stop in plan:
        trace.there = None if len(there) == trace.videos else there
        state, logits = recognizer.segment(state, first, stop)
        exits[there] = stop
        if rows is None:
            result = logits.clone()
        else:
            result.index_copy_(0, rows, logits.to(result.dtype))
        if stop == plan[-1]:
            break
        stays = staying(logits, thresholds[stop], recognizer.exit_score)
        if not len(stays):
            break
        if len(stays) < len(there):
            for frames in clips.values():
                frames.leave(np.delete(there, stays))
            on_device = torch.from_numpy(stays).to(logits.device)
            rows = on_device if rows is None else rows[on_device]
            there, state = there[stays], keep(state, stays, on_device)
        first = stop + 1
    trace.exit_step = exits
    return result


def every_exit(
    recognizer: Segmented, clips: Mapping[str, Frames], generator: torch.Generator | None = None
) -> Tensor:
    """Logits at all exits (B, K, C); nobody leaves."""
    state = recognizer.begin(clips, generator)
    found: list[Tensor] = []
    for exit in range(recognizer.exits):
        state, logits = recognizer.segment(state, exit, exit)
        found.append(logits)
    return torch.stack(found, 1)


def keep(state: Any, rows: np.ndarray, on_device: Tensor) -> Any:
    """The state of the videos at the places `rows`, the same on the device."""

    def kept(value: Any) -> Any:
        return value.keep(rows, on_device) if isinstance(value, Frames) else value[on_device]

    return _mapped(kept, [state])


def join(states: Sequence[Any]) -> Any:
    """The states of several batches as one."""

    def joined(*values: Any) -> Any:
        return Frames.join(values) if isinstance(values[0], Frames) else torch.cat(values)

    return states[0] if len(states) == 1 else _mapped(joined, states)


def leave(state: Any, rows: np.ndarray) -> None:
    """Nothing more is asked of the videos at the places `rows`."""
    _mapped(lambda value: value.leave(rows) if isinstance(value, Frames) else None, [state])


def settle(state: Any) -> Any:
    """The state without frames of videos that are not there: for one that lasts."""
    return _mapped(lambda value: value.settled() if isinstance(value, Frames) else value, [state])


def _mapped(function: Any, states: Sequence[Any]) -> Any:
    """`function` of the tensors and Frames that stand at the same place of all states."""
    first = states[0]
    if isinstance(first, Tensor | Frames):
        return function(*states)
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: _mapped(function, [state[name] for state in states]) for name in first}
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return type(first)(**{name: _mapped(function, [getattr(state, name) for state in states]) for name in names})
    if isinstance(first, tuple | list):
        parts = [_mapped(function, parts) for parts in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise TypeError(f"a state holds tensors and Frames, not {type(first).__name__}")
