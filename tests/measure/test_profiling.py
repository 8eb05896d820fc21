"""The profile of a forward: components, what runs outside them, the trace file."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from torch import nn

from harness.contract.components import component
from harness.contract.declarations import EMPTY
from harness.contract.recognizer import EfficientRecognizer
from harness.errors import BenchError
from harness.measure.profiling import OUTSIDE, profile, table


class TwoParts(EfficientRecognizer):
    def __init__(self):
        super().__init__(2, resolution=4, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.large, self.small = nn.Linear(48, 2000), nn.Linear(48, 2)

    def classify(self, clips, point=EMPTY, generator=None):
        frames = self.normalise(clips["frames"].all()).flatten(2)
        self.look(frames)
        return sum(self.conclude(frames[:, step]) for step in range(int(point.get("steps", 1))))

    @component("large", steps=True)
    def look(self, x_BTD):
        return self.large(x_BTD)

    @component("small", variant="step")
    def conclude(self, x_BD):
        return self.small(x_BD)


def clips():
    return {"frames": torch.zeros(3, 4, 3, 4, 4, dtype=torch.uint8)}


def test_components_and_trace(tmp_path):
    found = profile(TwoParts(), clips(), {"steps": 2}, tmp_path / "new" / "trace.json", repeats=4)
    parts = {c.component: c for c in found.components}
    assert set(parts) == {"large", "small", OUTSIDE}
    assert found.components[-1].component == OUTSIDE
    assert (parts["large"].calls, parts["large"].rows) == (1, 12)
    assert (parts["small"].calls, parts["small"].rows, parts["small"].variant) == (2, 6, "step")
    assert sum(c.seconds for c in found.components) == pytest.approx(found.forward_s)
    assert sum(c.share for c in found.components) == pytest.approx(1)
    assert (found.glue.batch, found.glue.calls) == (3, 3)
    events = {e.get("name") for e in json.loads(found.trace_file.read_text())["traceEvents"]}
    assert {"large||48", "small|step|48", "aten::linear"} <= events


def test_compressed_trace_and_table(tmp_path):
    found = profile(TwoParts(), clips(), out=tmp_path / "trace.json.gz", repeats=1)
    with gzip.open(found.trace_file) as file:
        assert json.load(file)["traceEvents"]
    lines = table(found).splitlines()
    assert lines[0].split() == ["component", "variant", "shape", "calls", "rows", "ms", "share"]
    assert len(lines) == 6
    assert str(found.trace_file) in lines[-2]
    assert "glue" in lines[-1]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="--out"):
        profile(TwoParts(), clips(), out=tmp_path / "file" / "trace.json", repeats=1)


def test_trace_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "trace.json").mkdir()
    with pytest.raises(BenchError, match=r"cannot write .*trace\.json.*--out"):
        profile(TwoParts(), clips(), out=tmp_path / "trace.json", repeats=1)
