"""Timing sessions against a worker that times nothing: order of launches, failures, records, threads."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from harness.errors import BenchError
from harness.measure import recording
from harness.measure.machine import Quiet
from harness.plan.units import DataSpec, EvalSpec, LatencySpec
from harness.store.records import LATENCY_SCHEMA, read_record
from harness.work import jobs, timing_session
from harness.work.processes import use_threads
from harness.work.timing_session import Model, Patience, Workers, by_model, record, run_session
from tests.measure.test_launches import launch


def spec(evaluation: str, point: str = "full", **changes: Any) -> LatencySpec:
    options = {"min_seconds": 1.0, "launches": 3}
    data = DataSpec("glyphs", "data", "tiny")
    values = {"point": point, "batch": 1, "machine": "m", "device": "cpu", "options": options, **changes}
    return LatencySpec(evaluation, evaluation, "tiny", data, 0, **values)


class Worker:
    """Notes how it is asked, and answers as told."""

    def __init__(self, answers: Mapping[tuple[str, int], Mapping[str, Any]] = {}) -> None:
        self.asked: list[tuple[str, str, int, int]] = []
        self.answers = answers

    def __call__(self, model: Model, examine: bool, number: int) -> Mapping[str, Any]:
        name, todo = model.specs[0].method, model.specs if examine else model.todo
        self.asked.append((name, "examine" if examine else "time", number, len(todo)))
        answer = self.answers.get((name, number), {"found": {} if examine else launch()})
        return {s.key: answer for s in todo}


def session(specs: list[LatencySpec], worker: Worker) -> list[Model]:
    models = by_model(specs)
    run_session(models, worker, lambda: None, lambda key, value: None)
    return models


def test_methods_are_interleaved_over_launches_there_and_back() -> None:
    worker = Worker()
    models = session([spec("a"), spec("a", "exit"), spec("b")], worker)
    order = [(name, number) for name, _, number, _ in worker.asked]
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert all(number == (2 if name == "a" else 1) for name, _, _, number in worker.asked), "a process per model"
    assert all(len(found) == 3 for model in models for found in model.launches.values())


def test_only_what_needs_it_is_examined_and_apart_from_timing() -> None:
    worker = Worker()
    session([spec("a"), spec("b", dtype="bfloat16"), spec("c", engine="compiled")], worker)
    assert [name for name, what, _, _ in worker.asked if what == "examine"] == ["b", "c"]


def test_what_failed_or_ran_out_of_memory_is_not_launched_again() -> None:
    worker = Worker({("a", 0): {"error": "broken"}, ("b", 1): {"found": launch(status="out of memory")}})
    a, b, c = session([spec("a"), spec("b"), spec("c")], worker)
    assert [number for name, _, number, _ in worker.asked if name == "a"] == [0]
    assert [number for name, _, number, _ in worker.asked if name == "b"] == [0, 1]
    assert a.failed == {spec("a").key: "broken"} and not b.failed and not c.failed


def test_a_limit_of_waiting_is_shared_by_all_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def wait(limit_s: float, *, threads: int, gpu: str | None, on_wait: Any) -> Quiet:
        assert threads == 2
        limits.append(limit_s)
        return Quiet(25.0, 0.5)

    monkeypatch.setattr(timing_session, "wait_until_quiet", wait)
    patience = Patience(60.0, 2, "0", print)
    assert [patience() for _ in range(3)] == [0.5] * 3
    assert limits == [60.0, 35.0, 10.0]


def test_a_record_holds_every_key_of_the_schema(tmp_path: Path) -> None:
    timed = spec("a")
    found = {"precision": None}
    launches = [launch(10), launch(20), launch(30)]
    record(timed, tmp_path, launches, examined=found, beside="process 1", command="bench.py run")
    written = read_record(timed.folder(tmp_path))
    assert written is not None
    assert set(written.result) == {name.partition(".")[0] for name in LATENCY_SCHEMA}
    assert written.result["compiled_share"] == 0.06
    assert written.result["made_with"] == {"device": "cpu", "torch": "2"}
    assert written.result["disturbed"] == ["beside process 1"]
    assert written.result["options"] == {"min_seconds": 1.0, "launches": 3}


def test_a_method_that_does_less_when_timed_gets_no_record(tmp_path: Path) -> None:
    timed = spec("a")
    lazy = launch(outputs={"videos": 64, "differing": 60, "exits": 60, "largest": 9.0})
    with pytest.raises(BenchError, match="must do the same work when it is timed"):
        record(timed, tmp_path, [launch(), lazy], examined={}, beside=None, command="bench.py run")
    assert read_record(timed.folder(tmp_path)) is None


def test_a_process_that_dies_fails_what_it_was_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_session.sys, "executable", "false")
    (model,) = by_model([spec("a"), spec("a", "exit")])
    answers = Workers(tmp_path, tmp_path, None)(model, False, 0)
    assert set(answers) == {s.key for s in model.specs}
    assert {a["error"] for a in answers.values()} == {"the launch ended with exit status 1"}


def test_how_long_one_waits_is_no_part_of_what_is_timed() -> None:
    assert spec("a", quiet_wait_s=5.0).key == spec("a").key
    assert spec("a", options={"launches": 1}).key != spec("a").key


def evaluation() -> EvalSpec:
    data, setup = DataSpec("glyphs", "data", "tiny"), {"machine": "m", "device": "cpu"}
    return EvalSpec(
        "v2", "tiny", {}, "a", (), (), data, "f", 0, {"threads": 1, "budget_unit": "ms", "budget_batch": 1}, "stills",
        timed_on=setup,
    )  # fmt: skip


def test_segments_are_timed_by_one_process_that_holds_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, asked, notes = evaluation(), [], list[str]()

    def answers(self: Workers, specs: Any, out: Path, **more: Any) -> Mapping[str, Any]:
        asked.append((specs, more))
        busy = {"others": 0.5, "slowed": [], "threads": 1, "clocks": {"before": {"affinity": 2}}}
        found = {"found": {"rows": [1], "sources": {}, **busy}}
        return {wanted.key: found if len(asked) == 1 else {"error": "broken"}}

    monkeypatch.setattr(timing_session, "wait_until_quiet", lambda *_, **__: Quiet(0.0, None))
    monkeypatch.setattr(timing_session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Workers, "answers", answers)
    found = timing_session.time_segments(wanted, tmp_path, timeout=None, told=notes.append)
    assert asked == [([wanted], {})] and notes[-1] == "timing segments"
    assert found["disturbed"] == ["load 0.50 per core by other processes"] and found["gpu_others"] is None
    with pytest.raises(BenchError, match="timing segments: broken"):
        timing_session.time_segments(wanted, tmp_path, timeout=None, told=notes.append)


def test_segments_are_timed_before_the_job_counts_as_work_that_disturbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[Any]()

    @contextmanager
    def at_work(*_: object, **__: object) -> Iterator[None]:
        done.append("at work")
        yield

    monkeypatch.setattr(jobs, "at_work", at_work)
    found, told = {"disturbed": ["load 0.50"]}, list[str]()
    monkeypatch.setattr(timing_session, "time_segments", lambda *_, **__: done.append("timed") or found)
    monkeypatch.setattr(recording, "record_evaluation", lambda *_, **more: done.append(more["segment_times"]))
    request = {"device": "cpu", "command": "bench.py run", "timeout": None}
    jobs._work(evaluation(), tmp_path, request, lambda line: told.extend(line["told"]))  # type: ignore[arg-type]
    assert done == ["timed", "at work", found]
    assert len(told) == 1 and "busy (load 0.50); when it is quiet, remove" in told[0]


def test_threads_are_those_of_opencv_too() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for number in (2, 1):
            use_threads(number)
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (number, number)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_a_session_that_is_stopped_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        assert len(list(tmp_path.glob("focusbench-timing-*"))) == 1, "what a killed session left is gone"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    (tmp_path / "focusbench-timing-left" / "arrays").mkdir(parents=True)
    monkeypatch.setattr(timing_session.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(timing_session, "run_session", stop)
    before = signal.getsignal(signal.SIGTERM)
    try:
        request = {"command": "bench.py run", "timeout": None}
        assert jobs._time([spec("a", quiet_wait_s=0.0)], tmp_path, request, lambda _: None) == jobs.STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.glob("focusbench-timing-*"))
