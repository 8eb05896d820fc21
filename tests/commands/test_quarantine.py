"""A video that only decoding shows to be broken: found by a job, left out by the same command where that is allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands import run as commands
from harness.data.videos import open_dataset
from harness.errors import DataError
from harness.plan.planner import Cell
from harness.plan.request import Request, resolve
from harness.store.files import write_json
from harness.store.work_dir import failure_file
from harness.work.execution import Outcome, replanned
from harness.work.scheduler import Task
from tests.commands.conftest import ROOT, command
from tests.data.test_identity import damage


@pytest.fixture
def folder(clips_csv: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips_csv.parent, tmp_path / "clips"))


def asked(folder: Path, allow_missing: int) -> Request:
    return Request(
        {f"csv:{folder / 'labels.csv'}": ["tsn"]}, "tiny", [0], folder.parent / "w", folder.parent / "data",
        allow_missing=allow_missing,
    )  # fmt: skip


def test_cells_are_planned_anew_without_a_video_that_a_job_found_broken(folder: Path) -> None:
    request = asked(folder, 1)
    cells, _ = resolve(request)
    failed = {s.key: Task(s, s.needs, status="failed") for s in cells[0].specs}
    assert replanned(request, Outcome(cells, failed)) is None, "it failed for another reason"
    videos = cells[0].data.open()
    videos.quarantine(videos.splits["train"][0], DataError("cannot be decoded"))
    assert replanned(request, Outcome(cells, {k: replace(t, status="done") for k, t in failed.items()})) is None
    assert replanned(replace(request, allow_missing=0), Outcome(cells, failed)) is None
    asked_to_stop = {**failed, "other": Task(cells[0].evaluation, (), status="stopped")}
    assert replanned(request, Outcome(cells, asked_to_stop)) is None
    notes = [failure_file(request.work_dir, key) for key in (*failed, "other")]
    for note in notes:
        write_json(note, {})
    (again,), _ = replanned(request, Outcome(cells, failed)) or ((), {})
    assert [note.exists() for note in notes] == [s.key in {a.key for a in again.specs} for s in cells[0].specs] + [True]
    assert again.evaluation.fingerprint != cells[0].evaluation.fingerprint
    assert not {s.key for s in again.specs} & set(failed), "nothing of the larger set counts for the smaller one"
    videos.quarantine(videos.splits["train"][1], DataError("cannot be decoded"))
    assert replanned(request, Outcome(cells, failed)) is None, "more than is allowed"


def test_what_is_planned_anew_is_forced_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[bool] = []

    def execute(request: Request, cells: list[Cell], *_: object) -> Outcome:
        forced.append(request.force)
        return Outcome(cells, {s.key: Task(s, s.needs, status="failed") for s in cells[0].specs})

    request = replace(asked(folder, 2), force=True)
    planned = resolve(request)
    monkeypatch.setattr(commands, "request", lambda *_: request)
    monkeypatch.setattr(commands, "execute", execute)
    monkeypatch.setattr(commands, "replanned", lambda *_: planned)
    about: Any = SimpleNamespace(dry_run=False)
    commands.run(about, about, about, about, as_json=True, command="bench.py run")
    assert forced == [True, False, False]


@pytest.mark.slow
def test_a_run_goes_on_without_a_video_that_breaks_in_training(folder: Path, tmp_path: Path) -> None:
    name = open_dataset(f"csv:{folder / 'labels.csv'}", data_root=tmp_path, size="tiny").splits["train"][0].id
    damage(folder / name)
    line = command(folder / "labels.csv", tmp_path / "w", "--methods", "tsn", "--epochs", "1", "--allow-missing", "1")
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "failed" in done.stdout and f"{name}: cannot be decoded" in done.stdout
    assert "planned anew without the videos that could not be decoded" in done.stdout
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "w").glob("records/evaluation/*/result.json"))
    assert record["dataset"]["missing"] == [name] and sum(record["dataset"]["decoder"].values()) == 23
    assert {"content", "dropped", "duplicates", "untrained"} <= set(record["dataset"]) and record["disclosures"] == []
