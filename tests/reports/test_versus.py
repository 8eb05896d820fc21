"""`compare --methods`: one sentence per pair, at equal cost, over videos and seeds; what cannot be compared is said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import bench
from harness.errors import BenchError, UsageError
from reports.collect import collect
from reports.versus import _Curve, versus
from tests.reports.conftest import AR_NET, RANDOM, TSN, V2

FLAT_TSN = dataclasses.replace(TSN, curve=[(1, 1 / 8, 0.02), (4, 0.5, 0.01)])
WORSE = dataclasses.replace(V2, skill=1.6, curve=[(0.5, 0.5, 0.3)])


def evaluated(factory, fakes, seeds=3, **options):
    for fake in fakes:
        for seed in range(seeds):
            factory.evaluation(fake, seed, **options)
    return [factory.work_dir]


def test_the_answer_is_one_sentence(factory):
    answer = versus(["adafocus-v2", "tsn"], evaluated(factory, [FLAT_TSN, WORSE]))
    (pair,) = answer.pairs
    assert pair.significant and pair.main.effect.value < 0
    first = answer.to_text().splitlines()[0]
    assert first.startswith("On Glyphs (spot), tsn is ") and "] more accurate than adafocus-v2 at equal GFLOPs" in first
    assert "over 3 seeds each and 200 videos; p " in first and first.endswith(".")


def test_equal_methods_are_not_distinguishable(factory):
    twin = dataclasses.replace(FLAT_TSN, name="twin", title="Twin")
    answer = versus(["tsn", "twin"], evaluated(factory, [FLAT_TSN, twin]))
    assert "twin and tsn are not distinguishable at equal GFLOPs" in answer.to_text()
    assert not answer.pairs[0].significant


def test_one_seed_supports_no_claim_about_methods(factory):
    answer = versus(["adafocus-v2", "tsn"], evaluated(factory, [FLAT_TSN, WORSE], seeds=1))
    assert not answer.pairs[0].significant
    text = answer.to_text().splitlines()[0]
    assert "this network of tsn is " in text and "One seed compares networks, not the methods" in text
    assert "*" not in answer.to_text().replace("; * marks", "")


def test_curves_are_interpolated_over_log_cost(factory):
    evaluated(factory, [TSN])
    (group,) = collect([factory.work_dir]).groups
    (method,) = group.methods
    curve = _Curve([group], [method], {p.name: p.gflops for p in method.points})
    values = [group.quality(next(p for p in method.points if p.gflops == c)) for c in curve.costs]
    middle = float(np.sqrt(curve.costs[1] * curve.costs[2]))
    at_middle, at_knot = (curve.over(c, c)[0] for c in (middle, curve.costs[2]))
    assert at_middle.shape == (3, 200)
    assert at_middle.mean() == pytest.approx((values[1] + values[2]) / 2)
    assert at_knot.mean() == pytest.approx(values[2])
    area = np.trapezoid(values, np.log(curve.costs)) / np.log(curve.costs[-1] / curve.costs[0])
    assert curve.over(curve.costs[0], curve.costs[-1])[0].mean() == pytest.approx(area)


def test_range_is_what_both_reach_and_a_single_point_is_one_cost(factory):
    dirs = evaluated(factory, [TSN, V2, RANDOM])
    pairs = {(p.a, p.b): p for p in versus(["tsn", "adafocus-v2", "random-patch"], dirs).pairs}
    assert pairs["tsn", "adafocus-v2"].range == (pytest.approx(0.068 / 8), pytest.approx(0.0215))
    single = pairs["tsn", "random-patch"]
    assert single.range == (pytest.approx(0.0208), pytest.approx(0.0208))
    assert single.main.where == "20.8 M" and len(single.points) == 1


def test_several_pairs_are_corrected(factory):
    dirs = evaluated(factory, [TSN, V2, RANDOM])
    answer = versus(["tsn", "adafocus-v2", "random-patch"], dirs)
    assert len(answer.pairs) == 3 and "(Holm over 3)" in answer.to_text()
    smallest = min(answer.pairs, key=lambda p: p.main.effect.p)
    assert smallest.main.p_holm == pytest.approx(3 * smallest.main.effect.p)


def test_costs_that_do_not_overlap_are_said(factory):
    dirs = evaluated(factory, [dataclasses.replace(TSN, curve=()), RANDOM])
    with pytest.raises(BenchError, match=r"costs do not overlap \(tsn 68 M to 68 M and random-patch 20.8 M"):
        versus(["tsn", "random-patch"], dirs)


def test_what_is_missing_or_ambiguous_is_named(factory):
    dirs = evaluated(factory, [TSN, V2], seeds=1)
    with pytest.raises(UsageError, match="unknown method in these results 'tns'.*did you mean 'tsn'"):
        versus(["tns", "adafocus-v2"], dirs)
    with pytest.raises(UsageError, match="two or more"):
        versus(["tsn", "tsn"], dirs)
    with pytest.raises(UsageError, match="did you mean 'gflops'"):
        versus(["tsn", "adafocus-v2"], dirs, at="gflop")
    for patch in (16, 32):
        factory.evaluation(dataclasses.replace(AR_NET, settings={"patch": patch}))
    with pytest.raises(UsageError, match=r"'ar-net' stands for several here: .*patch=16.*ar-net\[setting=value\]"):
        versus(["ar-net", "tsn"], dirs)
    assert versus(["ar-net[patch=16]", "tsn"], dirs).pairs[0].a == "ar-net[patch=16]"


def test_settings_of_names_may_be_written_out(factory):
    usual, varied = (
        dataclasses.replace(V2, settings={"frames": 8}),
        dataclasses.replace(V2, name="adafocus-v2[random_pass=false]", settings={"frames": 8, "random_pass": False}),
    )
    dirs = evaluated(factory, [usual, varied], seeds=1)
    names = ["adafocus-v2[frames=8,random_pass=true]", "adafocus-v2[random_pass=false]"]
    (pair,) = versus(names, dirs, defaults={"adafocus-v2": {"random_pass": True}}).pairs
    assert (pair.a, pair.b) == tuple(names)
    with pytest.raises(UsageError, match="unknown method in these results"):
        versus(["adafocus-v2[random_pass=true]", "tsn"], dirs)
    with pytest.raises(UsageError, match="are one method"):
        versus(["adafocus-v2[frames=8]", "adafocus-v2"], dirs)


def test_other_data_are_not_compared(factory):
    evaluated(factory, [TSN], fingerprint="one")
    dirs = evaluated(factory, [V2], fingerprint="two")
    with pytest.raises(BenchError, match="nothing could be compared: .*data one.*was not evaluated there"):
        versus(["tsn", "adafocus-v2"], dirs)


def test_latency_needs_timings_of_one_setup(factory):
    records = {fake.name: [factory.evaluation(fake, seed) for seed in range(3)] for fake in (TSN, V2)}
    with pytest.raises(BenchError, match="not timed on one machine with one setup; run `bench.py latency"):
        versus(["tsn", "adafocus-v2"], [factory.work_dir], at="latency")
    for found in records.values():
        for point in (p["name"] for p in found[0].result["points"]):
            factory.latency(found[0], point)
    (pair,) = versus(["tsn", "adafocus-v2"], [factory.work_dir], at="latency").pairs
    assert pair.at.startswith("latency at batch 1 on Some CPU") and " ms" in pair.main.where


def timed(factory, fake, ms, **overrides):
    """One evaluation whose points take so many milliseconds each."""
    record = factory.evaluation(fake)
    for point, time in ms.items():
        factory.latency(record, point, ms=time, **overrides)


def test_marks_of_timings_are_in_the_sentence_and_the_table(factory):
    timed(factory, FLAT_TSN, {"full": 9.0, "frames=1": 2.0}, disturbed=["GPU slowed by heat"])
    timed(factory, WORSE, {"full": 8.0, "budget=0.5": 3.0})
    answer = versus(["tsn", "adafocus-v2"], [factory.work_dir], at="latency")
    assert f"({answer.pairs[0].main.where}) †, over 200 videos" in answer.to_text()
    rows = [line for line in answer.to_text().splitlines() if line.startswith("Glyphs")]
    assert len(rows) == 7 and all(" ms †  " in line for line in rows)
    meaning = "† taken while the machine was busy: GPU slowed by heat."
    assert answer.to_text().endswith(meaning) and answer.to_json()["footnote"] == meaning
    assert "†" not in versus(["tsn", "adafocus-v2"], [factory.work_dir]).to_text()


def test_a_point_slower_than_one_of_more_gflops_is_on_no_curve(factory):
    timed(factory, TSN, {"full": 20.0, "frames=1": 2.0})
    timed(factory, V2, {"full": 18.0, "budget=0.75": 21.5, "budget=0.5": 18.5, "budget=0.2": 5.0})
    answer = versus(["tsn", "adafocus-v2"], [factory.work_dir], at="latency")
    (pair,) = answer.pairs
    assert pair.dropped == ("adafocus-v2 at budget=0.5", "adafocus-v2 at budget=0.75")
    medians = {t.point: t.ms(0.5) for m in collect([factory.work_dir]).groups[0].methods for t in m.timings
               if m.about["name"] == "adafocus-v2"}  # fmt: skip
    assert pair.range == pytest.approx((medians["budget=0.2"], medians["full"]))
    told = "slower than a point of more GFLOPs: adafocus-v2 at budget=0.5, adafocus-v2 at budget=0.75."
    assert told in answer.to_text()


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ((3, 1), ("3 networks of tsn on average are ", " more accurate than one of adafocus-v2 at ")),
        ((1, 3), ("this network of tsn is ", " more accurate than 3 of adafocus-v2 on average at ")),
        ((1, 1), ("this network of tsn is ", " more accurate than this one of adafocus-v2 at ")),
    ],
)
def test_the_networks_of_each_side_are_counted(factory, seeds, told):
    for fake, count in zip((FLAT_TSN, WORSE), seeds, strict=True):
        evaluated(factory, [fake], seeds=count)
    text = versus(["adafocus-v2", "tsn"], [factory.work_dir]).to_text().splitlines()[0]
    assert all(part in text for part in told)


def test_folds_are_pooled(factory):
    for fold in range(4):
        evaluated(factory, [TSN, WORSE], seeds=2, part=f"fold={fold}", fingerprint=f"f{fold}", videos=50)
    (pair,) = versus(["tsn", "adafocus-v2"], [factory.work_dir]).pairs
    assert (pair.main.effect.folds, pair.main.effect.videos) == (4, 200)
    assert "over 2 seeds each, 4 folds and 200 videos" in versus(["tsn", "adafocus-v2"], [factory.work_dir]).to_text()


def test_command_line_has_both_forms(factory):
    dirs = evaluated(factory, [TSN, V2])
    run = CliRunner().invoke
    told = run(bench.app, ["compare", "--help"]).output
    assert "--methods A,B [--at gflops|latency] [WORK_DIR...]" in " ".join(told.split()) and "DIR_A DIR_B" in told
    done = run(bench.app, ["compare", "--methods", "adafocus-v2,tsn", "--json", str(dirs[0])])
    assert done.exit_code == 0
    (pair,) = json.loads(done.output)["pairs"]
    assert pair["sentence"].startswith("On Glyphs (spot), ") and pair["main"]["effect"]["seeds"] == [3, 3]
    assert run(bench.app, ["compare", str(dirs[0]), str(dirs[0])]).exit_code == 0
    wrong = run(bench.app, ["compare", str(dirs[0])])
    assert isinstance(wrong.exception, UsageError) and "or two folders of results" in str(wrong.exception)
