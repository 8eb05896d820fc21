"""What a result rests on, and what makes it stale."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import baselines.tsn  # noqa: F401
import harness.measure.latency
import harness.measure.recording
import harness.work.training  # noqa: F401
from harness.store import sources

KINDS: tuple[sources.Kind, ...] = ("training", "evaluation", "latency")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's code, which results are held against; they were made with the real one."""
    for part in ("harness", "baselines", "adafocus"):
        shutil.copytree(sources.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "recipes"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def stale(project: Path) -> Callable[[], dict[str, list[str]]]:
    """Asks which modules have changed since results of each kind were made."""
    made = {kind: {"sources": sources.loaded(kind)} for kind in KINDS}

    def ask() -> dict[str, list[str]]:
        sources._hash.cache_clear()
        return {kind: sources.changed(made[kind], "cpu") for kind in KINDS}

    return ask


def test_no_edit_of_a_text_makes_anything_stale(project: Path, stale: Callable[[], dict[str, list[str]]]) -> None:
    for path in project.rglob("*.py"):
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text), clean=False)
        if docstring:
            text = text.replace(docstring, f"Another word. {docstring}", 1)
        text = text.replace("\n\n\ndef ", "\n\n\n\n# why\ndef ")
        path.write_text(f"{text}\n# the end\n")
    assert stale() == {kind: [] for kind in KINDS}


SHAPES = {
    "harness.layers.frame_classifier": ("training", "evaluation", "latency"),
    "baselines.tsn": ("training", "evaluation", "latency"),
    "harness.data.transforms": ("training", "evaluation", "latency"),
    "harness.work.optimization": ("training", "evaluation", "latency"),
    "harness.measure.metrics": ("evaluation", "latency"),
    "harness.measure.cost_table": ("evaluation", "latency"),
    "harness.contract.exits": ("evaluation", "latency"),
    "harness.measure.latency": ("latency",),
    "harness.measure.launches": ("latency",),
    "harness.work.timing_session": ("latency",),
    "harness.work.timing_worker": ("latency",),
    "harness.work.processes": (),
    "harness.errors": (),
    "harness.contract.registry": (),
    "harness.store.records": (),
    "harness.store.files": (),
    "harness.plan.planner": (),
    "harness.data.cards": (),
}
"""Module -> kinds of results that it shapes."""


def test_an_edit_makes_stale_what_it_shapes(project: Path, stale: Callable[[], dict[str, list[str]]]) -> None:
    for module in SHAPES:
        path = project.joinpath(*module.split(".")).with_suffix(".py")
        path.write_text(path.read_text() + "\nCHANGED = 1\n")
    for kind, found in stale().items():
        assert set(found) == {module for module, kinds in SHAPES.items() if kind in kinds}, kind


def test_pictures_shape_the_stills_alone() -> None:
    assert "harness.data.glyphs" in sources.loaded("stills")
    assert "harness.data.glyphs" not in sources.loaded("training")


def test_what_inputs_rest_on_counts() -> None:
    assert sources.loaded("training", [{"harness.data.glyphs": "abc"}])["harness.data.glyphs"] == "abc"


def test_what_the_weights_were_made_by_counts_and_not_the_code_of_today() -> None:
    today, other = sources.loaded("training")["baselines.tsn"], "other"
    for inputs in ([other], [other, today], [today, other]):
        found = sources.loaded("evaluation", [{"baselines.tsn": value} for value in inputs])
        assert found["baselines.tsn"] == other and sources.changed({"sources": found}, "cpu") == ["baselines.tsn"]


def test_how_launches_are_ordered_and_joined_counts_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("harness.measure.launches", "harness.work.timing_session", "harness.work.timing_worker"):
        monkeypatch.delitem(sources.sys.modules, name, raising=False)
        assert name in sources.loaded("latency") and name not in sources.loaded("evaluation")


def test_device_and_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"sources": {}, "made_with": {**sources.made_with("cuda:0"), "torch": "2.0.0"}}
    monkeypatch.setattr(sources, "version", {"torch": "2.1.0", "torchvision": "1", "av": "2"}.get)
    made["made_with"] |= {"torchvision": "1", "av": "2"}
    assert sources.changed(made, "cpu") == ["device cuda, this is cpu", "torch 2.0.0, this is 2.1.0"]
    assert sources.changed({"sources": {}}, "cpu") == [], "what is not known is not held against it"
    assert sources.changed({"sources": {}, "changed_midway": ["harness.layers.crop"]}, "cpu") == ["in mid-training"]
