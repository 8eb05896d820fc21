"""Building recognizers by method name, with reproducible initial weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from harness.contract.names import NOT_SETTINGS
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card, recognizer_class
from harness.contract.values import digest
from harness.data.cards import SIZES
from harness.engine.memory_format import set_memory_format
from harness.errors import UsageError, unknown


def build_recognizer(
    method: str, settings: Mapping[str, Any], *, seed: int = 0, stage: str = ""
) -> EfficientRecognizer:
    """The recognizer of `method` with all constructor `settings`; weights drawn from (seed, stage).

    Raises:
        UsageError: The class does not have such a setting, or cannot be built with these values.
    """
    return build(recognizer_class(method), settings, name=method, seed=seed, stage=stage)


def build(
    cls: type[EfficientRecognizer], settings: Mapping[str, Any], *, name: str, seed: int = 0, stage: str = ""
) -> EfficientRecognizer:
    """As `build_recognizer`, of a class; errors call it `name`."""
    names = constructor_settings(cls)
    for key in settings:
        if key not in names:
            raise unknown(f"setting of {name}", key, names)
    torch.manual_seed(int(digest([seed, stage], 8), 16))
    try:
        recognizer = cls(**settings)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [""]
        raise UsageError(f"{name} cannot be built so: {type(error).__name__}: {reason[0]}") from error
    set_memory_format(recognizer, "channels_last")
    return recognizer


def constructor_settings(cls: type[EfficientRecognizer]) -> set[str]:
    """Names of all keyword settings a recognizer class takes, its bases and mixins included."""
    return set(_setting_parameters(cls))


def setting_defaults(cls: type[EfficientRecognizer]) -> dict[str, Any]:
    """The keyword settings of a recognizer class that have a default, its bases and mixins included."""
    parameters = _setting_parameters(cls)
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _setting_parameters(cls: type[EfficientRecognizer]) -> dict[str, inspect.Parameter]:
    """Setting -> the constructor parameter that takes it; a derived class's own comes before its bases'."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(EfficientRecognizer) + 1]):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            found |= {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return {name: p for name, p in found.items() if name not in NOT_SETTINGS}


def full_settings(method: str, size: str, resolution: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `method` at `size`: the class's, then the variant's, then `changes`."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    return {**recognizer_class(method).settings_for(size, resolution), **method_card(method).settings, **changes}
