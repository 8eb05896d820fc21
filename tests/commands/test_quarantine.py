"""A video that only decoding shows to be broken: found by a job, left out by the same command where that is allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.data.videos import open_dataset
from harness.errors import DataError
from harness.plan.request import Request, resolve
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
    (again,), _ = replanned(request, Outcome(cells, failed)) or ((), {})
    assert again.evaluation.fingerprint != cells[0].evaluation.fingerprint
    assert not {s.key for s in again.specs} & set(failed), "nothing of the larger set counts for the smaller one"
    videos.quarantine(videos.splits["train"][1], DataError("cannot be decoded"))
    assert replanned(request, Outcome(cells, failed)) is None, "more than is allowed"


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
