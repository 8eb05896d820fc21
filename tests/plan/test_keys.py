"""What is one piece of work: settings that act at test time, and defaults written out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import UsageError
from harness.plan.overrides import Overrides
from harness.plan.planner import Planner
from harness.plan.protocol import TIME_BUDGETS, Protocol
from harness.plan.timing import Clock
from harness.plan.units import DataSpec, EvalSpec, read_spec, to_plain


class Videos:
    """What a planner reads of a VideoSet."""

    def __init__(self, name: str) -> None:
        from harness.data.cards import dataset_card

        self.card, self.resolution, self.fingerprint = dataset_card(name), 64, "f"
        self.splits = {"train": tuple(range(1200))}


def planner(protocol: Protocol = Protocol(), **changes: object) -> Planner:
    return Planner(DataSpec("glyphs", "data", "tiny"), Videos("glyphs"), protocol, size="tiny", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plain", "varied"),
    [
        ("adafocus-v2", "adafocus-v2[exit_every=3]"),
        ("uni-adafocus", "uni-adafocus[exit_score=logit]"),
        ("uni-adafocus-x3d", "uni-adafocus-x3d[exit_head=main,sample_wise=false]"),
        ("tsn", "tsn[test_frames=[1,3]]"),
        ("ar-net", "ar-net[test_frames=[1,3]]"),
        ("adafocus-v2[dropout=0.4]", "adafocus-v2[dropout=0.4,exit_every=3]"),
    ],
)
def test_test_time_settings_do_not_retrain(plain: str, varied: str) -> None:
    plan = planner()
    one, other = plan.cell(plain, 0), plan.cell(varied, 0)
    assert other.train == one.train
    assert other.evaluation.key != one.evaluation.key and other.evaluation.method == varied
    assert other.evaluation.artifact == one.evaluation.artifact
    assert other.evaluation.own_chain == one.evaluation.own_chain != ()


def test_test_time_overrides_do_not_retrain() -> None:
    one, other = (
        planner(overrides=overrides).cell("adafocus-v2", 0)
        for overrides in (Overrides(), Overrides({"adafocus-v2.exit_every": 3}))
    )
    assert other.train == one.train and other.evaluation.key != one.evaluation.key
    assert other.evaluation.settings["exit_every"] == 3


def test_what_another_method_needs_has_no_test_time_settings() -> None:
    changed = planner(overrides=Overrides({"test_frames": [1, 3]})).cell("ar-net", 0)
    assert changed.train == planner().cell("ar-net", 0).train


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("adafocus-v2[random_pass=true]", "adafocus-v2"),
        ("adafocus-v2[exit_every=1]", "adafocus-v2"),
        ("tsn[share=1]", "tsn"),
        ("tsn[test_frames=[1,2,4,8,16]]", "tsn"),
        ("random-patch[exit_every=0]", "random-patch"),
        ("adafocus-v2[random_pass=true,dropout=0.4]", "adafocus-v2[dropout=0.4]"),
        ("adafocus-v2[random_pass=false]", "adafocus-v2[random_pass=false]"),
    ],
)
def test_a_default_written_out_is_the_plain_method(asked: str, shown: str) -> None:
    plan = planner()
    one, other = plan.cell(shown, 0), plan.cell(asked, 0)
    assert other.method == other.evaluation.method == shown
    assert other.train == one.train and other.evaluation == one.evaluation
    assert other.evaluation.key == one.evaluation.key


def test_an_override_to_the_default_is_the_plain_method() -> None:
    overrides = Overrides({"random_pass": True, "exit_every": 1})
    assert planner(overrides=overrides).cell("adafocus-v2", 0) == planner().cell("adafocus-v2", 0)


def test_training_settings_retrain() -> None:
    plan = planner()
    assert plan.cell("adafocus-v2", 0).train[-1].key != plan.cell("adafocus-v2[random_pass=false]", 0).train[-1].key


def in_ms(machine: str = "m", device: str = "cpu", method: str = "adafocus-v2", **changes: int) -> EvalSpec:
    protocol = Protocol(budget_unit="ms", **changes)  # type: ignore[arg-type]
    return planner(protocol, clock=Clock(machine, device, 60.0)).cell(method, 0).evaluation


def test_budgets_in_time_belong_to_machine_device_batch_and_threads() -> None:
    keys = [in_ms(), in_ms("other"), in_ms(device="cuda"), in_ms(budget_batch=16), in_ms(threads=2)]
    usual = planner().cell("adafocus-v2", 0)
    assert len({spec.key for spec in [*keys, usual.evaluation]}) == 6
    assert keys[0].artifact == usual.evaluation.artifact, "one training serves both"
    assert read_spec(to_plain(keys[0])).key == keys[0].key
    assert replace(keys[0], quiet_wait_s=0.0).key == keys[0].key
    assert keys[0].label().startswith("adafocus-v2 (ms) on") and "(ms, batch 16)" in keys[3].label()


def test_keys_of_budgets_in_macs_know_nothing_of_time() -> None:
    spec = planner().cell("adafocus-v2", 0).evaluation
    before = replace(spec, protocol={k: v for k, v in spec.protocol.items() if k not in TIME_BUDGETS})
    assert before.key == spec.key and spec.timed_on is None


def test_without_exits_there_is_nothing_to_calibrate() -> None:
    for method in ("tsn", "random-patch"):
        assert in_ms(method=method) == planner().cell(method, 0).evaluation


def test_time_needs_a_clock() -> None:
    with pytest.raises(UsageError, match="protocol.budget_unit=ms needs a clock"):
        planner(Protocol(budget_unit="ms")).cell("adafocus-v2", 0)
