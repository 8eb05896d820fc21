"""Keys, specs and artifacts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.contract.declarations import ParamGroup, Stage
from harness.contract.values import plain
from harness.errors import BenchError, CheckpointError, UsageError
from harness.plan.overrides import Overrides
from harness.plan.planner import Planner
from harness.plan.protocol import Protocol
from harness.plan.units import DataSpec, EvalSpec, TrainSpec, Weights, read_spec, read_stage, to_plain
from harness.store import artifacts
from harness.work.optimization import optimizer_groups, schedulers


def train_spec(**changes: object) -> TrainSpec:
    values = {
        "method": "tsn",
        "method_version": 1,
        "settings": {"num_classes": 3},
        "stage": plain(Stage("train", 2, 4, 0.1)),
        "weights": (Weights("backbone", "backbone", key="abc"),),
        "data": DataSpec("glyphs", "data", "tiny"),
        "fingerprint": "f",
        "seed": 0,
        "training": {"threads": 1},
        "initialisation": "stills",
        **changes,
    }
    return TrainSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"method_version": 2},
        {"settings": {"num_classes": 4}},
        {"stage": plain(Stage("train", 3, 4, 0.1))},
        {"weights": ()},
        {"fingerprint": "g"},
        {"seed": 1},
        {"training": {"threads": 2}},
    ],
)
def test_a_key_changes_with_everything_the_weights_depend_on(change: dict[str, object]) -> None:
    assert train_spec(**change).key != train_spec().key


def test_a_key_does_not_depend_on_where_the_data_lie() -> None:
    assert train_spec(data=DataSpec("glyphs", "elsewhere", "tiny")).key == train_spec().key


def test_specs_survive_json() -> None:
    spec = train_spec()
    again = read_spec(json.loads(json.dumps(to_plain(spec))))
    assert again == dataclasses.replace(spec) and again.key == spec.key
    evaluation = EvalSpec("tsn", "tiny", {}, "abc", ("abc",), (), spec.data, "f", 0, {"budgets": [0.5]}, "stills")
    assert read_spec(json.loads(json.dumps(to_plain(evaluation)))) == evaluation


def test_stages_survive_json() -> None:
    stage = Stage("s", 2, 4, 0.1, groups=(ParamGroup(("a", "b"), lr_mult=0.5),), milestones=(1,))
    assert read_stage(json.loads(json.dumps(plain(stage)))) == stage
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        read_stage({"name": "s", "epoch": 2})


DESCRIPTION = {
    "method": "net", "stage": "main", "settings": {"num_classes": 2}, "recipe": {"epochs": 1}, "seconds": 1.0,
    "samples": 8, "departures": [], "device": "cpu", "sources": {},
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_artifacts_round_trip_and_refuse_changed_files(tmp_path: Path) -> None:
    net = Net()
    assert artifacts.read(tmp_path, "k") is None
    artifacts.commit(tmp_path, "k", net.state_dict(), DESCRIPTION)
    other = Net()
    artifacts.load_into(other, artifacts.load_state(tmp_path, "k"))
    torch.testing.assert_close(other.state_dict(), net.state_dict())
    path = tmp_path / "artifacts" / "k" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="was changed"):
        artifacts.load_state(tmp_path, "k")


def test_weights_that_do_not_fit_are_named() -> None:
    state = Net().state_dict()
    with pytest.raises(CheckpointError, match=r"missing, first \['a.bias'"):
        artifacts.load_into(Net(), {k: v for k, v in state.items() if not k.startswith("a")})
    with pytest.raises(CheckpointError, match=r"a.weight: \(3, 2\) in the file, \(2, 2\) in the model"):
        artifacts.load_into(Net(), {**state, "a.weight": torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match="nothing below 'c'"):
        artifacts.load_into(Net(), state, into="c")


def test_weights_move_between_prefixes() -> None:
    source, target = Net(), Net()
    artifacts.load_into(target, {f"x.{k}": v for k, v in source.b.state_dict().items()}, into="b", take="x")
    torch.testing.assert_close(target.b.state_dict(), source.b.state_dict())
    assert not torch.equal(target.a.weight, source.a.weight)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read"):
        artifacts.read_weights(tmp_path / "text.pth")
    torch.save({"model": Net()}, tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        artifacts.read_weights(tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        artifacts.read_weights(tmp_path / "nowhere.pth")


def test_the_longest_prefix_sets_the_multipliers() -> None:
    net = Net()
    wanted = (ParamGroup(("b",), lr_mult=2.0), ParamGroup(("b.1",), lr_mult=3.0, decay_mult=0.0))
    stage = Stage("s", 1, 1, 0.1, weight_decay=0.01, groups=wanted)
    groups = optimizer_groups(net, stage)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(net.a.weight)] == (0.1, 0.01)
    assert found[id(net.b[0].weight)] == (0.2, 0.01)
    assert found[id(net.b[1].weight)] == pytest.approx((0.3, 0.0))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BenchError, match="trains no parameter"):
        optimizer_groups(net, stage)


def test_onecycle_rises_to_the_peak_and_falls_to_zero() -> None:
    from mmengine.optim import _ParamScheduler
    from mmengine.registry import PARAM_SCHEDULERS

    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    stage = Stage("s", 5, 1, 1.0, schedule="onecycle", warmup=0.2)
    built = [PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in schedulers(stage, 10)]
    assert all(isinstance(s, _ParamScheduler) for s in built)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.01


class Videos:
    """What a planner reads of a VideoSet."""

    def __init__(self, train: int) -> None:
        from harness.data.cards import dataset_card

        self.card, self.resolution, self.fingerprint = dataset_card("glyphs"), 64, "f"
        self.splits = {"train": tuple(range(train))}


def planner(train: int, **changes: object) -> Planner:
    return Planner(DataSpec("glyphs", "data", "tiny"), Videos(train), Protocol(), size="tiny", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("train", "views"), [(1200, 1), (240, 1), (54, 4), (14, 17)])
def test_small_sets_are_gone_through_several_times(train: int, views: int) -> None:
    assert planner(train).cell("tsn", 0).train[-1].stage["views_per_epoch"] == views


def test_shared_work_is_planned_once() -> None:
    plan = planner(1200)
    tsn, arnet = plan.cell("tsn", 0), plan.cell("ar-net", 0)
    assert {s.key for s in tsn.train} < {s.key for s in arnet.train}
    assert plan.cell("tsn", 1).train[0].key == tsn.train[0].key, "pre-training does not depend on the seed"
    assert plan.cell("tsn", 1).train[1].key != tsn.train[1].key
    assert tsn.evaluation.initialisation == "stills" == arnet.evaluation.initialisation


def test_overrides_reach_settings_and_stages() -> None:
    overrides = Overrides({"adafocus-v2.dropout": 0.4}, {"lr": 0.01, "main.epochs": 3})
    cell = planner(1200, overrides=overrides).cell("adafocus-v2", 0)
    assert cell.train[-1].settings["dropout"] == 0.4
    assert (cell.train[-1].stage["lr"], cell.train[-1].stage["epochs"]) == (0.01, 3)
    assert planner(1200, overrides=overrides).cell("random-patch", 0).train[-1].settings.get("dropout") != 0.4
