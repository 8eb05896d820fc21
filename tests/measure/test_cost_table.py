"""Trace x table against closed forms, and the errors of measurements that cannot be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from harness.contract.declarations import EMPTY
from harness.contract.trace import EventKey, Trace
from harness.errors import BenchError
from harness.measure.cost_table import CostTable, measure, metered
from harness.measure.counter import MacMeter


class Halting(nn.Module):
    """Looks at every frame with a cheap layer and, where a video's first pixel is bright, with a dear one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.cheap, self.dear, self.aux = nn.Linear(12, 2), nn.Linear(12, 50), nn.Linear(2, 3)
        self.fault = ""

    def infer(self, clips, point=EMPTY, *, trace, generator=None):
        x = clips["frames"].float().flatten(2)
        frames = x.shape[1]
        with trace.work("cheap", "", (12,), len(x) * frames):
            seen = self.cheap(x)
        bright = torch.nonzero(x[:, 0, 0] > point.get("threshold", 128)).flatten()
        if len(bright):
            with trace.work("dear", "", (12,), len(bright), videos=bright.cpu().numpy()):
                self.dear(x[bright, 0])
        if trace.training_parts:
            with trace.work("aux", "", (2,), len(x), training_only=True):
                self.aux(seen[:, 0])
        if self.fault == "outside":
            self.dear(x)
        if self.fault == "uneven":
            with trace.work("uneven", "", (1,), len(x)):
                self.dear(x[:1])
        if self.fault == "unknown":
            with trace.work("factors", "", (2,), len(x) * frames):
                torch.linalg.qr(seen)
        return seen.mean(1)


def clips(*first_pixels, frames=3):
    x = torch.zeros(len(first_pixels), frames, 3, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0, 0] = torch.tensor(first_pixels)
    return {"frames": x}


def trace_of(model, batch, point=EMPTY, **kwargs):
    trace = Trace(len(batch["frames"]), **kwargs)
    with torch.inference_mode():
        model.infer(batch, point, trace=trace)
    return trace


CHEAP, DEAR = 12 * 2, 12 * 50


def test_gflops_follow_each_videos_own_decisions():
    model = Halting()
    table, check = measure(model, [clips(0, 255), clips(255)])
    assert check == {"videos": 3, "max_relative_difference": 0.0}
    trace = trace_of(model, clips(255, 0, 0, 255))
    expected = (3 * CHEAP + np.array([1, 0, 0, 1]) * DEAR) / 1e9
    np.testing.assert_allclose(table.gflops(trace), expected, rtol=1e-12)
    parts = table.components(trace)
    assert list(parts) == ["cheap", "dear"]
    np.testing.assert_allclose(parts["dear"] * 1e9, [DEAR, 0, 0, DEAR])


def test_points_are_measured_each():
    table, _ = measure(Halting(), [clips(100)], [{}, {"threshold": 50}])
    assert {key.component for key in table.macs} == {"cheap", "dear"}
    counts = []
    table, _ = measure(
        Halting(), lambda point: counts.append(point) or [clips(0, frames=point["n"])], [{"n": 1}, {"n": 2}]
    )
    assert counts == [{"n": 1}, {"n": 2}]
    assert table.macs[EventKey("cheap", "", (12,))] == CHEAP


def test_training_only_parts_are_kept_apart():
    model = Halting()
    table, _ = measure(model, [clips(0)], training_parts=True)
    trace = trace_of(model, clips(0), training_parts=True)
    assert table.gflops(trace)[0] * 1e9 == pytest.approx(3 * CHEAP)
    assert table.gflops(trace, training_only=True)[0] * 1e9 == pytest.approx(3 * CHEAP + 6)


def test_accounting_of_the_paper():
    model = Halting()
    table, _ = measure(model, [clips(255)])
    trace = trace_of(model, clips(255, 255))
    trace.accounted["unused frame"] = np.array([float(CHEAP), 0.0])
    np.testing.assert_allclose(table.gflops_accounted(trace) * 1e9, [2 * CHEAP + DEAR, 3 * CHEAP + DEAR])


def test_missing_work_is_named_and_can_be_measured_later():
    model = Halting()
    table, _ = measure(model, [clips(0)])
    trace = trace_of(model, clips(255))
    assert table.missing(trace) == [EventKey("dear", "", (12,))]
    with pytest.raises(BenchError, match=r"dear\|\|12"):
        table.gflops(trace)
    later = CostTable.of([metered(model, clips(255))[0]])
    assert table.merged(later).gflops(trace)[0] * 1e9 == pytest.approx(3 * CHEAP + DEAR)
    with pytest.raises(BenchError, match="cheap"):
        table.merged(CostTable({EventKey("cheap", "", (12,)): 5.0}))


def test_rows_round_trip():
    table, _ = measure(Halting(), [clips(255)], training_parts=True)
    assert CostTable.from_rows(table.rows()) == table
    assert table.rows()[0] == {
        "component": "cheap",
        "variant": "",
        "shape": [12],
        "training_only": False,
        "macs": CHEAP,
    }


def test_work_outside_events_is_refused():
    model = Halting()
    model.fault = "outside"
    with pytest.raises(BenchError, match="outside components"):
        measure(model, [clips(0)])


def test_cost_that_is_not_constant_per_row_is_refused():
    model = Halting()
    model.fault = "uneven"
    with pytest.raises(BenchError, match="uneven"):
        measure(model, [clips(0), clips(0, 0)])


def test_operator_without_formula_is_refused():
    model = Halting()
    model.fault = "unknown"
    with pytest.warns(UserWarning), pytest.raises(BenchError, match="linalg_qr"):
        metered(model, clips(0))


def test_measuring_leaves_the_mode_alone():
    model = Halting().train()
    measure(model, [clips(0)])
    assert model.training and all(m.training for m in model.modules())


def test_trace_holds_what_the_meter_saw():
    meter = MacMeter()
    with meter:
        trace = trace_of(Halting(), clips(255, 255), meter=meter)
    assert trace.macs[EventKey("dear", "", (12,))] == [(2.0 * DEAR, 2.0)]
