"""What is timed of an evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import UsageError
from harness.plan.timing import TimingPlan
from harness.plan.units import DataSpec, LatencySpec

EVALUATION = {
    "key": "abc",
    "seed": 3,
    "method": {"name": "adafocus-v2", "size": "tiny"},
    "protocol": {"views": "centre"},
    "points": [{"name": name} for name in ("full", "exit@0.30", "exit@0.50", "exit@0.75")],
}


def specs(plan: TimingPlan, **changes: Any) -> list[LatencySpec]:
    return plan.specs(EVALUATION, data=DataSpec("glyphs", "data", "tiny"), machine="m", device="cpu", **changes)


def test_every_operating_point_is_timed_at_every_batch_size() -> None:
    found = [(s.point, s.batch, s.mode) for s in specs(TimingPlan())]
    assert found == [(p["name"], b, "batch") for p in EVALUATION["points"] for b in (1, 16)]  # type: ignore[index]


def test_a_plan_reaches_its_units() -> None:
    plan = TimingPlan((4,), "bfloat16", "compiled", "contiguous", 2, 0.5, 5, 7.0)
    (found,) = specs(plan, points=["full"])
    assert (found.dtype, found.engine, found.memory_format, found.threads) == (
        "bfloat16", "compiled", "contiguous", 2,
    )  # fmt: skip
    assert (found.options, found.quiet_wait_s) == ({"min_seconds": 0.5, "launches": 5}, 7.0)


def test_an_unknown_point_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match=r"unknown operating point of adafocus-v2 'exit@0.7'.*did you mean"):
        specs(TimingPlan(), points=["exit@0.7"])


def test_how_long_a_video_may_wait_is_of_streams_only() -> None:
    plan = TimingPlan((4,), modes=("batch", "stream"), max_wait_s=2.0)
    batch, stream = specs(plan, points=["full"])
    assert (batch.mode, stream.mode) == ("batch", "stream") and batch.key != stream.key
    assert "max_wait_s" not in batch.options and stream.options["max_wait_s"] == 2.0


def test_a_stream_of_several_views_is_refused() -> None:
    several = EVALUATION | {"protocol": {"views": "three-crop"}}
    data = DataSpec("glyphs", "data", "tiny")
    with pytest.raises(UsageError, match="views=three-crop; --mode stream times one view"):
        TimingPlan(modes=("stream",)).specs(several, data=data, machine="m", device="cpu")


def test_a_mode_is_one_that_can_be_timed() -> None:
    with pytest.raises(UsageError, match="unknown mode 'batches'.*did you mean 'batch'"):
        TimingPlan(modes=("batches",))


@pytest.mark.parametrize(
    "wrong",
    [{"batches": (0,)}, {"batches": (-1,)}, {"threads": 0}, {"launches": 0}, {"min_seconds": -1.0},
     {"min_seconds": float("nan")}, {"quiet_wait_s": -1.0}, {"max_wait_s": -1.0}],
)  # fmt: skip
def test_less_than_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1|0 or more"):
        TimingPlan(**wrong)
