"""Damaged and foreign files in a work directory, and kills between its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import BenchError
from harness.store import artifacts
from harness.store.files import read_json, write_json
from harness.store.records import read_record, read_records
from harness.store.shapes import FailureNote
from harness.store.work_dir import locked, set_aside

DESCRIPTION: dict[str, Any] = {
    "method": "net", "stage": "main", "settings": {"num_classes": 2}, "recipe": {"epochs": 1}, "seconds": 1.0,
    "samples": 8, "departures": [], "device": "cpu", "sources": {}, "made_with": {},
}  # fmt: skip
STATE = {"w": torch.arange(3.0)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no whole JSON"),
        ('{"schema": 1, "meth', "no whole JSON"),
        ("\xff\xfe", "no whole JSON"),
        ("[1]", "the whole must be an object"),
        ('{"some": "JSON"}', "schema is missing"),
        ('{"schema": 1}', "method is missing"),
        (json.dumps({**DESCRIPTION, "schema": 1, "weights": {"file": "m"}}), "weights.sha256 is missing"),
        (json.dumps({**DESCRIPTION, "schema": 1, "weights": 3}), "weights must be an object"),
        (json.dumps({**DESCRIPTION, "schema": 1, "weights": None, "sources": {"a": 1}}), "weights must be an object"),
        ("[" * 100_000, "no whole JSON"),
    ],
)
def test_a_damaged_or_foreign_artifact_names_file_and_key(text: str, told: str, tmp_path: Path) -> None:
    path = artifacts.folder(tmp_path, "k") / "artifact.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BenchError) as caught:
        artifacts.read(tmp_path, "k")
    assert str(path) in str(caught.value) and told in str(caught.value) and "\n" not in str(caught.value)
    (path.parent / "model.safetensors").touch()
    with pytest.raises(BenchError):
        artifacts.located(path.parent)


def test_an_artifact_of_another_schema_is_not_there(tmp_path: Path) -> None:
    write_json(artifacts.folder(tmp_path, "k") / "artifact.json", {"schema": 99, "whatever": 1})
    assert artifacts.read(tmp_path, "k") is None


def test_what_an_unfinished_training_rests_on(tmp_path: Path) -> None:
    first, second = ({"sources": {"m": text}, "made_with": {}} for text in "ab")
    assert artifacts.begun(tmp_path, "k") is None
    assert artifacts.begin(tmp_path, "k", first) == artifacts.begin(tmp_path, "k", second) == first
    run = artifacts.folder(tmp_path, "k") / "run"
    (run / "epoch_1.pth").touch()
    (run / "sources.json").unlink()
    with pytest.raises(BenchError, match=r"sources\.json"):
        artifacts.begun(tmp_path, "k")


@pytest.mark.parametrize("text", ["", '{"schema": 1', '{"other": "project"}', '{"schema": 1, "key": "x"}', "3", "\xff"])
def test_a_damaged_record_is_left_out_and_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("evaluation", "latency"):
        folder = tmp_path / "records" / kind / "abc"
        folder.mkdir(parents=True)
        (folder / "result.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BenchError, match=r"abc/result\.json"):
            read_record(folder)
        assert read_records([tmp_path], kind) == []  # type: ignore[arg-type]
        assert str(folder) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_work_directory_that_is_a_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="file.*choose another --work-dir"), locked(tmp_path / name):
        pass
    with pytest.raises(BenchError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_work_directory_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="not UTF-8") as caught, locked(tmp_path / os.fsdecode(b"w\xff")):
        pass
    str(caught.value).encode()


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "note.json").mkdir()
    with pytest.raises(BenchError, match=r"cannot read .*note\.json"):
        read_json(tmp_path / "note.json", FailureNote)


# -- kills ---------------------------------------------------------------------------------------

STEPS = ("rename", "replace", "unlink", "mkdir", "fsync")
"""Calls that change what is on the disk."""


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Whether a process that does `work` was ended before its `step`-th call that changes the disk."""
    child = os.fork()
    if child == 0:
        seen = 0

        def ending(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen > step:
                    os._exit(9)
                return call(*args, **kwargs)

            return wrapper

        for name in STEPS:
            setattr(os, name, ending(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def begun(work_dir: Path) -> None:
    """A training that has all its epochs and no artifact."""
    artifacts.begin(work_dir, "k", {"sources": {}, "made_with": {}})
    (artifacts.folder(work_dir, "k") / "run" / "epoch_3.pth").write_text("epoch 3")


def test_a_kill_while_committing_or_removing_epochs_loses_nothing(tmp_path: Path) -> None:
    def finish(work_dir: Path) -> None:
        artifacts.commit(work_dir, "k", STATE, DESCRIPTION)
        artifacts.drop_epochs(work_dir, "k")

    kills = 0
    while True:
        work_dir = tmp_path / str(kills)
        begun(work_dir)
        run = artifacts.folder(work_dir, "k") / "run"
        if not killed_at(kills, lambda: finish(work_dir)):  # noqa: B023
            break
        if artifacts.read(work_dir, "k") is None:
            assert (run / "epoch_3.pth").read_text() == "epoch 3" and artifacts.begun(work_dir, "k") is not None
        else:
            torch.testing.assert_close(artifacts.load_state(work_dir, "k"), STATE)
        finish(work_dir)  # the next run
        torch.testing.assert_close(artifacts.load_state(work_dir, "k"), STATE)
        assert not list(run.glob("epoch_*"))
        kills += 1
    assert kills >= 7


def test_a_kill_while_setting_aside_loses_nothing(tmp_path: Path) -> None:
    kills = 0
    while True:
        work_dir = tmp_path / str(kills)
        begun(work_dir)
        if not killed_at(kills, lambda: set_aside(work_dir, artifacts.folder(work_dir, "k")) and None):  # noqa: B023
            break
        assert [path.read_text() for path in work_dir.rglob("epoch_3.pth")] == ["epoch 3"]
        assert (artifacts.folder(work_dir, "k") / "run" / "sources.json").exists()
        kills += 1
    assert kills >= 2
    assert (work_dir / "aside" / "artifacts" / "k.1" / "run" / "epoch_3.pth").read_text() == "epoch 3"


def test_nothing_set_aside_is_ever_replaced(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "file").write_text(str(number))
        assert set_aside(tmp_path, tmp_path / "file") == tmp_path / "aside" / f"file.{number}"
    assert [(tmp_path / "aside" / f"file.{n}").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
