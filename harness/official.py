"""Reading the authors' released checkpoints: safely, and whoever of the zoo knows the file.

    converted = convert("actnet_p128_mbv2.pth.tar", patch_size=128)
    model = recognizer_class(converted.method)(**converted.settings)

A method joins in with a classmethod `from_official(content, **given)`, which returns None for a file of
another method.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.build import build_recognizer
from harness.errors import CheckpointError, UsageError
from harness.registry import method_cards, recognizer_class


@dataclass(frozen=True)
class Converted:
    """An official checkpoint in this project's names."""

    method: str
    """Name in the registry."""
    settings: Mapping[str, Any]
    """Constructor settings that follow from the file, and those given."""
    state: Mapping[str, Tensor]
    """State dict of the method's recognizer."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the method does not need, by the authors' names (ImageNet classifiers)."""
    unplaced: tuple[str, ...] = ()
    """Tensors of the file that nobody knows; by our names where they were renamed but have no place."""

    def report(self) -> str:
        """What was found, for the user."""
        lines = [f"{self.method}: {len(self.state)} tensors; settings {dict(self.settings)}"]
        lines += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        lines += [f"NOT PLACED, unknown to {self.method}: {', '.join(self.unplaced)}"] if self.unplaced else []
        return "\n".join(lines)


def convert(source: Path | str | Mapping[str, Any], *, method: str | None = None, **given: Any) -> Converted:
    """Let the method that knows an official checkpoint rename it.

    Args:
        source: The file, or its content.
        method: Only this method; every method is asked when left out.
        given: Settings that no tensor tells, such as `patch_size`.

    Raises:
        CheckpointError: The file needs more than tensors and numbers, no method knows it, or it is damaged.
        UsageError: `method` has no official checkpoints.
    """
    content = source if isinstance(source, Mapping) else read_official(source)
    if method is not None:
        _readers({method})
    converted = next((c for c in (r.from_official(content, **given) for r in _readers()) if c is not None), None)
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    if converted is None:
        known = ", ".join(name for name, card in method_cards().items() if _reads(name) and not card.variant_of)
        raise CheckpointError(
            f"{where} is no official checkpoint of {known}; it holds {', '.join(map(str, list(content)[:5]))} ..."
        )
    if method not in (None, converted.method):
        raise CheckpointError(f"{where} is a checkpoint of {converted.method}, not of {method}")
    return _fitted(converted)


def _fitted(converted: Converted) -> Converted:
    """What was renamed but has no place in the recognizer is nobody's after all."""
    with torch.device("meta"):
        known = build_recognizer(converted.method, converted.settings).state_dict().keys()
    state = {name: value for name, value in converted.state.items() if name in known}
    left = sorted(converted.state.keys() - known)
    return replace(converted, state=state, unplaced=(*converted.unplaced, *left))


def read_official(path: Path | str) -> dict[str, Any]:
    """Content of an official file, read without running code from it.

    Tensors and plain values, and NumPy's scalars under their new and their old name (`best_acc1`).

    Raises:
        CheckpointError: The file holds anything else, or is broken.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # NumPy's own function that rebuilds a scalar
    numbers: list[Any] = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    allowed: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *numbers]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a file of tensors and numbers: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _reads(name: str) -> bool:
    return hasattr(recognizer_class(name), "from_official")


def _readers(names: set[str] | None = None) -> list[Any]:
    chosen = [name for name, card in method_cards().items() if (name in names if names else not card.variant_of)]
    readers = [recognizer_class(name) for name in chosen if _reads(name)]
    if not readers:
        raise UsageError(f"{', '.join(names or chosen)} has no official checkpoints to read")
    return readers
