"""A report of a work directory in which something is damaged."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from harness.errors import BenchError
from harness.store.records import read_record
from reports.collect import collect
from tests.reports.conftest import TSN, V2, Factory


@pytest.mark.parametrize("text", ["", '{"schema": 1, "key"', '{"other": "project"}', "[]", "\0\xff"])
def test_a_damaged_record_is_left_out_and_named(
    text: str, factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = factory.evaluation(TSN)
    factory.latency(kept)
    damaged = [factory.evaluation(V2).path, factory.latency(kept, batch=16).path]
    for folder in damaged:
        (folder / "result.json").write_bytes(text.encode("latin-1"))
    report = collect([factory.work_dir])
    assert [record.path for record in report.evaluations] == [kept.path]
    assert len(report.latencies) == 1
    assert all(str(folder) in capsys.readouterr().err for folder in damaged[:1])
    assert [f["what"] for f in report.failures] == [f"record {folder.name}" for folder in damaged]
    for failure, folder in zip(report.failures, damaged, strict=True):
        assert str(folder / "result.json") in failure["reason"] and "\n" not in failure["reason"]


@pytest.mark.parametrize("text", ["", "[]", '{"what": 3}'])
def test_a_damaged_failure_note_is_named(text: str, factory: Factory) -> None:
    factory.evaluation(TSN)
    factory.failure()
    (note,) = (factory.work_dir / "records" / "failed").glob("*.json")
    note.write_text(text)
    (failure,) = collect([factory.work_dir]).failures
    assert failure["what"] == note.stem and str(note) in failure["reason"]


@pytest.mark.parametrize("key", ["data", "artifact", "created", "checkpoint", "cost", "points.0.budget"])
def test_a_foreign_record_says_which_key_it_lacks(key: str, factory: Factory) -> None:
    record = factory.evaluation(TSN)
    result = copy.deepcopy(dict(record.result))
    part: Any = result["points"][0] if "." in key else result
    del part[key.rpartition(".")[2]]
    (record.path / "result.json").write_text(json.dumps(result))
    with pytest.raises(BenchError, match=f"{key} is missing"):
        read_record(record.path)
