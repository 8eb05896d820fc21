"""A report of a work directory in which something is damaged."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness.errors import BenchError
from harness.store.records import read_record
from reports import export
from reports.collect import collect
from reports.compare import compare
from reports.page import GroupPictures, page
from reports.writing import _tables
from tests.reports.conftest import AR_NET, TSN, V2, Factory


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


@pytest.mark.parametrize("name", ["per_video", "overlay"])
def test_truncated_arrays_leave_one_record_out(name: str, factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    kept, damaged = factory.evaluation(TSN), factory.evaluation(V2)
    path = damaged.path / f"{name}.npz"
    path.write_bytes(path.read_bytes()[:100])
    report = collect([factory.work_dir])
    assert [record.path for record in report.evaluations] == [kept.path]
    (failure,) = report.failures
    assert failure["what"] == f"record {damaged.path.name}" and str(path) in failure["reason"]
    assert str(path) in capsys.readouterr().err
    assert [c.method for c in compare(factory.work_dir, factory.work_dir).changes] == ["tsn"] * 4


def paths(value: Any, so_far: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key of nested objects, and of the first entry of a list."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(key, str):
            yield (*so_far, key)
        yield from paths(inner, (*so_far, key))


def read(factory: Factory) -> tuple[int, int]:
    """What a report counts, and where nothing was left out all that it takes from records but for the drawing."""
    report = collect([factory.work_dir])
    counted = len(report.evaluations), len(report.latencies)
    if counted != (2, 2):
        return counted
    export.points(report.evaluations), export.latencies(report.latencies)
    made = {g.anchor: _tables(g) for g in report.groups}
    page(report, {g.anchor: GroupPictures() for g in report.groups}, made)
    compare(factory.work_dir, factory.work_dir).to_text()
    return counted


@pytest.mark.parametrize("kind", ["evaluation", "latency"])
def test_a_record_without_a_key_is_left_out_or_reported_without_it(
    kind: str, factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    static = dataclasses.replace(TSN, curve=())
    factory.latency(factory.evaluation(static, videos=20))
    evaluated = factory.evaluation(dataclasses.replace(AR_NET, curve=()), videos=20)
    metrics = {"top1": {"value": 71.0, "low": 65.0, "high": 77.0}}
    shares = {"top1": 0.9, "exits": None, "decisions": None, "boxes": None}
    timed = factory.latency(evaluated, precision={"videos": 20, "agreement": shares, "metrics": metrics})
    whole = evaluated if kind == "evaluation" else timed
    file, left_out = whole.path / "result.json", 0
    text = file.read_text()
    for path in paths(json.loads(text)):
        for change in ("gone", "null"):
            changed = json.loads(text)
            *above, last = path
            holder = functools.reduce(lambda inner, key: inner[key], above, changed)
            holder.pop(last) if change == "gone" else holder.update({last: None})
            file.write_text(json.dumps(changed))
            try:
                counted = read(factory)
            except Exception as error:
                raise AssertionError(f"{path} {change}") from error
            told = capsys.readouterr().err
            assert (counted == (2, 2)) != (str(file) in told), path
            left_out += counted != (2, 2)
    assert left_out > 60


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
