"""Named groups of settings: typed, validated, and given as plain keywords.

    @settings
    class Exits:
        exit_every: Natural = 1
        \"\"\"Frames between exits.\"\"\"

    class MyMethod(EfficientRecognizer):
        def __init__(self, num_classes: int, *, frames: Positive = 8, exits: Exits = Exits(exit_every=2), **kwargs): ...

    MyMethod(10, exit_every=4)      # exits is Exits(exit_every=4)

A group is one idea that several functions share; outside there are only plain values, so that a setting is written
`exit_every=4` on the command line, in records and in configs, whichever group it stands in. The default of a group's
parameter sets the defaults of its fields for that function. `EfficientRecognizer` does this for every constructor;
the command line's options are grouped by the same means.

A type says what a value may be, bounds included (`Positive`, `Share`): pydantic holds it against the value. An
annotation that cannot be resolved at run time, or that pydantic knows nothing of, is not checked.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from harness.errors import UsageError, unknown

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Kind = inspect.Parameter

LISTED = ("tuple_type", "list_type", "sequence_str", "is_instance_of")
"""Kinds of pydantic's errors where a list was wanted."""
MOST = 1 << 16
"""Far above any width, count of frames or side in pixels; a slip of the keyboard asks for terabytes."""
Positive = Annotated[int, Ge(1), Le(MOST)]
"""A count, width or side that must be there."""
Natural = Annotated[int, Ge(0), Le(MOST)]
"""A count or width that may be 0."""
Share = Annotated[float, Gt(0), Le(1)]
"""A part of a whole, not nothing."""
Probability = Annotated[float, Ge(0), Le(1)]
Dropout = Annotated[float, Ge(0), Lt(1)]
"""The probability with which a value is dropped; not 1, which would leave nothing."""
Weight = Annotated[float, Ge(0)]
"""Factor of a loss, or of another setting."""
Rate = Annotated[float, Gt(0)]
"""A learning rate, limit or other quantity above 0."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a group: a frozen dataclass with keyword-only fields."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def grouped(function: Function) -> Function:
    """Let `function` take the fields of its dataclass parameters as keywords of its own.

    `inspect.signature` then shows the fields. A group itself may still be given, by name or by position. A parameter
    that is None by default stays so until one of its fields is given.

    Raises (when `function` is called):
        UsageError: A field without default is missing, or a group is given together with its fields.
    """
    signature, hints, groups = inspect.signature(function), _hints(function), _groups(function)
    positional = _positional(signature)

    @wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        present = {*positional[: len(args)], *given}
        for name, group in groups.items():
            fields = {field.name: given.pop(field.name) for field in dataclasses.fields(group) if field.name in given}
            if name not in present:
                given[name] = _made(group, signature.parameters[name].default, fields)
            elif fields:
                raise UsageError(f"{name} is given together with its {', '.join(fields)}; give one of them")
        return function(*args, **given)

    flat = [p for name, own in signature.parameters.items() for p in _fields(own, hints, groups.get(name))]
    kinds = (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD, Kind.VAR_POSITIONAL, Kind.KEYWORD_ONLY, Kind.VAR_KEYWORD)
    flat.sort(key=lambda parameter: kinds.index(parameter.kind))
    wrapper.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in flat if p.annotation is not Kind.empty}
    return wrapper  # type: ignore[return-value]


def validated(function: Function) -> Function:
    """Hold what `function` is given against the types of its parameters, groups and their fields included.

    Types are strict: a text is no number, a truth value no integer. What is the same number in another type may stand
    for it (an integer for a float, 8.0 or NumPy's 8 for 8), a range for a list. Infinity and NaN are no numbers.

    Raises (when `function` is called):
        UsageError: A value is not of its parameter's type; names the parameter and what was expected.
    """
    inner = inspect.unwrap(function)
    groups, signature, hints = _groups(inner), inspect.signature(inner), _hints(inner)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is Kind.VAR_KEYWORD:
            hints.pop(parameter.name, None)
        elif not isinstance(parameter.annotation, str) and parameter.annotation is not Kind.empty:
            hints[parameter.name] = parameter.annotation
    rest = next((p.name for p in signature.parameters.values() if p.kind is Kind.VAR_POSITIONAL), "")

    def held(name: str, value: Any) -> Any:
        if name in groups:
            return _checked_group(name, value, groups[name])
        return check(name, value, hints[name]) if name in hints else value

    @wraps(function)
    def wrapper(*args: Any, **given: Any) -> Any:
        names = _positional(signature)
        names += [rest] * (len(args) - len(names))
        return function(*map(held, names, args), **{name: held(name, value) for name, value in given.items()})

    wrapper.validated = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def check(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` wants it; the error calls it `name`.

    Raises:
        UsageError: It is not of that type.
    """
    from pydantic import ValidationError  # a tenth of a second, which `--help` need not wait for

    try:
        adapter = _adapter(hint)
    except TypeError:  # an annotation that cannot be hashed
        return value
    if adapter is None:
        return value
    errors = []
    for other in (value, *_same(value)):
        try:
            found = adapter.validate_python(other, strict=True)
        except ValidationError as error:
            errors.append(error.errors())
        else:
            return found if errors else value
    inside = [error for error in errors if not any(e["type"] in LISTED for e in error)]  # what a list holds is wrong
    raise _refused(name, value, hint, (inside or errors)[0])


def check_fields(instance: Any, kind: str) -> None:
    """Hold the values of a frozen dataclass against the types of its fields; for `__post_init__`.

    Raises:
        UsageError: One is of another type; the error calls it `kind.field`.
    """
    for name, hint in _types(instance.__class__).items():
        value = getattr(instance, name)
        if (found := check(f"{kind}.{name}", value, hint)) is not value:
            object.__setattr__(instance, name, found)


def _refused(name: str, value: Any, hint: Any, errors: Sequence[Mapping[str, Any]]) -> UsageError:
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices:
        return unknown(name, value, map(str, choices))
    listed = any(e["type"] in LISTED for e in errors)
    wanted = dict.fromkeys(
        "a list" if e["type"] in LISTED else str(e["msg"]).removeprefix("Input should be ") for e in errors
    )
    remedy = ""
    if isinstance(value, str) and value.startswith(("[", "(")):
        remedy = "; texts in a list take quotes of their own: ['a','b']"
    elif isinstance(value, str) and listed:
        remedy = f", as in [{value!r}]"
    return UsageError(f"{name}={value!r}: expected {' or '.join(wanted)}{remedy}")


def _same(value: Any) -> Iterator[Any]:
    """The same value in other types: plain numbers for NumPy's, whole floats as integers, lists as tuples."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):  # NumPy, torch
            value = value.tolist()
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, list | tuple | range):
            return (tuple if isinstance(value, tuple) else list)(map(plain, value))
        return value

    found = plain(value)
    yield found
    if isinstance(found, list):
        yield tuple(found)


@cache
def _adapter(hint: Any) -> Any:
    """What validates the type; None where pydantic knows nothing of it."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        own = dataclasses.is_dataclass(hint)  # has a configuration of its own
        return TypeAdapter(hint) if own else TypeAdapter(hint, config=config)
    except (PydanticUserError, NameError, TypeError):
        return None


def _hints(owner: Any) -> dict[str, Any]:
    """The resolved annotations of a function or class; those that cannot be resolved are left out."""
    try:
        return get_type_hints(owner, include_extras=True)
    except (NameError, AttributeError, TypeError):  # of the first that fails; the others are wanted
        pass
    found: dict[str, Any] = {}
    for holder in reversed(owner.__mro__) if isinstance(owner, type) else (inspect.unwrap(owner),):
        scope = vars(sys.modules[holder.__module__]) if holder.__module__ in sys.modules else {}
        for name, annotation in vars(holder).get("__annotations__", getattr(holder, "__annotations__", {})).items():
            one = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= get_type_hints(one, globalns=dict(scope), include_extras=True)
            except (NameError, AttributeError, TypeError):
                continue
    return found


@cache
def _types(group: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, where they can be resolved."""
    hints = _hints(group)
    return {field.name: hints[field.name] for field in dataclasses.fields(group) if field.name in hints}


def _groups(function: Callable[..., Any]) -> dict[str, type]:
    """Group of each parameter that is one: by its annotation, or by its default where that cannot be resolved."""
    hints, found = _hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, type(parameter.default))
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        group = [option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type)]
        if len(group) == 1 and {*options} <= {group[0], type(None)}:
            found[name] = group[0]
    return found


def _made(group: type, default: Any, given: Mapping[str, Any]) -> Any:
    """The group with what was given, the rest as in `default`."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.replace(default, **given)
    if default is None and not given:
        return None
    for field in dataclasses.fields(group):
        if field.name not in given and _default(field) is Kind.empty:
            raise UsageError(f"{field.name} is needed and was not given")
    return group(**given)


def _checked_group(name: str, value: Any, group: type) -> Any:
    """A group that was given itself, its values held against their types."""
    if value is None:
        return None
    if not isinstance(value, group):
        raise UsageError(f"{name}={value!r}: expected {group.__name__}, or its settings by their own names")
    found = {field: check(field, getattr(value, field), hint) for field, hint in _types(group).items()}
    return dataclasses.replace(value, **found)  # type: ignore[type-var]


def _positional(signature: inspect.Signature) -> list[str]:
    """Names of the parameters that may be given by position."""
    kinds = (Kind.POSITIONAL_ONLY, Kind.POSITIONAL_OR_KEYWORD)
    return [p.name for p in signature.parameters.values() if p.kind in kinds]


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, `Parameter.empty` where it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return Kind.empty if field.default_factory is dataclasses.MISSING else field.default_factory()


def _fields(parameter: Kind, hints: Mapping[str, Any], group: type | None) -> list[Kind]:
    """The parameter itself, or the fields of its group with the defaults that its own default gives them."""
    if group is None:
        return [parameter.replace(annotation=hints.get(parameter.name, Kind.empty))]
    given = parameter.default if dataclasses.is_dataclass(parameter.default) else None
    return [
        Kind(
            field.name,
            Kind.KEYWORD_ONLY,
            default=_default(field) if given is None else getattr(given, field.name),
            annotation=_types(group).get(field.name, Kind.empty),
        )
        for field in dataclasses.fields(group)
    ]
