"""Frozen dataclasses as settings: built from plain mappings, unknown keys refused, written back as JSON."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from harness.errors import UsageError, unknown

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, kind: str | None = None) -> T:
    """Build the dataclass `cls` from `mapping`.

    Raises:
        UsageError: No mapping, an unknown key (with a suggestion), or one that is needed is missing.
    """
    kind = kind or cls.__name__
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{kind}: expected settings by name, not {mapping!r}")
    fields = [f for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in mapping:
        if key not in {f.name for f in fields}:
            raise unknown(f"{kind} setting", key, (f.name for f in fields))
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in mapping]:
        raise UsageError(f"{kind} lacks {', '.join(missing)}")
    return cls(**mapping)


def literal(text: str) -> Any:
    """A value as typed on the command line: a Python literal, true, false or none in any case, else the text."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # no literal, or one nested too deeply
        return text


def setting_value(text: str) -> Any:
    """A method's setting as typed: a `literal`, 8.0 as 8, which is the same setting."""
    value = literal(text)
    exact = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if exact else value


def split_outside_brackets(text: str, separator: str = ",", most: int = -1) -> list[str]:
    """The stripped, non-empty parts of `text` between separators outside brackets and quotes; at most `most` cuts."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        elif not quote:
            depth += (character in "[({") - (character in "])}")
        if character == separator and not quote and depth <= 0 and most != len(parts) - 1:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what JSON can hold, with sorted keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # numpy scalars
        return value.item()
    return value


def digest(value: Any, length: int = 16) -> str:
    """A short stable hash of a settings tree, used in keys and fingerprints."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
