"""Glue: a forward over its own component calls, by a clock that the toy method sets; nothing here is timed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from harness.commands.gate import gate as gate_command
from harness.contract.components import Call, component
from harness.contract.recognizer import EfficientRecognizer
from harness.errors import FAILED, OK, UsageError
from harness.measure import glue as measured
from harness.measure.glue import gated, glue, line

WORK, BETWEEN = 1.0, 0.25


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 0.0

    def pass_(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measured, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


class Toy(EfficientRecognizer):
    """Two components; `BETWEEN` seconds pass outside of them."""

    def __init__(self, clock):
        super().__init__(2, resolution=4, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.clock = clock

    def classify(self, clips, point=None, generator=None):
        x = self.first(clips["frames"].all().flatten(1).float())
        self.clock.pass_(BETWEEN)
        return self.second(x[:, :2], step=1) + self.second(x[:, 2:4], step=2)

    @component("first")
    def first(self, x_BD):
        self.clock.pass_(WORK)
        return x_BD

    @component("second", variant=lambda model, step: str(step))
    def second(self, x_BD, *, step):
        self.clock.pass_(step * WORK)
        return x_BD


def clips(videos):
    return {"frames": torch.zeros(videos, 1, 3, 4, 4, dtype=torch.uint8)}


def test_glue_is_what_passes_between_components(clock):
    found = glue(Toy(clock), clips(3))
    assert (found.batch, found.calls) == (3, 3)
    assert found.components_s == pytest.approx(4 * WORK)
    assert found.verdict.ratio == pytest.approx(1 + BETWEEN / 4)
    assert not found.verdict.broken and found.limit == 1.10
    assert "x1.062" in line(found) and "its 3 component calls" in line(found)


def test_forms_run_in_both(clock):
    """With components four times as fast the same glue weighs four times as much."""
    toy = Toy(clock)
    forms = {Call("first"): lambda x: (clock.pass_(WORK / 4), x)[1]}
    for step in (1, 2):
        forms[Call("second", (("step", step),))] = lambda x, step=step: (clock.pass_(step * WORK / 4), x)[1]
    toy.forms = forms
    found = glue(toy, clips(16))
    assert found.verdict.ratio == pytest.approx(1 + BETWEEN)
    assert found.verdict.broken and found.limit == 1.05
    assert toy.forms is forms


def test_arguments_are_those_of_the_forward(clock):
    toy, seen = Toy(clock), []
    toy.forms = {Call("second", (("step", 2),)): lambda x: (seen.append(x), x)[1]}
    given = torch.arange(48, dtype=torch.uint8).view(1, 1, 3, 4, 4)
    glue(toy, {"frames": given})
    assert {tuple(x[0].tolist()) for x in seen} == {(2.0, 3.0)}


def test_exits_are_all_asked():
    """Methods with exits have a second case, whose forward is as many segments as it has exits."""
    found = dict(gated(["adafocus-v2"], size="tiny", batches=[1], rounds=5, sample_s=0))
    assert set(found) == {"adafocus-v2", "adafocus-v2:exits"}
    assert found["adafocus-v2"].calls == 5 and found["adafocus-v2:exits"].calls == 5 * 8


def test_the_gate_breaks_where_one_does(monkeypatch, capsys, clock):
    little, much = glue(Toy(clock), clips(1)), glue(Toy(clock), clips(16))
    for found, status in (([little], OK), ([little, much], FAILED)):
        monkeypatch.setattr("harness.commands.gate.machine_lock", lambda *_, **__: nullcontext())
        monkeypatch.setattr(measured, "gated", lambda *_, found=found, **__: (("toy", one) for one in found))
        assert gate_command(None, "tsn", glue=True, device=None, engine=None, store=False, as_json=False) == status
    assert "toy: BROKEN, at most x1.05" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "words"), [
    ({"against": "HEAD", "glue": True}, "leave out --against"),
    ({"against": "HEAD", "device": "cpu"}, "--device and --engine go with --glue"),
    ({"engine": "compiled"}, "--device and --engine go with --glue"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, words):
    given = dict.fromkeys(("against", "methods", "device", "engine"))
    with pytest.raises(UsageError, match=words):
        gate_command(**{**given, "glue": False, "store": False, "as_json": False, **options})
