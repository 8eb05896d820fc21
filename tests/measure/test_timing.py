"""What a timing process compares and measures besides time: outputs, agreement in half precision, compiled share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from harness.contract.declarations import EMPTY, OperatingPoint
from harness.contract.recognizer import EfficientRecognizer
from harness.layers.backbone import Backbone
from harness.measure.latency import Output
from harness.measure.timing import agreement, box_agreement, compared, heavy_share

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
        with trace.event("all", shape=(3,)):
            place = self.policy(self.net.features(clips["frames"][:, 0, :, 0, 0].float() / 255))
        boxes = torch.cat((place, place, torch.full_like(place, 0.5), torch.full_like(place, 0.5)), 1)
        trace.note_boxes("focus", [0], boxes[:, None])
        return place.expand(-1, 2)


@pytest.fixture
def looker():
    torch.manual_seed(0)
    return Looker().eval()


CLIPS = [{"frames": torch.randint(0, 256, (2, 1, 3, 1, 1), dtype=torch.uint8)} for _ in range(2)]


def test_share_of_the_macs_that_run_in_heavy_parts_is_counted(looker):
    assert heavy_share(looker, CLIPS, OperatingPoint("full")) == pytest.approx(12 / 16)


def test_boxes_agree_within_a_pixel(looker):
    with torch.no_grad():
        looker.policy.weight.fill_(1e-3)
    assert box_agreement(looker, CLIPS, OperatingPoint("full"), "bfloat16") == 1.0
    with torch.no_grad():
        looker.policy.weight.fill_(100.0)  # half a percent of rounding now moves a box by many pixels
    assert box_agreement(looker, CLIPS, OperatingPoint("full"), "bfloat16") < 1.0
