"""The recipes of AdaFocus V1 and V2, number by number, as the papers and the authors' commands have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.contract.registry import recognizer_class
from harness.plan.recipes import Recipe, paper_recipe, recipes

DESCENT = {"optimizer": "SGD", "momentum": 0.9, "schedule": "cosine", "clip_grad": None}
ADAM = {"optimizer": "Adam", "schedule": "constant", "clip_grad": None, "weight_decay": 0.0}

# Source: docs/methods/adafocus-v1.md, training: learning rates by module
V1 = {
    "glance": {"epochs": 15, "batch_size": 64, "weight_decay": 1e-4, "lr": 0.01, "rates": {}, **DESCENT},
    "focus": {"epochs": 15, "batch_size": 64, "weight_decay": 1e-4, "lr": 0.01, "rates": {}, **DESCENT},
    "random": {
        "epochs": 50,
        "batch_size": 64,
        "weight_decay": 1e-4,
        "lr": 5e-4,
        "rates": {"classifier": 0.05},
        **DESCENT,
    },
    "policy": {"epochs": 51, "batch_size": 64, "lr": 3e-4, "rates": {}, **ADAM},
    "finetune": {"epochs": 10, "batch_size": 64, "weight_decay": 1e-4, "lr": 5e-3, "rates": {}, **DESCENT},
}
V1_KINETICS = V1 | {"finetune": V1["finetune"] | {"lr": 5e-4}}
V1_SETTINGS = {"dropout": 0.8, "head_dropout": 0.2, "gamma": 0.7, "entropy_weight": 0.01, "reward": "random"}

# Source: docs/methods/adafocus-v1.md, on-tsm
STEPS = DESCENT | {"schedule": "step", "milestones": (20, 40), "clip_grad": 20.0}
V1_TSM = {
    "glance": {"epochs": 50, "batch_size": 64, "weight_decay": 5e-4, "lr": 0.01, "rates": {}, **STEPS},
    "focus": {"epochs": 50, "batch_size": 64, "weight_decay": 5e-4, "lr": 0.01, "rates": {}, **STEPS},
    "random": {
        "epochs": 10,
        "batch_size": 64,
        "weight_decay": 1e-4,
        "lr": 0.01,
        "rates": {"focus.backbone": 1e-5},
        **DESCENT,
    },
    "policy": {"epochs": 51, "batch_size": 64, "lr": 3e-4, "rates": {}, **ADAM},
    "finetune": {"epochs": 10, "batch_size": 32, "weight_decay": 1e-4, "lr": 5e-4, "rates": {}, **DESCENT},
}
V1_TSM_SETTINGS = {"patch_size": 144, "dropout": 0.5, "action_std": 0.25, "align_crops": False}

# Source: docs/methods/adafocus-v2.md, training
V2 = {
    "epochs": 50,
    "batch_size": 32,
    "weight_decay": 1e-4,
    "lr": 0.002,
    "rates": {"glance": 0.001, "glance_head": 0.001, "policy": 2e-4, "classifier": 0.01},
    **DESCENT,
}
V2_KINETICS = V2 | {
    "batch_size": 48,
    "lr": 0.003,
    "rates": {"glance": 0.0015, "glance_head": 0.0015, "policy": 3e-4, "classifier": 0.015},
}
V2_SETTINGS = {"patch_size": 128, "dropout": 0.2, "head_dropout": 0.2, "order": "middle-first", "exit_score": "logit"}

# Source: docs/methods/adafocus-v2.md, on-tsm
V2_TSM = {
    "epochs": 50,
    "batch_size": 32,
    "weight_decay": 5e-4,
    "lr": 0.01,
    "rates": {"glance": 0.005, "policy": 1e-4},
    **DESCENT,
    "clip_grad": 20.0,
}
V2_TSM_SETTINGS = {"patch_size": 128, "dropout": 0.5, "align_crops": False}

TABLE: dict[tuple[str, str], tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    ("adafocus-v1", "activitynet"): (V1_SETTINGS, V1),
    ("adafocus-v1", "fcvid"): (V1_SETTINGS, V1),
    ("adafocus-v1", "mini-kinetics"): (V1_SETTINGS, V1_KINETICS),
    ("adafocus-v1-tsm", "sthv1"): (V1_TSM_SETTINGS, V1_TSM),
    ("adafocus-v1-tsm", "sthv2"): (V1_TSM_SETTINGS, V1_TSM),
    ("adafocus-v2", "activitynet"): (V2_SETTINGS, {"main": V2}),
    ("adafocus-v2", "fcvid"): (V2_SETTINGS, {"main": V2}),
    ("adafocus-v2", "mini-kinetics"): (V2_SETTINGS, {"main": V2_KINETICS}),
    ("adafocus-v2-tsm", "sthv1"): (V2_TSM_SETTINGS, {"main": V2_TSM}),
    ("adafocus-v2-tsm", "sthv2"): (V2_TSM_SETTINGS, {"main": V2_TSM}),
    ("adafocus-v2-tsm", "jester"): (V2_TSM_SETTINGS, {"main": V2_TSM}),
}


def test_no_recipe_is_left_out() -> None:
    methods = {method for method, _ in TABLE}
    assert {(r.method, r.dataset) for r in recipes() if r.method in methods} == set(TABLE)


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_recipe(method: str, dataset: str) -> None:
    settings, stages = TABLE[method, dataset]
    recipe = paper_recipe(method, dataset, "paper")
    assert recipe is not None
    assert {name: recipe.settings[name] for name in settings} == settings
    assert [stage.name for stage in recipe.stages] == list(stages)
    for stage, expected in zip(recipe.stages, stages.values(), strict=True):
        rates = {module: stage.lr * group.lr_mult for group in stage.groups for module in group.modules}
        assert rates == pytest.approx(expected["rates"]), stage.name
        same = {name: value for name, value in expected.items() if name != "rates"}
        assert {name: getattr(stage, name) for name in same} == same, stage.name


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_modules_exist(method: str, dataset: str) -> None:
    """All that the files name: what a method lacks would be dropped without a word."""
    recipe = paper_recipe(method, dataset, "paper")
    assert recipe is not None
    with torch.device("meta"):
        model = recognizer_class(method)(200, **recipe.settings)
    for stage in recipe.stages:
        model.set_stage(stage)


LAST = "the last epoch's weights (authors: those best on the reported test videos)"
PER_GPU = {  # stages whose batch norms the authors train on several GPUs, each with statistics of its own
    "adafocus-v1": {"glance", "focus", "random"},
    "adafocus-v1-tsm": {"random"},
    "adafocus-v2": {"main"},
    "adafocus-v2-tsm": {"main"},
    "uni-adafocus": {"main"},
    "uni-adafocus-tsm": {"main"},
    "uni-adafocus-x3d": {"main"},
}


@pytest.mark.parametrize("recipe", [r for r in recipes() if r.method in PER_GPU], ids=lambda r: r.name)
def test_departures_are_named(recipe: Recipe) -> None:
    """What every record and report then says: the checkpoint that is kept, and whose statistics batch norm takes."""
    for stage in recipe.stages:
        assert LAST in stage.departures
        apart = [text for text in stage.departures if text.startswith("batch norm sees the whole batch on one device")]
        assert len(apart) == (stage.name in PER_GPU[recipe.method]), stage.name
