"""Which project sources a result was made with, and whether they have changed since. No torch."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from harness.contract.registry import method_cards

ROOT = Path(__file__).resolve().parents[2]


def loaded(inputs: Iterable[Mapping[str, str]] = ()) -> dict[str, str]:
    """Module name -> hash of its source: what this process has imported, and what its `inputs` were made with."""
    packages = {"harness", *(card.module.partition(".")[0] for card in method_cards().values())}
    names = sorted(n for n in sys.modules if n.partition(".")[0] in packages and n.partition(".")[2])
    files = {name: getattr(sys.modules[name], "__file__", None) for name in names}
    found = {name: value for made_with in inputs for name, value in made_with.items()}
    return found | {name: _hash(Path(path)) for name, path in files.items() if path and _is_code(Path(path))}


def _is_code(path: Path) -> bool:
    """Whether a result can rest on a file; not on an `__init__` that only says what its package is for."""
    if path.suffix != ".py" or path.stem != "__init__":
        return path.suffix == ".py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def changed(recorded: Mapping[str, str]) -> list[str]:
    """Names of recorded modules whose source now differs or is gone."""
    return [name for name, value in recorded.items() if _current(name) != value]


def _current(name: str) -> str | None:
    own = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if own.is_file():
        return _hash(own)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return _hash(Path(spec.origin)) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


@cache
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
