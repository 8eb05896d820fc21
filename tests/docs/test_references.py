"""References hold: from the code to the documents, between documents, and to files that are named."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES = TOP + sorted((ROOT / "docs").rglob("*.md"))
SOURCES = [
    path
    for part in ("harness", "adafocus", "baselines", "reports", "tests")
    for pattern in ("*.py", "*.toml")
    for path in sorted((ROOT / part).rglob(pattern))
] + [ROOT / "bench.py", ROOT / "pyproject.toml"]
REFERENCE = re.compile(r"(?<![\w/])(docs/[\w/-]+\.md)((?:,? ?#[\w-]+)*)")
PRIVATE = re.compile(r"(?<![\w/-])(?:adafocus|baselines|synthetic|design|protocols|style)\.md")


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page; headings in code blocks are none."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return frozenset(slug(re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings)


def test_slugs() -> None:
    assert slug("On TSM") == "on-tsm" and slug("V1 plus") == "v1-plus" and slug("GFLOPs, counted") == "gflops-counted"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_code_refers_to_is_there(path: Path) -> None:
    if path == Path(__file__):
        pytest.skip("names what others may not")
    text = path.read_text(encoding="utf-8")
    assert not PRIVATE.findall(text), "a page that a reader of the project does not have"
    for page, parts in REFERENCE.findall(text):
        assert (ROOT / page).is_file(), page
        for anchor in re.findall(r"#([\w-]+)", parts):
            assert anchor in anchors(ROOT / page), f"{page}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not PRIVATE.findall(text)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_pages_name(page: Path) -> None:
    """`harness/room/module.py` in a text is a file; what a reader is to make is said so in capitals."""
    if page.name == "CHANGELOG.md":
        pytest.skip("names what was")
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:harness|adafocus|baselines|reports|tests)/[\w/.-]+\.(?:py|toml|csv))`", text):
        made = name.startswith("baselines/my_") or any(part.isupper() for part in re.split(r"[/.]", name))
        assert made or (ROOT / name).is_file(), name
    for dotted in re.findall(r"`((?:harness|adafocus|reports)\.[a-z_0-9.]+)(?:\.[A-Za-z_]+)?`", text):
        parts = dotted.split(".")
        assert any(
            (ROOT.joinpath(*parts[:n]).with_suffix(".py").is_file() or ROOT.joinpath(*parts[:n]).is_dir())
            for n in range(2, len(parts) + 1)
        ), dotted


def test_nothing_points_outside() -> None:
    """No tracked text file names a folder of a machine."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in done.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".ini", ".yaml", ".svg", ".html", ".css") and path.is_file():
            assert "/home/" not in path.read_text(encoding="utf-8") or path == Path(__file__), name
