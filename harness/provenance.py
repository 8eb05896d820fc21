"""Where a result comes from: packages, git, machine, command, and a hash of the sources it rests on.

No torch: `run --dry-run` asks whether a record is stale without importing anything heavy.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.cost.machine import fingerprint, installed, machine
from harness.errors import BenchError

PACKAGES = (
    "focusbench", "torch", "torchvision", "mmengine", "mmaction2", "mmcv-lite", "numpy", "scipy", "av",
    "opencv-contrib-python", "torchcodec", "fvcore",
)
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE")
OWN_PACKAGES = ("harness", "adafocus", "baselines")
ROOT = Path(__file__).resolve().parents[1]


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Everything about the surroundings of a result, as plain JSON.

    Args:
        command: The command line that made it (`sys.argv`).
    """
    here = machine()
    return {
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "python": platform.python_version(),
        "git": git_state(),
        "cpu": here.cpu,
        "cores": here.cores,
        "gpu": list(here.gpus),
        "driver": here.driver,
        "machine": fingerprint(),
        "platform": platform.platform(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "command": list(command),
    }


def git_state(root: Path = ROOT) -> dict[str, Any] | None:
    """`{revision, dirty}` of the project's own repository; None for an installed copy or without git."""
    if _git(root, "ls-files", "--error-unmatch", "harness/provenance.py") is None:
        return None  # no repository, or someone else's around an installed copy
    revision = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if revision is None or status is None else {"revision": revision.strip(), "dirty": bool(status.strip())}


def _git(root: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def sources_hash(modules: Iterable[str]) -> str:
    """Hash of the project sources behind `modules`: their files and all project files these import.

    Imports are read from the source, also those inside functions, so the hash depends neither on what
    else this process has loaded nor on importing anything. What is imported by a computed name (the
    registry does so) is not seen: name the method's module among `modules`.

    Args:
        modules: Dotted names, for example `("harness.evaluation", card.module)`. Their top packages
            count as project sources beside harness, adafocus and baselines.

    Raises:
        BenchError: a module of `modules` has no source file.
    """
    start = list(modules)
    packages = frozenset((*OWN_PACKAGES, *(name.partition(".")[0] for name in start)))
    found: dict[str, str] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = source_file(name)
        if path is None:
            if name in start:
                raise BenchError(f"module {name!r} has no source file to hash; is its package installed?")
            continue  # an imported attribute, not a module
        digest, imports = _read(path, path.stat().st_mtime_ns, name)
        found[name] = digest
        waiting += [child for child in imports if child.partition(".")[0] in packages]
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def source_file(module: str) -> Path | None:
    """The file of a module, found without importing the module; None where there is no such module."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        base = Path(location).joinpath(*rest)
        for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _read(path: Path, mtime_ns: int, module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of a file and the dotted names it may import; `mtime_ns` keys the cache."""
    data = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return hashlib.sha256(data).hexdigest(), tuple(sorted(set(_imports(ast.parse(data, str(path)), package))))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(p for p in (above, node.module or "") if p)
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    """`a.b.c` imports a, a.b and a.b.c."""
    parts = name.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
