"""How the modules of this project hang together: counts, circles, the longest chain of imports.

    python -m tests.import_graph [ROOT]

Imports inside functions count as imports; those for type checkers only are counted among circles too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

PARTS = ("harness", "adafocus", "baselines", "reports", "bench")
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of all modules of the project; `__init__` files count as their package."""
    found = {}
    for part in PARTS:
        single = root / f"{part}.py"
        for path in [single] if single.exists() else sorted((root / part).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def graph(root: Path, *, inside_functions: bool = True) -> Graph:
    """Module -> project modules that it imports."""
    files = modules(root)
    return {name: set(_imports(path, files, inside_functions)) - {name} for name, path in files.items()}


def circles(edges: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or around a corner (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in edges:
        if name not in order:
            visit(name)
    return found


def longest_chain(edges: Graph) -> list[str]:
    """The longest chain of modules that import one another; needs a graph without circles to be exact."""
    best: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in best:
            best[name] = [name]  # cuts circles
            best[name] = [name, *max((chain(other) for other in edges[name]), key=len, default=[])]
        return best[name]

    return max((chain(name) for name in edges), key=len)


def _imports(path: Path, files: Mapping[str, Path], inside_functions: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [name for name in (whole, node.module) if name in files][:1]


def main(root: Path) -> None:
    """Print the figures."""
    whole, top = graph(root), graph(root, inside_functions=False)
    print(f"modules {len(whole)}, at the top of harness {len(hall(root))}")
    print(f"circles {len(circles(whole))}: {circles(whole)}")
    for what, edges in (("all imports", whole), ("at the top of files", top)):
        found = longest_chain(edges)
        print(f"longest chain, {what}: {len(found)}: {' -> '.join(found)}")


def hall(root: Path) -> list[str]:
    """Modules of the harness that stand in no room."""
    return sorted(path.stem for path in (root / "harness").glob("*.py") if path.stem != "__init__")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
