"""`compare`: pairing, significance, what is only in one folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.errors import BenchError
from reports.compare import compare
from tests.reports.conftest import AR_NET, TSN, V2, Factory

STATIC = dataclasses.replace(TSN, curve=())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Factory, Factory]:
    return Factory(tmp_path / "a"), Factory(tmp_path / "b")


def test_a_folder_against_itself_shows_no_difference(folders):
    a, b = folders
    for factory in folders:
        factory.evaluation(TSN)
    found = compare(a.work_dir, b.work_dir)
    assert [c.point for c in found.changes] == ["full", "frames=1", "frames=2", "frames=4"]
    assert all((c.difference, c.p, c.significant) == (0.0, 1.0, False) for c in found.changes)
    assert not (found.only_a or found.only_b or found.not_comparable)


def test_a_clear_loss_is_significant_and_signed(folders):
    a, b = folders
    before = a.evaluation(STATIC)
    b.evaluation(dataclasses.replace(STATIC, skill=1.0))
    (change,) = compare(a.work_dir, b.work_dir).changes
    assert change.a == pytest.approx(before.result["points"][0]["metrics"]["top1"]["value"])
    assert change.difference == pytest.approx(change.b - change.a)
    assert change.high < 0 and change.significant
    assert "*" in compare(a.work_dir, b.work_dir).to_text().splitlines()[1]


def test_cells_of_one_folder_only_are_listed(folders):
    a, b = folders
    a.evaluation(STATIC)
    b.evaluation(STATIC)
    a.evaluation(AR_NET)
    b.evaluation(V2, seed=3)
    found = compare(a.work_dir, b.work_dir)
    assert found.only_a == ("ar-net (tiny) on glyphs, seed 0",)
    assert found.only_b == ("adafocus-v2 (tiny) on glyphs, seed 3",)
    assert len(found.changes) == 1


def test_other_videos_or_data_cannot_be_paired(folders):
    a, b = folders
    a.evaluation(STATIC, videos=40)
    b.evaluation(STATIC, videos=50)
    a.evaluation(AR_NET, fingerprint="one")
    b.evaluation(AR_NET, fingerprint="two")
    found = compare(a.work_dir, b.work_dir)
    assert not found.changes
    assert [reason.partition(": ")[2] for reason in found.not_comparable] == [
        "the data differ (fingerprints one and two)",
        "the test videos differ",
    ]


def test_costs_and_clocks_of_one_setup_are_compared(folders):
    a, b = folders
    for factory, cost, ms in ((a, 0.068, 10.0), (b, 0.034, 6.0)):
        record = factory.evaluation(dataclasses.replace(STATIC, gflops=cost))
        factory.latency(record, ms=ms)
        factory.latency(record, ms=ms, device=f"machine of {ms}")
    (change,) = compare(a.work_dir, b.work_dir).changes
    assert (change.gflops_a, change.gflops_b) == (pytest.approx(0.068), pytest.approx(0.034))
    ((before, after),) = change.latency.values()
    assert after / before == pytest.approx(0.6)
    assert "0.0680 → 0.0340" in compare(a.work_dir, b.work_dir).to_text()


def test_settings_are_shown_where_a_method_has_several(folders):
    a, b = folders
    for factory in folders:
        for patch in (16, 32):
            factory.evaluation(dataclasses.replace(STATIC, settings={"patch": patch}))
    text = compare(a.work_dir, b.work_dir).to_text()
    assert '{"patch": 16}' in text and '{"patch": 32}' in text


def test_json_and_markdown_hold_the_same_rows(folders):
    a, b = folders
    for factory in folders:
        factory.evaluation(TSN)
    found = compare(a.work_dir, b.work_dir)
    parsed = json.loads(json.dumps(found.to_json()))
    assert [c["point"] for c in parsed["changes"]] == [c.point for c in found.changes]
    assert found.to_markdown().count("\n| ") == 2 + len(found.changes)


def test_an_empty_folder_is_an_error(folders):
    a, b = folders
    a.evaluation(STATIC)
    b.work_dir.mkdir()
    with pytest.raises(BenchError, match="no finished evaluation"):
        compare(a.work_dir, b.work_dir)


def test_nothing_in_common_is_said(folders):
    a, b = folders
    a.evaluation(STATIC)
    b.evaluation(AR_NET)
    assert "no cell is in both folders" in compare(a.work_dir, b.work_dir).to_text()
