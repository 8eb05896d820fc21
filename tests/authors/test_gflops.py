"""`bench.py gflops`: measured beside published, and one method's parts."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from harness.authors.paper_costs import measure_paper
from harness.authors.published import PaperRow, exit_table, paper_table
from harness.commands.gflops import render_method, render_paper
from harness.contract.registry import method_cards
from harness.contract.values import plain
from harness.measure.parts import method_table

RECURRENT = {
    "adafocus-v1": ("policy", "classifier"),
    "adafocus-v1-plus": ("policy", "classifier", "skip policy"),
    "adafocus-v1-tsm": ("policy",),
    "adafocus-v2": ("policy",),
    "ar-net": ("decisions",),
}
"""Components with a GRU or LSTM, which fvcore does not count."""


def printed(*tables):
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.fixture(scope="module", name="measured")
def _measured():
    """The cheapest row of each glance network and of each other method that this version has."""
    chosen: dict[tuple, PaperRow] = {}
    for row in paper_table():
        if row.settings is not None:
            key = row.method, row.settings.get("glance")
            if key not in chosen or row.gflops < chosen[key].gflops:
                chosen[key] = row
    return measure_paper(chosen.values())


def test_published_costs_are_met(measured):
    assert {r["method"] for r in measured} == {r.method for r in paper_table()} <= set(method_cards())
    for result in measured:
        assert result["status"] == "measured"
        assert result["ok"], result
        assert abs(result["difference"]) <= 0.005
        if result["from_constants"] is not None:  # without the batch-norm channels of the authors' constants
            assert result["counted"] == pytest.approx(result["from_constants"], rel=3e-4)


def test_published_exit_costs_are_met():
    """The first exits of every kind: later ones repeat them, and the last is the whole forward."""
    first: dict[tuple, PaperRow] = {}
    for row in exit_table():
        if row.point["exit_at"] < (4 if row.method == "uni-adafocus" else 2):
            first.setdefault((row.method, row.point["exit_at"]), row)
    results = measure_paper(first.values())
    assert len(results) == 2 + 4 + 2 + 2
    for result in results:
        assert result["ok"], result
        assert result["counted"] == pytest.approx(result["from_constants"], rel=1e-3)
        assert result["executed"] <= result["counted"]
    fixed, exits = render_paper([*measure_paper([paper_table()[10]]), *results])
    assert "exit" not in printed(fixed) and "exit" in printed(exits)


def test_training_only_parts_stand_apart(measured):
    heads = {r["dataset"] + r["variant"]: r for r in measured if r["method"] == "adafocus-v2"}
    for result in heads.values():
        assert 0.001 < result["training_only"] / result["counted"] < 0.002
        assert result["executed"] + result["training_only"] == pytest.approx(result["counted"])
    (mobile,) = [r for r in heads.values() if r["variant"].startswith("MobileNetV2")]
    auxiliary = 16 * (1280 + 2048) * 200 + 15 * 4096 * 200
    assert mobile["training_only"] * 1e9 == pytest.approx(auxiliary, rel=1e-9)


def test_disagreement_is_seen():
    (row,) = [r for r in paper_table() if r.method == "tsn"]
    (result,) = measure_paper([dataclasses.replace(row, gflops=33.2)])
    assert result["ok"] is False
    assert result["difference"] == pytest.approx(32.7 / 33.2 - 1, abs=1e-3)
    assert "off" in printed(*render_paper([result]))


def test_rows_of_other_versions_are_listed_unmeasured():
    row = dataclasses.replace(paper_table()[0], method="not-there")
    (result,) = measure_paper([row])
    assert (result["status"], result["ok"], result["counted"]) == ("not in this version", None, None)
    assert "not in this version" in printed(*render_paper([result]))


def test_rendered_and_json(measured):
    text = printed(*render_paper(measured))
    assert "TSM" in text and "32.7" in text and "off" not in text.split("counted:")[0]
    assert json.loads(json.dumps(plain(measured))) == measured


@pytest.mark.parametrize("name", [name for name, card in method_cards().items() if "tiny" in card.sizes])
def test_every_method_has_a_tiny_table(name):
    result = method_table(name, size="tiny", num_classes=10)
    executed = [p for p in result["parts"] if not p["training_only"]]
    assert sum(p["gflops"] for p in executed) == pytest.approx(result["executed"])
    assert sum(p["share"] for p in executed) == pytest.approx(1)
    assert all(p["gflops"] == pytest.approx(p["mmacs"] * p["rows"] / 1e3) for p in result["parts"])
    assert result["executed"] > 0
    for part in result["parts"]:
        if part["component"] in RECURRENT.get(name, ()):
            assert part["fvcore"] < part["gflops"]
        else:
            assert part["fvcore"] == pytest.approx(part["gflops"], rel=1e-9), part["component"]
    assert 0.9 < result["fvcore"] / result["executed"] <= 1 + 1e-9
    json.dumps(plain(result))
    assert executed[0]["component"] in printed(render_method(result))


def test_a_variant_is_counted_under_its_name():
    name = "adafocus-v2[patch_policy=random,patch_size=24]"
    result = method_table(name, size="tiny", num_classes=10)
    assert {p["component"] for p in result["parts"]} >= {"glance", "focus"}
    assert {tuple(p["shape"]) for p in result["parts"] if p["component"] == "focus"} == {(3, 24, 24)}
    assert name in printed(render_method(result))


def test_tsn_in_closed_form():
    """ResTiny at 64 px is 8.50 MMACs (docs/embedded-sets.md#recipes); eight frames and their heads."""
    result = method_table("tsn", size="tiny", num_classes=10)
    (part,) = result["parts"]
    assert part["rows"] == 8
    assert part["mmacs"] == pytest.approx(8.50, abs=0.01)
    assert result["executed"] == pytest.approx(8 * part["mmacs"] / 1e3)
    fewer = method_table("tsn", size="tiny", num_classes=10, point={"frames": 2})
    assert fewer["executed"] == pytest.approx(result["executed"] / 4)
