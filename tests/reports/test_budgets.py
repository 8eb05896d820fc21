"""One method whose exits were calibrated for multiply-accumulates and for time: two curves, never mixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.plan.protocol import Protocol
from harness.store.records import Record
from reports import export
from reports.claims import PARETO, Claims
from reports.collect import Group, collect
from reports.compare import compare
from reports.folds import pooled_tables
from reports.plots import over_gflops, over_latency
from reports.tables import findings, headline, operating_points
from reports.versus import versus
from tests.reports.conftest import TSN, V2, Factory

IN_MS = dataclasses.replace(V2, curve=[(0.2, 0.3, 1.0), (0.4, 0.55, 0.4)])
WEAK = dataclasses.replace(TSN, skill=0.5, gflops=0.03, curve=[])


def times(batch: int = 1, machine: str = "m", **changes: Any) -> dict[str, Any]:
    device = {"name": "Some CPU", "kind": "cpu", "fingerprint": machine}
    setup = {"dtype": "float32", "engine": "eager", "memory_format": "channels_last", "threads": 1, "disturbed": []}
    return {"batch": batch, "device": device, **setup, **changes}


def in_ms(factory: Factory, seed: int = 0, batch: int = 1, machine: str = "m", **options: Any) -> Record:
    protocol = Protocol(budget_unit="ms", budget_batch=batch)
    found = options.pop("times", times(batch, machine))
    return factory.evaluation(IN_MS, seed, protocol=protocol, segment_times=found, **options)


@pytest.fixture
def both(factory: Factory) -> Path:
    """V2 with both kinds of budgets, and a weak TSN; all points timed."""
    for seed in range(2):
        for record in (factory.evaluation(V2, seed), in_ms(factory, seed), factory.evaluation(WEAK, seed)):
            for point in (p["name"] for p in record.result["points"]) if seed == 0 else ():
                factory.latency(record, point)
    return factory.work_dir


def group(work_dir: Path) -> Group:
    (found,) = collect([work_dir]).groups
    return found


def test_both_curves_stand_in_one_table_under_names_of_their_own(both: Path) -> None:
    found = group(both)
    assert [m.label for m in found.methods] == ["AdaFocus V2", "AdaFocus V2 (ms)", "TSN"]
    usual, timed, _ = found.methods
    assert usual.seeds == timed.seeds == [0, 1] and len(usual.points) == 6 and len(timed.points) == 3
    assert {t.point for t in timed.timings} == {p.name for p in timed.points}
    assert "shares of the time at batch 1 on Some CPU, 1 thread" in " ".join(found.notes)
    for figure in (over_gflops(found), over_latency(found)):
        assert figure is not None
        names = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
        assert {"AdaFocus V2", "AdaFocus V2 (ms)"} <= names


def test_the_default_point_of_both_is_one_in_every_claim(both: Path) -> None:
    """Else it could never be shown to be better than its twin, and would lose its place on the front."""
    found = group(both)
    usual, timed, weak = found.methods
    claims = Claims(found, found.points)
    assert len(claims.points) == len(found.points) - 1
    assert id(usual.default) in claims.contenders and id(timed.default) in claims.contenders
    tags = Claims(found, [usual.default, timed.default, weak.default]).tags()
    assert tags == {id(usual.default): PARETO, id(timed.default): PARETO}
    first = findings(found)[0]
    assert "against the next method, TSN" in first and "(ms)" not in first
    for table in (headline(found), operating_points(found)):
        assert any(row.cells[0].text == "AdaFocus V2 (ms)" for row in table.rows)


def test_a_tie_of_the_default_point_is_told_of_once(factory: Factory) -> None:
    weak = dataclasses.replace(V2, curve=[(0.2, 0.3, 3.0)])
    factory.evaluation(dataclasses.replace(TSN, skill=4.0))
    factory.evaluation(V2)
    factory.evaluation(weak, protocol=Protocol(budget_unit="ms"), segment_times=times())
    assert "not distinguishable from it: AdaFocus V2." in findings(group(factory.work_dir))[0]


def test_batch_and_machine_are_part_of_the_name_where_they_differ(factory: Factory) -> None:
    in_ms(factory)
    in_ms(factory, batch=16)
    in_ms(factory, batch=16, machine="other", times=times(16, "other", disturbed=["load 0.5"]))
    found = group(factory.work_dir)
    assert sorted(m.label for m in found.methods) == [
        "AdaFocus V2 (ms)",
        "AdaFocus V2 (ms, batch 16) (machine=m)",
        "AdaFocus V2 (ms, batch 16) (machine=other)",
    ]
    assert any("taken while the machine was busy (load 0.5)" in note for note in found.notes)


def test_a_method_named_in_a_comparison_is_the_one_of_the_papers_budgets(both: Path) -> None:
    answer = versus(["adafocus-v2", "AdaFocus V2 (ms)", "tsn"], [both])
    assert {(pair.a, pair.b) for pair in answer.pairs} >= {("adafocus-v2", "AdaFocus V2 (ms)")}
    pair = answer.pairs[0]
    assert pair.points[-1].where.startswith("default points") and pair.points[-1].effect.value == 0
    assert pair.main.effect.value != 0


def test_folders_are_compared_unit_by_unit(both: Path, factory: Factory, tmp_path: Path) -> None:
    other = Factory(tmp_path / "after")
    for seed in range(2):
        in_ms(other, seed)
    found = compare(both, other.work_dir)
    assert {c.budgets for c in found.changes} == {" (ms)"} and len(found.changes) == 3
    assert found.only_a == ("adafocus-v2 (tiny) on glyphs", "tsn (tiny) on glyphs")
    assert "adafocus-v2 (ms)" in found.to_text()


def test_folds_are_pooled_unit_by_unit(factory: Factory) -> None:
    for fold in "ab":
        factory.evaluation(V2, part=f"fold={fold}", fingerprint=fold)
        in_ms(factory, part=f"fold={fold}", fingerprint=fold)
    (table,) = pooled_tables(collect([factory.work_dir]).groups)
    assert sorted(row.cells[0].text for row in table.rows) == ["AdaFocus V2", "AdaFocus V2 (ms)"]
    answer = versus(["adafocus-v2", "AdaFocus V2 (ms)"], [factory.work_dir])
    assert len(answer.pairs) == 1 and answer.pairs[0].main.effect.folds == 2


def test_exported_rows_say_what_budgets_are_shares_of(both: Path) -> None:
    rows = export.points(collect([both]).evaluations)
    assert set(rows[rows.method == "adafocus-v2"].budget_unit) == {"gflops", "ms"}
    assert set(rows[rows.method == "tsn"].budget_unit) == {"gflops"} and rows.predicted_ms.isna().all()
