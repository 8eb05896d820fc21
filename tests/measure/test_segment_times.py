"""The stopwatch of segments on a method of arithmetic: what is run, and what an evaluation does with the times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contract.components import component
from harness.contract.declarations import ClipRequest
from harness.contract.frames import Frames
from harness.contract.recognizer import EfficientRecognizer
from harness.data.cards import dataset_card
from harness.measure import evaluation, segment_times
from harness.measure.evaluation import Evaluator
from harness.measure.segmentation import SegmentTimes
from harness.plan.protocol import Protocol

from mmaction.structures import ActionDataSample


class Sum(EfficientRecognizer):
    """Adds a frame per segment."""

    def __init__(self, exits: int = 3) -> None:
        super().__init__(2, resolution=64, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.exits, self.exit_frames = exits, list(range(1, exits + 1))
        self.weigh = nn.Linear(1, 2, bias=False)
        self.weigh.weight.data = torch.tensor([[1.0], [-1.0]])
        self.calls: list[tuple[int, int, int]] = []

    def clip_requests(self, point=None, *, stage=None):
        return (ClipRequest(self.exits),)

    def begin(self, clips: Any, generator: Any = None) -> tuple[Frames, Tensor]:
        return clips["frames"], torch.zeros(len(clips["frames"]), 1)

    def segment(self, state: tuple[Frames, Tensor], first: int, last: int) -> tuple[tuple[Frames, Tensor], Tensor]:
        assert self.trace is not None, "as in an evaluation"
        frames, total_B1 = state
        self.calls.append((first, last, len(frames)))
        total_B1 = total_B1 + frames.at(range(first, last + 1))[:, :, 0, 0, 0].float().sum(1, keepdim=True)
        return (frames, total_B1), self.conclude(total_B1)

    @component("head", fast=False)
    def conclude(self, total_B1: Tensor) -> Tensor:
        return self.weigh(total_B1)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_times, "ROUNDS", (2, 2))


def measured(model: Sum, batch: int) -> dict[str, Any]:
    clips = [{"frames": torch.zeros(batch, model.exits, 3, 2, 2, dtype=torch.uint8)}] * 2
    return segment_times.measured(model.eval(), clips, batch=batch, device=torch.device("cpu"))


@pytest.mark.usefixtures("rounds")
def test_every_merged_segment_is_timed_at_every_number_of_rows() -> None:
    model = Sum()
    found = measured(model, 6)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert [(s["first"], s["last"]) for s in found["segments"]] == pairs
    assert found["rows"] == [1, 2, 4, 6] and found["rounds"] == 2
    assert all(len(entry["seconds"]) == 4 for entry in found["segments"]) and len(found["begin_s"]) == 4
    once = {(first, last, rows) for first, last in pairs for rows in (1, 2, 4, 6)}
    assert sorted(model.calls) == sorted([*once] * 3), "one round to warm up, two that count"
    assert model.trace is None


@pytest.mark.usefixtures("rounds")
def test_of_many_exits_segments_between_nine_stops_are_timed() -> None:
    found = measured(Sum(exits=17), 1)
    assert found["rows"] == [1] and len(found["segments"]) == 9 * 10 / 2
    assert SegmentTimes.of(found).candidates == tuple(range(0, 17, 2))


class Clips:
    """In place of `ClipDataset`: four videos; the first two show their class in the first frame, two in the last."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 4:
            raise IndexError
        frames = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
        frames[0 if index < 2 else 2] = 9
        return {"inputs": {"frames": frames}, "data_samples": ActionDataSample().set_gt_label(0)}


def test_an_evaluation_takes_stops_and_thresholds_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ClipDataset", Clips)
    splits = {"calib": [SimpleNamespace(labels=(0,))] * 4}
    videos = SimpleNamespace(card=dataset_card("glyphs"), splits=splits)
    calls = {(a, b): (1.0 + (b - a + 1),) for a in range(3) for b in range(a, 3)}
    times = SegmentTimes(1, (1,), (0.0,), calls)
    protocol = Protocol(budgets=(0.5, 1.0), budget_unit="ms")
    evaluator = Evaluator(Sum(), videos, protocol, times=times)
    full, half, whole = evaluator.points()
    assert full.settings == {} and evaluator.choices["full"].seconds == 4.0
    assert evaluator.choices["full"].stops == (2,) and evaluator.choices["full"].quality == 100.0
    assert half.settings["thresholds"] == list(evaluator.choices["exit@0.50"].thresholds)
    assert evaluator.choices["exit@0.50"].seconds <= 2.0
    assert evaluator.choices["exit@1.00"].quality == 100.0 and whole.budget == 1.0
