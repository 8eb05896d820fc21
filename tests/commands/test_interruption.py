"""A run that is killed at random moments and started again ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import ROOT, command, finish


def processes(work_dir: Path) -> list[int]:
    """Processes that name `work_dir` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(work_dir).encode() in text and state != "Z":
                found.append(int(entry.name))
    return found


def stamps(work_dir: Path) -> dict[str, int]:
    """When each finished artifact and record was committed."""
    committed = [*work_dir.glob("artifacts/*/artifact.json"), *work_dir.glob("records/*/*/result.json")]
    return {str(path.relative_to(work_dir)): path.stat().st_mtime_ns for path in committed}


def outcome(work_dir: Path) -> dict[str, object]:
    """What must be equal: weights by hash, and per record its points without times and places."""
    found: dict[str, object] = {}
    for path in work_dir.glob("artifacts/*/artifact.json"):
        found[path.parent.name] = json.loads(path.read_text())["weights"]["sha256"]
    for path in work_dir.glob("records/evaluation/*/result.json"):
        result = json.loads(path.read_text())
        found[path.parent.name] = (result["points"], result["cost"], result["dataset"], result["training"]["samples"])
    return found


def progress(work_dir: Path) -> int:
    """Steps a run has taken: trainings begun, epochs kept, artifacts and records committed."""
    begun = [*work_dir.glob("artifacts/*/run"), *work_dir.glob("artifacts/*/run/epoch_*.pth")]
    return len(begun) + len(stamps(work_dir))


@pytest.mark.timeout(900)
def test_killed_runs_end_as_an_undisturbed_one(clips_csv: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed at a random moment after a drawn number of steps, so no machine is too fast to be caught."""
    draw = random.Random(os.environ.get("BENCH_KILL_SEED", "20"))
    killed, committed = 0, {}
    for steps in (0, draw.randint(1, 2), draw.randint(1, 2)):
        target, pause = progress(tmp_path) + steps, draw.uniform(0, 1)
        process = subprocess.Popen(
            command(clips_csv, tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while progress(tmp_path) < target and process.poll() is None:
            time.sleep(0.02)
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        deadline = time.monotonic() + 10
        while processes(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes(tmp_path), "processes of the run outlived it by 10 s"
        now = stamps(tmp_path)
        assert {k: now.get(k) for k in committed} == committed, "finished work was lost or done twice"
        committed = now
    assert killed >= 2, "the run was hardly killed; the test shows nothing"
    finish(clips_csv, tmp_path)
    assert {k: v for k, v in stamps(tmp_path).items() if k in committed} == committed
    assert outcome(tmp_path) == outcome(undisturbed)
    assert not list(tmp_path.glob("artifacts/*/run/epoch_*")), "epochs outlived the artifact that they led to"
    assert not (tmp_path / "aside").exists(), "a kill alone damages nothing and makes nothing stale"
    for path in undisturbed.glob("records/evaluation/*/per_video.npz"):
        with np.load(path) as one, np.load(tmp_path / path.relative_to(undisturbed)) as other:
            assert sorted(one) == sorted(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.timeout(300)
def test_a_finished_run_is_not_repeated(clips_csv: Path, undisturbed: Path) -> None:
    before = stamps(undisturbed)
    finish(clips_csv, undisturbed)
    assert stamps(undisturbed) == before


@pytest.mark.timeout(300)
def test_sigterm_lets_jobs_save_and_leave(clips_csv: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(clips_csv, tmp_path, "--epochs", "200"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("artifacts/*/run/epoch_*.pth")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was ever written"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped on request" in text
    assert not list(tmp_path.glob("artifacts/*/artifact.json"))
    assert list(tmp_path.glob("artifacts/*/run/epoch_*.pth")), "the epoch was not kept"


@pytest.mark.timeout(120)
def test_a_second_run_on_the_same_folder_is_told_so(clips_csv: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as file:
        file.write("process 1")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run(command(clips_csv, tmp_path), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "another run (process 1)" in done.stderr
