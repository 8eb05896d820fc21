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


def test_a_clear_loss_over_three_seeds_is_significant_and_signed(folders):
    a, b = folders
    before = [a.evaluation(STATIC, seed) for seed in range(3)]
    for seed in range(3):
        b.evaluation(dataclasses.replace(STATIC, skill=1.0), seed)
    (change,) = compare(a.work_dir, b.work_dir).changes
    values = [r.result["points"][0]["metrics"]["top1"]["value"] for r in before]
    assert change.a == pytest.approx(sum(values) / 3)
    assert change.difference == pytest.approx(change.b - change.a)
    assert change.high < 0 and change.significant and change.seeds == (3, 3)
    assert "*" in compare(a.work_dir, b.work_dir).to_text().splitlines()[1]


def test_one_seed_compares_two_networks_only(folders):
    a, b = folders
    a.evaluation(STATIC)
    b.evaluation(dataclasses.replace(STATIC, skill=1.0))
    found = compare(a.work_dir, b.work_dir)
    (change,) = found.changes
    assert change.p < 0.001 and not change.significant
    assert "compare networks, not methods" in found.to_text()
    assert "*" not in found.to_text().splitlines()[1]


def test_training_noise_is_no_significant_change(folders):
    a, b = folders
    for seed in range(3):
        a.evaluation(STATIC, seed)
        b.evaluation(STATIC, seed + 10)
    (change,) = compare(a.work_dir, b.work_dir).changes
    assert change.covers_training and not change.significant


def test_folds_and_recipes_are_cells_of_their_own(folders):
    for number, factory in enumerate(folders):
        for fold in range(5):
            factory.evaluation(STATIC, part=f"fold={fold}", fingerprint=f"f{fold}")
        factory.evaluation(STATIC)
        base = factory.evaluation(AR_NET)
        stages = [{**stage, "recipe": f"r{number}"} for stage in base.result["training"]["stages"]]
        factory.evaluation(AR_NET, training={**base.result["training"], "stages": stages})
    a, b = folders
    found = compare(a.work_dir, b.work_dir)
    assert sorted(c.part or "" for c in found.changes) == ["", "", *(f"fold={fold}" for fold in range(5))]
    assert "glyphs (fold=4)" in found.to_text()
    assert len(found.only_a) == len(found.only_b) == 1 and "recipe" in found.only_a[0]


def test_p_is_corrected_for_the_number_of_rows(folders):
    a, b = folders
    for seed in range(3):
        a.evaluation(TSN, seed)
        b.evaluation(dataclasses.replace(TSN, skill=3.0), seed)
    changes = compare(a.work_dir, b.work_dir).changes
    smallest = min(changes, key=lambda c: c.p)
    assert smallest.p_holm == pytest.approx(4 * smallest.p)


def test_cells_of_one_folder_only_are_listed(folders):
    a, b = folders
    a.evaluation(STATIC)
    b.evaluation(STATIC)
    a.evaluation(AR_NET)
    b.evaluation(V2, seed=3)
    found = compare(a.work_dir, b.work_dir)
    assert found.only_a == ("ar-net (tiny) on glyphs",)
    assert found.only_b == ("adafocus-v2 (tiny) on glyphs",)
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


def test_marks_of_latencies_are_kept(folders):
    a, b = folders
    a.latency(a.evaluation(STATIC), disturbed=["load 0.62 per core by other processes"], engine="compiled",
              compiled_share=0.95)  # fmt: skip
    b.latency(b.evaluation(STATIC), engine="compiled", compiled_share=0.06)
    found = compare(a.work_dir, b.work_dir)
    assert "1: 1.00 † partly compiled (6%)" in found.to_text()
    for told in (found.to_text(), found.to_markdown(), " ".join(found.to_json()["notes"])):
        assert "† taken while the machine was busy: load 0.62 per core by other processes." in told
    (notes,) = found.to_json()["changes"][0]["latency_notes"].values()
    assert notes == "† partly compiled (6%)"


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
