"""Timing a stream beside the plain loop, against a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.contract.trace import Trace
from harness.errors import BenchError
from harness.measure import streaming
from harness.measure.cost_table import CostTable
from harness.measure.latency import prepared
from harness.measure.launches import merged, summary
from harness.measure.streaming import measure_stream
from harness.store.records import LATENCY_SCHEMA
from tests.engine.toy import THRESHOLDS, Adder, videos
from tests.measure.test_launches import launch

BATCH, BATCHES = 4, 10


class Timed(Adder):
    """A call takes a second, whatever its size: what a stream saves are calls."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def segment(self, state, first, last):
        self.now += 1
        return super().segment(state, first, last)


@pytest.fixture
def recognizer(monkeypatch):
    timed = Timed()
    clock = SimpleNamespace(perf_counter=lambda: timed.now)
    monkeypatch.setattr(streaming, "time", clock)
    return timed


def batches():
    return [{"frames": part} for part in videos(BATCH * BATCHES).split(BATCH)]


def costs(trace):
    return CostTable(dict.fromkeys(trace.counts, 1e9)).components(trace)


def measured(recognizer, **options):
    options = {"max_wait_s": 1e9, "min_seconds": 0, "costs": costs, "memory": False, **options}
    with prepared(recognizer):
        return measure_stream(recognizer, batches(), THRESHOLDS, **options)


def test_passes_of_both_are_timed_in_turns_on_the_same_videos(recognizer):
    found, output = measured(recognizer)
    stream = found["stream"]
    calls = sum(sum(part["sizes"].values()) for part in stream["batches"])
    assert found["wall_s"] == [calls / 2] * 2, "two passes, a second for each batch"
    assert found["videos"] == [BATCH * BATCHES] * 2 and len(stream["own_s"]) == 2 * BATCH * BATCHES
    assert stream["plain_s"][0] == stream["plain_s"][1] > found["wall_s"][0]
    assert [part["exit"] for part in stream["batches"]] == [0, 2, 3]
    assert all(size <= BATCH for part in stream["batches"] for size in part["sizes"])
    assert output.logits.shape == (BATCH * BATCHES, 2)


def test_what_is_said_and_counted_is_what_the_plain_loop_says_and_costs(recognizer):
    found, output = measured(recognizer)
    whole = Trace(BATCH * BATCHES)
    with torch.inference_mode():
        logits = Adder().infer({"frames": videos(BATCH * BATCHES)}, THRESHOLDS, trace=whole)
    assert torch.equal(output.logits, logits) and output.exit_step.tolist() == whole.exit_step.tolist()
    assert found["gflops"] == [sum(rows.sum() for rows in costs(whole).values())] * 2


def test_it_lasts_as_long_as_it_is_asked_to(recognizer):
    found, _ = measured(recognizer, min_seconds=100)
    assert 100 <= sum(found["wall_s"]) < 100 + found["wall_s"][0]
    assert len(found["stream"]["plain_s"]) == len(found["wall_s"])


def test_peak_memory_holds_what_waits(recognizer):
    found, _ = measured(recognizer, memory=True)
    assert found["peak_memory_bytes"] > videos(BATCH).nbytes


def test_a_launch_of_a_stream_fits_the_schema_and_its_summary(recognizer):
    found, _ = measured(recognizer)
    assert {name.partition(".")[0] for name in LATENCY_SCHEMA} >= set(found) - {
        "unprepared", "prepare_s", "others", "slowed", "clocks",
    }  # fmt: skip
    record = {**merged([launch(**found), launch(**found)]), "batch": BATCH}
    assert record["stream"]["max_wait_s"] == 1e9
    assert [set(map(type, part["sizes"])) for part in record["stream"]["batches"]] == [{str}] * 3
    told = summary(record)
    ratio = found["stream"]["plain_s"][0] / found["wall_s"][0]
    assert told["stream_ratio"] == pytest.approx(ratio) and told["stream_ratio_low"] == pytest.approx(ratio)
    assert told["videos_per_s"] == pytest.approx(ratio * told["plain_videos_per_s"])
    assert 0.5 < told["mean_fill"] <= 1
    assert told["p99_ms"] <= 1e3 * found["wall_s"][0] and told["median_low_ms"] == told["median_high_ms"]


def test_out_of_memory_is_a_result(recognizer, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(recognizer, "segment", full)
    found, output = measured(recognizer)
    assert (found["status"], found["wall_s"], output) == ("out of memory", [], None)
    assert summary({**merged([launch(**found)]), "batch": BATCH})["videos_per_s"] is None


def test_a_counter_is_refused(recognizer):
    with FlopCounterMode(display=False), pytest.raises(BenchError, match="counter is active"):
        measured(recognizer)
