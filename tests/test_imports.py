"""What may import what, and what must stay light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.contract import registry
from tests.import_graph import circles, graph, hall, longest_chain

ROOT = Path(__file__).parents[1]
NETWORKS = {"torch", "torchvision", "mmengine", "mmaction", "mmcv", "av", "cv2"}
HEAVY = NETWORKS | {"pandas", "matplotlib", "scipy", "sklearn"}
LIGHT = (
    "errors", "contract.declarations", "contract.groups", "contract.registry", "contract.values", "data.cards",
    "measure.metrics", "measure.provenance", "plan.protocol", "store.records",
)  # fmt: skip
PROBE = """
import json, sys
{body}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def loaded_after(body: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after `body`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(body=body)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*arguments: str) -> str:
    """Code that runs `bench.py` with these arguments and goes on when it exits with 0."""
    return f"""
import bench
sys.argv = ["bench", *{arguments!r}]
try:
    bench.main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("list", "methods"), ("run", "--help")], ids=" ".join)
def test_help_and_list_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded_after(command(*arguments)) & HEAVY == set()


def test_light_modules() -> None:
    imports = "\n".join(f"import harness.{name}" for name in LIGHT)
    assert loaded_after(imports) & NETWORKS == set()


def test_reports_load_no_torch() -> None:
    modules = [f"reports.{path.stem}" for path in (ROOT / "reports").glob("*.py") if path.stem != "__init__"]
    assert modules
    imports = "\n".join(f"import {name}" for name in ["reports", *modules])
    assert loaded_after(imports) & NETWORKS == set()


def test_the_probe_sees_torch() -> None:
    """The tests above could not fail otherwise."""
    assert "torch" in loaded_after("import harness.contract.trace, torch")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project_files() -> list[Path]:
    return [path for part in ("harness", "adafocus", "baselines", "reports") for path in (ROOT / part).rglob("*.py")]


def test_the_command_line_names_no_method() -> None:
    """It finds them through the registry; and nothing imports the command line."""
    assert [name for name in imported(ROOT / "bench.py") if name.partition(".")[0] in ("adafocus", "baselines")] == []
    assert [path for path in project_files() if "bench" in imported(path)] == []


def test_a_method_imports_no_other_method() -> None:
    """What two methods share is a layer; variants of one class are one method."""
    modules = {card.module for card in registry.method_cards().values()}
    assert modules
    offenders = {
        (module, other)
        for module in modules
        for other in imported(ROOT / (module.replace(".", "/") + ".py"))
        if other in modules - {module}
    }
    assert offenders == set()


def test_compat_comes_before_mmaction() -> None:
    """A file that imports mmaction's models is itself imported after harness.compat, or imports it first."""
    first = ("harness.compat.imports", "harness.contract.recognizer")
    for path in project_files():
        names = list(imported(path))
        if any(name.startswith("mmaction.models") for name in names):
            assert any(name.startswith(first) for name in names), path


def test_package_data_is_declared() -> None:
    """Files that are not Python, but needed at run time, are in the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    kinds = {
        f"*{path.suffix}"
        for part in ("harness", "adafocus", "baselines", "reports")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert kinds <= set(settings)


def test_no_circles_and_rooms_not_a_hall(tmp_path: Path) -> None:
    assert circles(graph(ROOT)) == []
    assert hall(ROOT) == ["errors"]
    lazy = "def f():\n    from harness import c"
    made = {"a": "import harness.b", "b": lazy, "c": "from harness.a import x", "d": ""}
    (tmp_path / "harness").mkdir()
    for name, text in made.items():
        (tmp_path / "harness" / f"{name}.py").write_text(text)
    (found,) = circles(graph(tmp_path))
    assert sorted(found) == ["harness.a", "harness.b", "harness.c"]
    assert longest_chain(graph(tmp_path, inside_functions=False)) == ["harness.c", "harness.a", "harness.b"]


ROOMS = sorted(path.parent for path in (ROOT / "harness").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_room_says_what_it_is_for(room: Path) -> None:
    """Its `__init__` is a text and nothing else; every module opens with one."""
    tree = ast.parse((room / "__init__.py").read_text())
    text = ast.get_docstring(tree) or ""
    assert text.startswith("Room: ") and len(text.splitlines()) >= 3 and len(tree.body) == 1
    for path in room.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert path.stem not in ("tools", "utils", "util", "common", "misc", "helpers"), path
