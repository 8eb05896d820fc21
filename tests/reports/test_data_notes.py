"""What a report says of the videos and weights behind its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.collect import Group, collect
from tests.reports.conftest import TSN, V2, Factory


def group_of(work_dir: Path, *datasets: dict[str, Any], **top: Any) -> Group:
    """The group of two records, with more entries under `dataset` and at the top."""
    for fake, more in zip((TSN, V2), datasets, strict=True):
        record = Factory(work_dir).evaluation(fake, **top)
        result = {**record.result, "dataset": {**record.result["dataset"], **more}}
        (record.path / "result.json").write_text(json.dumps(result))
    (group,) = collect([work_dir]).groups
    return group


def test_what_was_left_out_or_is_there_twice_is_told(tmp_path: Path) -> None:
    about = {
        "missing": ["a.mp4"], "dropped": ["b.mp4", "c.mp4"], "duplicates": [["train: d.mp4", "test: e.mp4"]],
        "untrained": ["jump"],
    }  # fmt: skip
    notes = "\n".join(group_of(tmp_path, about, about).notes)
    for told in (
        "1 videos are missing or broken and were left out for every method: a.mp4",
        "2 videos have too few frames and were left out for every method: b.mp4, c.mp4",
        "1 groups of videos hold the same, within a split or in several: train: d.mp4 = test: e.mp4",
        "1 classes have no training video: jump",
    ):
        assert told in notes


def test_files_of_another_encoder_are_told_apart(tmp_path: Path) -> None:
    assert "another encoder" not in "".join(group_of(tmp_path / "a", {"content": "1"}, {"content": "1"}).notes)
    assert "another encoder" in "".join(group_of(tmp_path / "b", {"content": "1"}, {"content": "2"}).notes)


def test_what_the_weights_have_seen_is_disclosed(tmp_path: Path) -> None:
    told = "AdaFocus V1: the weights are the authors'."
    assert group_of(tmp_path, {}, {}, disclosures=[told]).disclosures.count(told) == 1


def test_what_changed_in_mid_training_is_told(tmp_path: Path) -> None:
    stage = {"name": "train", "method": "tsn", "epochs": 1, "seconds": 1.0, "samples": 8, "shared": False}
    stages = [{**stage, "changed_midway": [*m]} for m in ([], ["harness.layers.crop"])]
    training = {
        "seconds": 1.0, "own_seconds": 1.0, "samples": 8, "stages": stages, "departures": [], "device": "cpu"
    }  # fmt: skip
    told = f"Changed while {TSN.title} was trained: harness.layers.crop."
    assert told in group_of(tmp_path, {}, {}, training=training).notes
