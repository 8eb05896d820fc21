"""Which code and which surroundings shaped a result, and whether they have changed since. No torch.

A result rests on what shapes *it*, and on nothing else:

    stills       what a training rests on, and the pictures that stand in for ImageNet
    training     the method and its layers, the way from a file to a clip, the loop and its optimizer
    evaluation   that, and what runs a method at its points, counts and scores (room `measure`)
    latency      that, and the stopwatch

Of these only modules count that the job imported, and those its inputs rest on. What decides which work is done, how it
is named and where it lies never counts: it stands in the key, or has no say in a figure. A module's hash is that of its
syntax tree without docstrings, so comments, docstrings and line breaks change nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from harness.contract.registry import method_cards

ROOT = Path(__file__).resolve().parents[2]
Kind = Literal["stills", "training", "evaluation", "latency"]
"""Kinds of results, by what they rest on."""
PACKAGES = ("torch", "torchvision", "av")
"""Packages whose version may change a result."""

TRAINS: tuple[Kind, ...] = ("stills", "training", "evaluation", "latency")
SCORES: tuple[Kind, ...] = ("evaluation", "latency")
TIMES: tuple[Kind, ...] = ("latency",)
DRAWS: tuple[Kind, ...] = ("stills",)
NEVER: tuple[Kind, ...] = ()

SHAPES: Mapping[str, tuple[Kind, ...]] = {
    "harness": NEVER,
    "harness.layers": TRAINS,
    "harness.contract": TRAINS,
    "harness.contract.exits": SCORES,
    "harness.contract.frames": SCORES,
    "harness.contract.groups": NEVER,
    "harness.contract.names": NEVER,
    "harness.contract.registry": NEVER,
    "harness.contract.segments": SCORES,
    "harness.contract.trace": SCORES,
    "harness.contract.values": NEVER,
    "harness.compat": TRAINS,
    "harness.compat.checkpoints": NEVER,
    "harness.compat.counting": SCORES,
    "harness.compat.imports": NEVER,
    "harness.compat.memory": NEVER,
    "harness.data": TRAINS,
    "harness.data.cards": NEVER,
    "harness.data.check": NEVER,
    "harness.data.identity": NEVER,
    "harness.data.lists": NEVER,
    "harness.data.videos": NEVER,
    "harness.data.lazy": TIMES,
    "harness.data.reader": TIMES,
    "harness.data.encode": DRAWS,
    "harness.data.glyphs": DRAWS,
    "harness.data.render": DRAWS,
    "harness.engine": TRAINS,
    "harness.engine.forms": SCORES,
    "harness.engine.precision": SCORES,
    "harness.engine.rows": SCORES,
    "harness.engine.stream": TIMES,
    "harness.plan.building": TRAINS,
    "harness.measure": SCORES,
    "harness.measure.files": TIMES,
    "harness.measure.latency": TIMES,
    "harness.measure.launches": TIMES,
    "harness.measure.machine": TIMES,
    "harness.measure.streaming": TIMES,
    "harness.measure.timing": TIMES,
    "harness.measure.provenance": NEVER,
    "harness.work": TRAINS,
    "harness.work.execution": NEVER,
    "harness.work.jobs": NEVER,
    "harness.work.processes": NEVER,
    "harness.work.scheduler": NEVER,
    "harness.work.stills": DRAWS,
    "harness.work.timing_session": TIMES,
    "harness.work.timing_worker": TIMES,
}
"""Module or room -> kinds of results that it shapes; the longest name holds, packages of methods shape them all.
Of the room `data` what cards, lists and checks decide is in the fingerprint."""
ELSEWHERE = ("harness.measure.launches", "harness.work.timing_session", "harness.work.timing_worker")
"""What shapes a latency in other processes than the one that times, or as `__main__`: no import there names it."""


def loaded(kind: Kind, inputs: Iterable[Mapping[str, str]] = ()) -> dict[str, str]:
    """Module name -> hash of its code: of what this process imported what shapes a result, and what its inputs have.

    Where an input was made by another code of a module than today's, that one counts: the result rests on it.
    """
    packages = {"harness", *(card.module.partition(".")[0] for card in method_cards().values())}
    names = sorted(n for n in sys.modules if n.partition(".")[0] in packages and kind in _shapes(n))
    files = {name: getattr(sys.modules[name], "__file__", None) for name in names}
    found = {name: _hash(Path(path)) for name, path in files.items() if path and _is_code(Path(path))}
    if kind == "latency":
        found |= {name: str(_current(name)) for name in ELSEWHERE}
    rested_on = (item for rests_on in inputs for item in rests_on.items())
    return found | dict(sorted(rested_on, key=lambda item: item[1] != _current(item[0])))


def made_with(device: str) -> dict[str, str]:
    """The surroundings that a result rests on: `cpu` or `cuda`, and versions of packages."""
    return {"device": device.partition(":")[0], **{name: installed(name) or "not installed" for name in PACKAGES}}


def changed(result: Mapping[str, Any], device: str) -> list[str]:
    """What a description or record rests on that is another now: modules by name, packages with both versions.

    Args:
        result: With `sources`, `made_with` where it is known, `changed_midway` where that happened.
        device: On which it would be made now.
    """
    modules = [name for name, value in result["sources"].items() if _current(name) != value]
    here, then = made_with(device), result.get("made_with", {})
    around = [f"{n} {then[n]}, this is {here[n]}" for n in here if n in then and then[n] != here[n]]
    return [*modules, *around, *(["in mid-training"] if result.get("changed_midway") else [])]


def _shapes(name: str) -> tuple[Kind, ...]:
    while name not in SHAPES and "." in name:
        name = name.rpartition(".")[0]
    return SHAPES.get(name, TRAINS)


def installed(package: str) -> str | None:
    """Version of an installed package, read from its metadata without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_code(path: Path) -> bool:
    """Whether a result can rest on a file; not on an `__init__` that only says what its package is for."""
    if path.suffix != ".py" or path.stem != "__init__":
        return path.suffix == ".py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def _current(name: str) -> str | None:
    own = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if own.is_file():
        return _hash(own)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return _hash(Path(spec.origin)) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


@cache
def _hash(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # in the middle of an edit
        return "no Python"
    return hashlib.sha256(repr(_structure(tree)).encode()).hexdigest()[:12]


def _structure(node: Any) -> Any:
    """A syntax tree as nested lists, without texts that do nothing and empty fields (these differ between Pythons)."""
    if isinstance(node, list):
        return [_structure(n) for n in node if not _is_text(n)]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return [type(node).__name__, *([name, _structure(value)] for name, value in fields)]


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
