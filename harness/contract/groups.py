"""Named groups of settings: typed, validated, and given as plain keywords.

    @settings
    class Exits:
        exit_every: int = 1
        \"\"\"Frames between exits.\"\"\"

    class MyMethod(EfficientRecognizer):
        def __init__(self, num_classes: int, *, frames: int = 8, exits: Exits = Exits(exit_every=2), **kwargs): ...

    MyMethod(10, exit_every=4)      # exits is Exits(exit_every=4)

A group is one idea that several functions share; outside there are only plain values, so that a setting is written
`exit_every=4` on the command line, in records and in configs, whichever group it stands in. The default of a group's
parameter sets the defaults of its fields for that function. `EfficientRecognizer` does this for every constructor;
the command line's options are grouped by the same means.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from harness.errors import UsageError, unknown

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Kind = inspect.Parameter


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a group: a frozen dataclass with keyword-only fields."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def grouped(function: Function) -> Function:
    """Let `function` take the fields of its dataclass parameters as keywords of its own.

    `inspect.signature` then shows the fields. A group itself may still be given under its parameter's name.
    """
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    groups = {
        name: (hints[name], hints[name]() if parameter.default is Kind.empty else parameter.default)
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(hints.get(name))
    }

    @wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        for name, (group, default) in groups.items():
            if name not in given:
                fields = [field.name for field in dataclasses.fields(group) if field.name in given]
                given[name] = dataclasses.replace(default, **{field: given.pop(field) for field in fields})
        return function(*args, **given)

    flat = [field for name, p in signature.parameters.items() for field in _fields(p, hints, *groups.get(name, ()))]
    kinds = (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD, Kind.VAR_POSITIONAL, Kind.KEYWORD_ONLY, Kind.VAR_KEYWORD)
    flat.sort(key=lambda parameter: kinds.index(parameter.kind))
    wrapper.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in flat if p.annotation is not Kind.empty}
    return wrapper  # type: ignore[return-value]


def validated(function: Function) -> Function:
    """Hold what `function` is given against the types of its parameters.

    Types are strict: a text is no number, a truth value no integer; an integer may stand for a float.

    Raises (when `function` is called):
        UsageError: A value is not of its parameter's type; names the parameter and what was expected.
    """
    signature = inspect.signature(function)
    types = {p.name: p.annotation for p in signature.parameters.values() if p.kind is not Kind.VAR_KEYWORD}
    types = {name: hint for name, hint in types.items() if hint is not Kind.empty}

    @wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        values = dict(zip(signature.parameters, args, strict=False)) | given
        for name, hint in types.items():
            if name in values:
                check(name, values[name], hint)
        return function(*args, **given)

    return wrapper  # type: ignore[return-value]


def check(name: str, value: Any, hint: Any) -> None:
    """Raise UsageError unless `value` is of the type `hint`; the error calls it `name`."""
    from pydantic import ValidationError  # a tenth of a second, which `--help` need not wait for

    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if choices:
            raise unknown(name, value, map(str, choices)) from None
        wanted = dict.fromkeys(str(e["msg"]).removeprefix("Input should be ") for e in error.errors())
        raise UsageError(f"{name}={value!r}: expected {' or '.join(wanted)}") from None


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _fields(
    parameter: Kind, hints: dict[str, Any], group: Any = None, default: Any = None
) -> list[Kind]:
    """The parameter itself, or the fields of its group with the defaults that `default` gives them."""
    if group is None:
        return [parameter.replace(annotation=hints.get(parameter.name, Kind.empty))]
    types = get_type_hints(group, include_extras=True)
    return [
        Kind(field.name, Kind.KEYWORD_ONLY, default=getattr(default, field.name), annotation=types[field.name])
        for field in dataclasses.fields(group)
    ]
