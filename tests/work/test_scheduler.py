"""What the scheduler makes of finished, changed and damaged work, of jobs that die, and of a request to stop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.declarations import Stage
from harness.contract.values import plain
from harness.errors import BenchError
from harness.plan.units import DataSpec, EvalSpec, LatencySpec, Spec, TrainSpec, Weights
from harness.store import artifacts, sources
from harness.work import scheduler as work
from harness.work.scheduler import Scheduler, Task

Start = Callable[..., Scheduler]

JOB = """
import json, os, signal, sys, time
from pathlib import Path
request = json.load(sys.stdin)
stage = request["specs"][0].get("stage", {"name": "endless"})["name"]
pipe = os.fdopen(int(os.environ["BENCH_PROGRESS"]), "w", buffering=1)
if stage == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "endless":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    os.kill(int(os.environ["BENCH_PARENT"]), signal.SIGINT)
    time.sleep(60)
key = os.environ["KEYS"].split(",")[int(request["specs"][0]["seed"])]
if stage == "fails":
    print(json.dumps({"error": "for a reason", "key": key}), file=pipe)
    sys.exit(1)
folder = Path(sys.argv[1]) / "artifacts" / key
folder.mkdir(parents=True, exist_ok=True)
(folder / "artifact.json").write_text(os.environ["DESCRIPTION"])
"""
"""Stands for harness.work.jobs: does at once, without torch, what the stage's name says."""
DESCRIPTION: dict[str, Any] = {
    "method": "net", "stage": "main", "settings": {"num_classes": 2}, "recipe": {"epochs": 1}, "seconds": 1.0,
    "samples": 8, "departures": [], "device": "cpu", "sources": {}, "made_with": {},
}  # fmt: skip


def spec(stage: str = "main", seed: int = 0) -> TrainSpec:
    data = DataSpec("glyphs", "data", "tiny")
    return TrainSpec("tsn", 1, {}, plain(Stage(stage, 1, 1, 0.1)), (), data, "f", seed, {"threads": 1}, "scratch")


def timed(evaluation: str) -> LatencySpec:
    data = DataSpec("glyphs", "data", "tiny")
    return LatencySpec(evaluation, "tsn", "tiny", data, 0, point="full", batch=1, machine="m", device="cpu", options={})


def in_ms(seed: int) -> EvalSpec:
    data, protocol = DataSpec("glyphs", "data", "tiny"), {"threads": 1, "budget_unit": "ms", "budget_batch": 1}
    return EvalSpec("v2", "tiny", {}, "a", (), (), data, "f", seed, protocol, "stills", timed_on={"machine": "m"})


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Builds a scheduler of these specs, whose jobs are `JOB`."""
    popen = subprocess.Popen

    def stub(command: list[str], **kwargs: Any) -> Any:
        return popen([sys.executable, "-S", "-c", JOB, command[-1]], **kwargs)

    def build(*specs: Spec, **options: Any) -> Scheduler:
        monkeypatch.setenv("KEYS", ",".join(s.key for s in specs))
        path = artifacts.folder(tmp_path / "form", "k") / "artifact.json"
        artifacts.commit(tmp_path / "form", "k", {"w": torch.ones(1)}, DESCRIPTION)
        monkeypatch.setenv("DESCRIPTION", path.read_text())
        monkeypatch.setattr(work.subprocess, "Popen", stub)
        force = options.pop("force", False)
        scheduler = Scheduler(tmp_path, **{"device": "cpu", "jobs": 2, "command": "", **options})
        scheduler.add(specs)
        scheduler.look(force=force)
        return scheduler

    return build


def done(scheduler: Scheduler) -> list[Task]:
    scheduler.run()
    return list(scheduler.tasks.values())


def commit(work_dir: Path, key: str, **changes: Any) -> None:
    artifacts.commit(work_dir, key, {"w": torch.zeros(1)}, {**DESCRIPTION, **changes})


OTHER_CODE: Mapping[str, Any] = {"sources": {"harness.layers.crop": "other"}, "made_with": {}}


@pytest.mark.parametrize("text", ['{"schema": 1, "meth', '{"some": "JSON"}', "\0"])
def test_one_damaged_artifact_is_set_aside_and_made_again(text: str, start: Start, tmp_path: Path) -> None:
    bad, good = spec(), spec(seed=1)
    for one in (bad, good):
        commit(tmp_path, one.key)
    (artifacts.folder(tmp_path, bad.key) / "artifact.json").write_text(text)
    first, second = done(start(bad, good))
    assert (first.status, second.status) == ("done", "cached")
    aside = tmp_path / "aside" / "artifacts" / f"{bad.key}.1"
    assert (aside / "artifact.json").read_text() == text
    assert "artifact.json is damaged" in first.notes[0] and str(aside) in first.notes[0]


@pytest.mark.parametrize("made", [OTHER_CODE, {"made_with": {"device": "cuda"}}, {"made_with": {"torch": "1.0"}}])
def test_changed_work_is_told_and_set_aside_or_kept(made: Mapping[str, Any], start: Start, tmp_path: Path) -> None:
    one = spec()
    commit(tmp_path, one.key, **made)
    (kept,) = done(start(one, keep_stale=True))
    assert kept.status == "stale" and kept.why and not (tmp_path / "aside").exists()
    seen = start(one)
    assert not (tmp_path / "aside").exists(), "looking changes nothing"
    (again,) = done(seen)
    assert again.status == "done" and again.why in again.notes[0]
    aside = tmp_path / "aside" / "artifacts" / f"{one.key}.1"
    assert (aside / "model.safetensors").exists() and str(aside) in again.notes[0]


def test_versions_of_both_sides_are_shown(start: Start, tmp_path: Path) -> None:
    one = spec()
    commit(tmp_path, one.key, made_with={"device": "cuda", "torch": "1.0"})
    (task,) = start(one).tasks.values()
    here = sources.made_with("cpu")["torch"]
    assert task.why == f"changed since: device cuda, this is cpu, torch 1.0, this is {here}"


@pytest.mark.parametrize(("options", "goes_on"), [({}, False), ({"keep_stale": True}, True)])
def test_an_unfinished_training_is_never_thrown_away(
    options: Mapping[str, Any], goes_on: bool, start: Start, tmp_path: Path
) -> None:
    one = spec()
    artifacts.begin(tmp_path, one.key, OTHER_CODE)
    epoch = artifacts.folder(tmp_path, one.key) / "run" / "epoch_7.pth"
    epoch.touch()
    (task,) = done(start(one, **options))
    aside = tmp_path / "aside" / "artifacts" / f"{one.key}.1"
    assert epoch.exists() == goes_on and (aside / "run" / "epoch_7.pth").exists() != goes_on
    assert bool(task.notes) != goes_on
    if task.notes:
        assert "changed since: harness.layers.crop" in task.notes[0] and str(aside) in task.notes[0]


def test_force_sets_aside(start: Start, tmp_path: Path) -> None:
    finished, begun = spec(), spec(seed=1)
    commit(tmp_path, finished.key)
    artifacts.begin(tmp_path, begun.key, {"sources": {}, "made_with": {}})
    assert [task.status for task in done(start(finished, begun, force=True))] == ["done", "done"]
    for one in (finished, begun):
        assert (tmp_path / "aside" / "artifacts" / f"{one.key}.1").is_dir()


def test_epochs_that_a_kill_left_beside_an_artifact_go(start: Start, tmp_path: Path) -> None:
    one = spec()
    artifacts.begin(tmp_path, one.key, {"sources": {}, "made_with": {}})
    epoch = artifacts.folder(tmp_path, one.key) / "run" / "epoch_7.pth"
    epoch.touch()
    commit(tmp_path, one.key)
    (task,) = done(start(one))
    assert task.status == "cached" and not epoch.exists()


def test_a_full_disk_for_a_failure_note_does_not_stop_the_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise BenchError(f"cannot write {path}: No space left on device")

    scheduler = start(spec("fails"), spec(seed=1), jobs=1)
    monkeypatch.setattr(work, "write_json", full)
    first, second = done(scheduler)
    assert (first.status, second.status) == ("failed", "done")
    assert first.reason.startswith("for a reason") and "No space left" in first.reason


def test_a_job_that_cannot_be_started_is_one_failed_cell(start: Start, tmp_path: Path) -> None:
    one, other = spec(), spec(seed=1)
    (tmp_path / "logs" / f"{one.key}.log").mkdir(parents=True)
    first, second = done(start(one, other, jobs=1))
    assert (first.status, second.status) == ("failed", "done")
    assert "could not be started" in first.reason


def test_a_killed_job_mentions_memory(start: Start) -> None:
    (task,) = done(start(spec("killed")))
    assert task.status == "failed" and "signal 9" in task.reason and "memory" in task.reason


@pytest.mark.parametrize(
    ("endless", "what"),
    [
        ([spec("endless")], "finishing its epoch, then leaving"),
        ([timed("a"), timed("b")], "timings that are not finished are lost"),
    ],
)
def test_the_first_interrupt_is_answered_at_once(endless: list[Spec], what: str, start: Start) -> None:
    told: list[str] = []
    scheduler = start(*endless)
    scheduler.notify = lambda task: told.extend(f"{task.status}: {note}" for note in task.notes[len(told) :])
    assert {task.status for task in done(scheduler)} == {"stopped"}
    assert told == [f"running: {what}; a second Ctrl-C ends it at once"]


def test_an_evaluation_that_times_segments_runs_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [in_ms(0), in_ms(1), spec(), timed("e"), timed("f")]
    scheduler, launched = start(*specs), list[list[str]]()

    def launch(tasks: list[Task]) -> None:
        launched.append([task.key for task in tasks])
        for task in tasks:
            task.status = "done"

    monkeypatch.setattr(scheduler, "_launch", launch)
    for _ in range(4):
        scheduler._start()
    one, other, train, *latencies = (s.key for s in specs)
    assert launched == [[train], [one], [other], latencies]


def test_what_is_kept_although_stale_is_made_again_with_its_inputs(start: Start, tmp_path: Path) -> None:
    first = spec()
    second = replace(spec(seed=1), weights=(Weights("", "", key=first.key),))
    commit(tmp_path, second.key, **OTHER_CODE)
    assert [task.status for task in done(start(first, second, keep_stale=True))] == ["done", "done"]
    assert (tmp_path / "aside" / "artifacts" / f"{second.key}.1").is_dir()
