"""Files that are either whole or not there: written under a temporary name, flushed, renamed. No torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.values import plain
from harness.errors import BenchError


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that the file is either the old or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BenchError(f"cannot write {path}: {error.strerror}; free space or choose another --work-dir") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, NaN refused."""
    write_atomically(path, (json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, shape: type) -> dict[str, Any]:
    """The JSON object in `path`, held against the dataclass `shape`; further keys are left to the reader.

    Raises:
        BenchError: It cannot be read, is no JSON, or a key is missing or of another type; names file, key and type.
    """
    from pydantic import ValidationError  # a tenth of a second, which `--help` need not wait for

    try:
        data = path.read_bytes()
        _adapter(shape).validate_json(data, strict=True)
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise BenchError(f"{path} is damaged: no whole JSON") from None
        if first["type"] == "value_error":
            raise BenchError(f"{path} is damaged or foreign: {first['ctx']['error']}") from None
        key = ".".join(map(str, first["loc"])) or "the whole"
        wanted = str(first["msg"]).removeprefix("Input should be ")
        told = "is missing" if first["type"] == "missing" else f"must be {wanted}"
        raise BenchError(f"{path} is damaged or foreign: {key} {told}") from None
    value: dict[str, Any] = json.loads(data)
    return value


@cache
def _adapter(shape: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write a compressed .npz atomically; returns its `{file, sha256}` entry."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
    return {"file": path.name, "sha256": file_hash(path)}
