"""What a timing process compares and measures besides time: outputs, agreement in half precision."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from harness.contract.declarations import EMPTY, ClipRequest, OperatingPoint
from harness.contract.recognizer import EfficientRecognizer
from harness.engine.precision import in_precision
from harness.layers.backbone import Backbone
from harness.measure import evaluation, timing
from harness.measure.latency import Output
from harness.measure.launches import check_outputs
from harness.measure.timing import agreement, box_agreement, boxes, compared
from harness.plan.protocol import Protocol
from harness.plan.units import DataSpec, LatencySpec

from mmaction.structures import ActionDataSample

CHOSEN = np.array([0, 2, 4, 5])
EVALUATED = {"logits": np.arange(18, dtype=np.float32).reshape(6, 3), "exits": np.array([0, 1, 2, 0, 1, 2])}


def outputs(logits=None, exits=None, batch=2):
    logits = EVALUATED["logits"][CHOSEN] if logits is None else logits
    exits = EVALUATED["exits"][CHOSEN] if exits is None else exits
    return [
        Output(torch.from_numpy(logits[i : i + batch].copy()), np.asarray(exits[i : i + batch]))
        for i in range(0, len(logits), batch)
    ]


def test_the_same_outputs_differ_nowhere():
    assert compared(outputs(), EVALUATED, CHOSEN) == {"videos": 4, "differing": 0, "exits": 0, "largest": 0.0}


def test_rounding_is_no_difference_but_less_work_is():
    logits = EVALUATED["logits"][CHOSEN] * 1.001
    logits[1] += 5
    found = compared(outputs(logits), EVALUATED, CHOSEN)
    assert (found["differing"], found["exits"]) == (1, 0)
    assert found["largest"] == pytest.approx(5, rel=0.01)
    early = compared(outputs(exits=[0, 0, 0, 0]), EVALUATED, CHOSEN)
    assert (early["differing"], early["exits"]) == (3, 3)


def test_a_video_that_is_timed_often_counts_once():
    """Small splits repeat videos; one that flips its exit is one video, not a share of the forwards."""
    chosen = np.array([0, 0, 2, 2, 5, 5])
    exits = EVALUATED["exits"][chosen]
    exits[chosen == 2] = 0
    found = compared(outputs(EVALUATED["logits"][chosen], exits), EVALUATED, chosen)
    assert (found["videos"], found["differing"], found["exits"]) == (3, 1, 1)
    check_outputs("tsn at full", [found])


def test_no_number_and_no_exit_are_differences():
    logits = EVALUATED["logits"][CHOSEN].copy()
    logits[0] = np.nan
    assert compared(outputs(logits), EVALUATED, CHOSEN)["differing"] == 1
    silent = [Output(o.logits, None) for o in outputs()]
    assert compared(silent, EVALUATED, CHOSEN)["exits"] == 4


def test_agreement_is_told_apart_by_prediction_exit_and_decision():
    logits = EVALUATED["logits"].copy()
    logits[0] = [9, 0, 0]
    trace = SimpleNamespace(exit_step=np.array([0, 1, 2, 0, 1, 0]), decisions={"action": np.array([[0, 1], [2, 2]])})
    found = agreement(SimpleNamespace(logits=logits, trace=trace), EVALUATED, {"action": np.array([[0, 1], [2, 0]])})
    assert found == {"top1": pytest.approx(5 / 6), "exits": pytest.approx(5 / 6), "decisions": 0.75}


class Net(Backbone):
    dim, stride = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(3, 4, bias=False)

    def trunk(self, x):
        return self.layers(x)


class Looker(EfficientRecognizer):
    """A backbone of 12 MACs per video beside a policy of 4, which puts a box where the backbone says."""

    def __init__(self) -> None:
        super().__init__(2, resolution=64, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.net, self.policy = Net(), nn.Linear(4, 1, bias=False)

    def infer(self, clips, point=EMPTY, *, trace, generator=None):
        with trace.work("all", "", (3,), trace.videos):
            place = self.policy(self.net.features(clips["frames"][:, 0, :, 0, 0].float() / 255))
        boxes = torch.cat((place, place, torch.full_like(place, 0.5), torch.full_like(place, 0.5)), 1)
        trace.note_boxes("focus", [0], boxes[:, None])
        return place.expand(-1, 2)


@pytest.fixture
def looker():
    torch.manual_seed(0)
    return Looker().eval()


class Crops:
    """In place of `ClipDataset`: a video's views differ."""

    def __init__(self, videos, split, requests, *, view, **_):
        self.view = view

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index >= 3:
            raise IndexError
        frames = torch.full((1, 3, 1, 1), 20 * index + 60 * self.view, dtype=torch.uint8)
        return {"inputs": {"frames": frames}, "data_samples": ActionDataSample().set_gt_label(0)}


@pytest.mark.parametrize(("views", "number"), [("centre", 1), ("three-crop", 3)])
def test_all_views_are_timed_and_say_what_was_evaluated(looker, monkeypatch, views, number):
    monkeypatch.setattr(evaluation, "ClipDataset", Crops)
    monkeypatch.setattr("harness.measure.views.ClipDataset", Crops)
    protocol, videos = Protocol(views=views), SimpleNamespace(splits={"test": [None] * 3})
    looker.clip_requests = lambda settings: (ClipRequest(1),)
    evaluator = evaluation.Evaluator(looker, videos, protocol)
    found = evaluator.run(OperatingPoint("full"), "test")
    table, _ = evaluator.cost_table([found])
    record = SimpleNamespace(
        arrays=lambda: {"full_logits": found.logits},
        result={
            "points": [{"name": "full", "settings": {}, "prefix": "full"}], "cost": {"table": table.rows()},
            "sources": {}, "dataset": {"name": "crops", "fingerprint": "f"},
        },
    )  # fmt: skip
    monkeypatch.setattr(timing, "_model", lambda spec, work_dir: timing._Model(looker, record, videos, protocol))
    options = {"launches": 20, "min_seconds": 0}
    data = DataSpec("crops", "data", "tiny")
    spec = LatencySpec("e", "looker", "tiny", data, 0, "full", 3, "m", "cpu", options=options)
    ((_, measured),) = timing.time_launch([spec], Path("results"), first=False)
    assert measured["outputs"] == {"videos": 3, "differing": 0, "exits": 0, "largest": pytest.approx(0, abs=1e-4)}
    assert measured["gflops"] == pytest.approx([3 * number * 16 / 1e9] * len(measured["gflops"]))


CLIPS = [{"frames": torch.randint(0, 256, (2, 1, 3, 1, 1), dtype=torch.uint8)} for _ in range(2)]


def test_boxes_agree_within_a_pixel(looker):
    def agree():
        theirs = boxes(looker, CLIPS, OperatingPoint("full"))
        with in_precision(looker, "bfloat16"):
            return box_agreement(boxes(looker, CLIPS, OperatingPoint("full")), theirs, looker.resolution)

    with torch.no_grad():
        looker.policy.weight.fill_(1e-3)
    assert agree() == 1.0
    with torch.no_grad():
        looker.policy.weight.fill_(100.0)  # half a percent of rounding now moves a box by many pixels
    assert agree() < 1.0
