"""What `eval` evaluates and `latency` times, before a job of theirs starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.commands import evaluate, latency
from harness.commands.options import Parts, Place, TimingOptions, Videos
from harness.errors import BenchError
from harness.plan.units import Spec
from tests.commands.test_predict import made
from tests.reports.conftest import TSN, V2, Factory


class Asked(Exception):
    """In place of the work."""


def asked_of(specs: Sequence[Spec], *_: Any, **__: Any) -> None:
    raise Asked(*specs)


@pytest.mark.parametrize(
    ("trained", "sets", "used"),
    [
        ({"pipeline": "authors"}, [], "authors"),
        ({"pipeline": "authors"}, ["protocol.pipeline=harness"], "harness"),
        ({}, [], "harness"),
    ],
)
def test_eval_prepares_frames_as_in_training(
    trained: dict[str, str],
    sets: list[str],
    used: str,
    clips_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "finish", asked_of)
    checkpoint = made(tmp_path / "a", "tsn", classes=2, resolution=112, **trained)
    place, videos = Place(device="cpu", work_dir=tmp_path / "w"), Videos(data_root=tmp_path / "d")
    how: dict[str, Any] = {"sets": sets, "dump": None, "as_json": True, "command": ""}
    with pytest.raises(Asked) as found:
        evaluate.evaluate(checkpoint, f"csv:{clips_csv}", place, videos, Parts(), **how)
    (spec,) = found.value.args
    assert spec.protocol["pipeline"] == spec.data.pipeline == used


def test_latency_finds_a_method_by_defaults_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "finish", asked_of)
    data = {"name": "glyphs", "data_root": str(tmp_path), "size": "tiny"}
    varied = replace(V2, name="adafocus-v2[random_pass=false]", settings={"random_pass": False})
    usual, other, _ = (Factory(tmp_path).evaluation(fake, data=data).result["key"] for fake in (V2, varied, TSN))
    place, timing = Place(device="cpu", work_dir=tmp_path), TimingOptions(batch="1", point="full")
    for name, keys in {
        "adafocus-v2[random_pass=true]": {usual},
        "adafocus-v2": {usual},
        "adafocus-v2[random_pass=false]": {other},
    }.items():
        with pytest.raises(Asked) as found:
            latency.latency([name], place, timing, as_json=True, command="")
        assert {spec.evaluation for spec in found.value.args} == keys
    clocks = replace(timing, end_to_end=True)
    with pytest.raises(Asked) as found:
        latency.latency(["adafocus-v2[random_pass=false]"], place, clocks, as_json=True, command="")
    assert [(spec.mode, spec.batch) for spec in found.value.args] == [("batch", 1), ("file", 1)]
    with pytest.raises(BenchError, match="no finished evaluation of adafocus-v2.dropout=0.9. in"):
        latency.latency(["adafocus-v2[dropout=0.9]"], place, timing, as_json=True, command="")
