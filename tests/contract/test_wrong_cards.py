"""Other people's cards, modules and recipes that are wrong: one named problem, and the rest goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.authors import official, parity
from harness.commands.doctor import check_methods
from harness.contract import registry
from harness.contract.registry import method_cards, recognizer_class
from harness.errors import BenchError, CheckpointError
from harness.plan import recipes

CARD = """CARD = {"name": "m", "class": "M", "title": "M", "paper": "-", "year": 2020, "adapts": [], "fidelity": "D",
"source": "-", "summary": "-"}
"""
STAGE = b'[[stages]]\nname = "s"\nepochs = 1\nbatch_size = 1\nlr = 1\n'


def read(path: Path, text: str | bytes) -> list[object]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(registry._cards_in("m", path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CARD = {", "is no Python"),
        (b"# CARD \xff\n", "is not UTF-8 text"),
        ("CARD = 3", "must be a literal dict"),
        ("CARD = dict(name='m')", "must be a literal dict"),
        ('CARD = {"name": "m"}', "CARD lacks title"),
        (CARD.replace("2020", '"new"'), "card.year='new': expected a valid integer"),
        (CARD.replace("[]", '"space"'), "card.adapts='space': expected a list"),
        (CARD.replace("[]", '["speed"]'), "adapts must be among"),
        (CARD.replace('"year"', '"jear"'), "did you mean 'year'"),
        (CARD.replace('"year"', '"variants": ["a"], "year"'), "variants=['a']"),
    ],
)
def test_wrong_cards_are_named(tmp_path: Path, text: str | bytes, told: str) -> None:
    assert len(read(tmp_path / "right.py", CARD)) == 1
    with pytest.raises(BenchError) as caught:
        read(tmp_path / "wrong.py", text)
    assert told in str(caught.value) and "wrong.py" in str(caught.value)


@pytest.fixture
def one_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo in which one card names a module of authors that is not there."""
    cards = {"aaa": replace(method_cards()["tsn"], name="aaa", authors="nowhere.authors"), **method_cards()}
    for module in (official, parity, registry):
        monkeypatch.setattr(module, "method_cards", lambda: cards)


def test_one_wrong_authors_module_leaves_the_others_working(
    one_wrong: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "the card of aaa names authors 'nowhere.authors', not importable: ModuleNotFoundError"
    with pytest.raises(CheckpointError, match="no official checkpoint"):
        official.convert({"a": torch.zeros(1)})
    assert told in capsys.readouterr().err
    with pytest.raises(BenchError, match="the card of aaa"):
        official.convert({"a": torch.zeros(1)}, method="aaa")
    (tmp_path / "pair.json").write_text(json.dumps({"method": "x", "tensors": {}}))
    np.savez(tmp_path / "pair.npz", out=np.zeros(1))
    (result,) = parity.run_parity(tmp_path)
    assert result.status == "unsupported" and told in result.detail
    assert [f.level for f in check_methods()] == ["fail", "ok"]


def test_a_class_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(method_cards()["tsn"], cls="NoSuchClass")
    monkeypatch.setattr(registry, "method_cards", lambda: {"tsn": wrong})
    with pytest.raises(BenchError, match="method tsn: baselines.tsn.NoSuchClass cannot be imported"):
        recognizer_class("tsn")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"method = ", "recipe.toml: "),
        (b'method = 3\ndataset = "d"\nsource = "s"', "recipe.method=3: expected a valid string"),
        (b'method = "m"', "recipe lacks dataset, source"),
        (b'stages = "x"', "stages='x': expected a list"),
        (b"stages = [1]", "stages=[1]: expected a valid dictionary"),
        (b'[[stages]]\nname = "s"', "stage lacks epochs, batch_size, lr"),
        (STAGE.replace(b"lr = 1", b'lr = "fast"'), "stage.lr='fast'"),
        (STAGE + b'trained = "fc"', "stage.trained='fc': expected a list"),
        (STAGE + b"groups = [3]", "stage.groups: expected settings by name"),
        (STAGE + b"groups = 3", "stage.groups=3"),
        (STAGE + b'init = [{source = "x"}]', "init source 'x'"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "recipe.toml").write_bytes(text)
    with pytest.raises(BenchError) as caught:
        recipes._read(tmp_path / "recipe.toml")
    assert told in str(caught.value) and "recipe.toml" in str(caught.value)
