"""Which project sources a result was made with, and whether they have changed since. No torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "adafocus", "baselines")


def loaded() -> dict[str, str]:
    """Module name -> hash of its source, for every project module this process has imported."""
    names = sorted(n for n in sys.modules if n.partition(".")[0] in PACKAGES and n.partition(".")[2])
    files = {name: getattr(sys.modules[name], "__file__", None) for name in names}
    return {name: _hash(Path(path)) for name, path in files.items() if path and path.endswith(".py")}


def changed(recorded: Mapping[str, str]) -> list[str]:
    """Names of recorded modules whose source now differs or is gone."""
    return [name for name, value in recorded.items() if _current(name) != value]


def _current(name: str) -> str | None:
    module = sys.modules.get(name)
    path = Path(module.__file__) if module is not None and module.__file__ else ROOT.joinpath(*name.split("."))
    for candidate in (path, path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return _hash(candidate)
    return None


@cache
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
