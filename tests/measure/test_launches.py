"""Several launches as one record: intervals over launches, what disturbed them, outputs held against the evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.errors import BenchError
from harness.measure.launches import (
    by_launch,
    check_outputs,
    disturbances,
    engine_label,
    median_interval,
    merged,
    summary,
)
from harness.store.records import LATENCY_SCHEMA


def launch(ms=10.0, forwards=4, **changes):
    clocks = {"before": {"cpu_mhz": 1, "affinity": 2}, "after": {"cpu_mhz": 2, "affinity": 2}}
    return {
        "status": "ok",
        "wall_s": [ms / 1e3] * forwards,
        "device_s": None,
        "videos": [2] * forwards,
        "gflops": [0.5] * forwards,
        "phases_s": {"decode": 0.1, "transfer": 0.0, "model": ms / 2e3},
        "frames_decoded": 23.0,
        "peak_memory_bytes": 100,
        "warmup": 5,
        "prepare_s": 0.5,
        "unprepared": 0,
        "compiled_share": 0.06,
        "forms": {},
        "others": 0.01,
        "gpu_others": None,
        "slowed": [],
        "clocks": clocks,
        "outputs": {"videos": 64, "differing": 0, "exits": 0, "largest": 1e-6},
        "threads": 1,
        "device": {"name": "cpu", "kind": "cpu", "fingerprint": "f", "driver": None},
        "dataset": {"name": "glyphs", "fingerprint": "d"},
        "sources": {"harness.measure.latency": "abc"},
        "made_with": {"device": "cpu", "torch": "2"},
        **changes,
    }


def test_a_record_keeps_every_sample_and_which_launch_it_is_of():
    found = merged([launch(10), launch(20, forwards=2), launch(30)])
    assert found["wall_s"] == [0.01] * 4 + [0.02] * 2 + [0.03] * 4
    assert [n["forwards"] for n in found["launches"]] == [4, 2, 4]
    assert [set(part) for part in by_launch(found)] == [{0.01}, {0.02}, {0.03}]
    assert found["phases_s"] == {"decode": 0.1, "transfer": 0.0, "model": pytest.approx(0.01)}
    assert (found["warmup"], found["frames_decoded"], found["disturbed"]) == (15, 23.0, [])
    assert {name.partition(".")[0] for name in LATENCY_SCHEMA} >= set(found)


def test_out_of_memory_in_one_launch_is_out_of_memory():
    empty = {"wall_s": [], "videos": [], "gflops": [], "phases_s": {}, "peak_memory_bytes": None, "outputs": None}
    found = merged([launch(), launch(status="out of memory", **empty)])
    assert (found["status"], found["wall_s"], found["launches"], found["peak_memory_bytes"]) == (
        "out of memory", [], [], None,
    )  # fmt: skip


def test_the_interval_covers_launches_not_samples_alone():
    rng = np.random.default_rng(0)
    apart = [rng.normal(centre, 0.01, 300) for centre in (1.0, 1.1, 1.2)]
    medians = np.log([np.median(part) for part in apart])
    expected = stats.ttest_1samp(medians, 0).confidence_interval()
    assert median_interval(apart) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert median_interval(apart[:1]) is None, "one launch says nothing about another"


def test_the_interval_over_three_launches_covers_as_it_says():
    rng = np.random.default_rng(1)
    runs = np.exp(rng.normal(0, 0.05, (2000, 3, 1)) + rng.normal(0, 0.01, (2000, 3, 9)))
    covered = [low <= 1 <= high for low, high in (median_interval(list(launches)) for launches in runs)]
    assert 0.93 < np.mean(covered) < 0.97


def test_summary_in_closed_form():
    found = summary({"wall_s": [0.001 * i for i in range(1, 102)], "videos": [2] * 101})
    assert found["median_ms"] == pytest.approx(51)
    assert found["p90_ms"] == pytest.approx(91)
    assert found["p99_ms"] == pytest.approx(100)
    assert (found["median_low_ms"], found["median_high_ms"]) == (None, None)
    assert found["videos_per_s"] == pytest.approx(202 / 5.151)
    constant = summary({"wall_s": [0.25] * 8, "videos": [1] * 8, "launches": [{"forwards": 4}, {"forwards": 4}]})
    assert list(constant.values()) == pytest.approx([250.0] * 6 + [4.0])
    assert set(summary({"wall_s": [], "videos": []}).values()) == {None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"others": 0.62}, ["load 0.62 per core by other processes"]),
        ({"others": 0.1}, []),
        ({"others": None}, []),
        ({"gpu_others": 0.5}, ["GPU busy with other work 50% of the time"]),
        ({"slowed": ["GPU slowed by heat"]}, ["GPU slowed by heat"]),
    ],
)
def test_one_disturbed_launch_marks_the_record(changes, words):
    assert merged([launch(), launch(**changes), launch()])["disturbed"] == words


@pytest.mark.parametrize(("threads", "disturbed"), [(1, True), (8, True), (16, False)])
def test_a_rival_on_one_of_many_cores_disturbs_a_timing_of_few_threads(threads, disturbed):
    many = {"before": {"affinity": 16}, "after": {"affinity": 16}}
    assert bool(disturbances([launch(others=1 / 16, threads=threads, clocks=many)])) is disturbed


def test_work_of_our_own_beside_it_marks_the_record():
    assert disturbances([launch()], "process 12 on results") == ["beside process 12 on results"]


@pytest.mark.parametrize(("differing", "fails"), [(0, False), (6, False), (7, True), (64, True)])
def test_forwards_that_say_something_else_when_timed_fail(differing, fails):
    outputs = [None, {"videos": 64, "differing": differing, "exits": differing, "largest": 3.0}]
    if not fails:
        check_outputs("tsn at full", outputs)
        return
    with pytest.raises(BenchError, match=rf"tsn at full: timed .* on {differing} of 64 videos \({differing} left"):
        check_outputs("tsn at full", outputs)


@pytest.mark.parametrize(
    ("engine", "share", "label"),
    [
        ("eager", None, ""),
        ("compiled", 0.97, "compiled"),
        ("compiled", 0.06, "partly compiled (6%)"),
        ("torch.compile default", None, "partly compiled (unknown share)"),
    ],
)
def test_what_is_partly_compiled_is_called_so(engine, share, label):
    assert engine_label(engine, share) == label
