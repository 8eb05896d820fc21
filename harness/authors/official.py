"""Reading the authors' released checkpoints: safely, and whoever of the zoo knows the file.

    converted = convert("actnet_p128_mbv2.pth.tar", patch_size=128)
    model = recognizer_class(converted.method)(**converted.settings)

A method joins in by naming a module in its CARD (`authors`) that holds `from_official(content, **given)`; it returns
a `Converted`, or None for a file of another method.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contract.registry import authors_module, method_cards
from harness.errors import BenchError, CheckpointError, UsageError
from harness.plan.building import build_recognizer
from harness.store import artifacts


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
    """Tensors of the file that nobody knows, by the authors' names."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """The authors' name of each tensor in `state`."""
    assumed: tuple[str, ...] = ()
    """Settings that no tensor tells and that were not given: their usual values are taken."""
    differing: tuple[str, ...] = ()
    """Tensors of the file, by the authors' names, that should repeat one that was taken and do not."""

    def report(self) -> str:
        """What was found, for the user."""
        lines = [f"{self.method}: {len(self.state)} tensors; settings {dict(self.settings)}"]
        lines += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        lines += [f"NOT PLACED, unknown to {self.method}: {', '.join(self.unplaced)}"] if self.unplaced else []
        lines += [f"LEFT, unlike the tensors they should repeat: {', '.join(self.differing)}"] if self.differing else []
        if self.assumed:
            values = ", ".join(f"{name}={self.settings[name]}" for name in self.assumed)
            lines += [f"ASSUMED, no tensor tells: {values}; change with --set"]
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
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    found = (_read_by(reader, content, given, where) for reader in _readers())
    converted = next((c for c in found if c is not None), None)
    if converted is None:
        known = ", ".join(name for name, card in method_cards().items() if card.authors and not card.variant_of)
        raise CheckpointError(
            f"{where} is no official checkpoint of {known}; it holds {', '.join(map(str, list(content)[:5]))} ..."
        )
    if method not in (None, converted.method):
        raise CheckpointError(f"{where} is a checkpoint of {converted.method}, not of {method}")
    return _fitted(converted)


def _read_by(reader: Any, content: Mapping[str, Any], given: Mapping[str, Any], where: str) -> Converted | None:
    """What `reader` makes of a file. That it reads tensors which are not there means that some were lost."""
    try:
        converted: Converted | None = reader.from_official(content, **given)
    except KeyError as error:
        told = f"{where} looks like a checkpoint of {_told(reader)}"
        raise CheckpointError(f"{told}, but has nothing for {error}") from None
    except (IndexError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{where}: its tensors are not of the form that {_told(reader)}'s have") from error
    return converted


def _told(reader: Any) -> str:
    """The method of a module of readers."""
    return next(card.title for card in method_cards().values() if card.authors == reader.__name__)


def _fitted(converted: Converted) -> Converted:
    """What was renamed but has no place in the recognizer is nobody's after all."""
    with torch.device("meta"):
        known = build_recognizer(converted.method, converted.settings).state_dict().keys()
    state = {name: value for name, value in converted.state.items() if name in known}
    left = sorted(converted.origins.get(name, name) for name in converted.state.keys() - known)
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
    from safetensors import SafetensorError

    artifacts.check_file(Path(path))
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on old pickles, which it then reads or refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*artifacts.UNREADABLE, SafetensorError) as error:
        raise artifacts.unreadable(Path(path), error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _readers(names: set[str] | None = None) -> list[Any]:
    """Modules that read official files, of all methods or of some.

    One that cannot be imported is told on standard error, unless its method was asked for: then it raises.
    """
    cards = method_cards()
    chosen = [name for name, card in cards.items() if (name in names if names else not card.variant_of)]
    readers = []
    for name in chosen:
        try:
            module = authors_module(cards[name])
        except BenchError as error:
            if names:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        readers += [module] if module is not None else []
    if not readers:
        raise UsageError(f"{', '.join(names or chosen)} has no official checkpoints to read")
    return readers
