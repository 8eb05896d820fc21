"""Method names that carry settings, and the recipes that variants inherit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.commands.arguments import class_defaults, method_names
from harness.contract.declarations import InitFrom, ParamGroup, Stage
from harness.contract.names import class_settings, split_name, stands_for, written
from harness.contract.registry import method_card, method_cards, recognizer_class
from harness.data.cards import dataset_card
from harness.errors import UsageError
from harness.measure import gate_worker
from harness.plan.building import build_recognizer, constructor_settings
from harness.plan.overrides import Overrides, parse_sets
from harness.plan.planner import Planner, check_overrides
from harness.plan.protocol import Protocol
from harness.plan.recipes import adapted, paper_recipe
from harness.plan.suites import SUITES, cells
from harness.plan.units import DataSpec, read_stage


class Videos:
    """What a planner reads of a VideoSet."""

    def __init__(self, name: str, resolution: int) -> None:
        card = dataset_card(name)
        classes = card.classes or tuple(map(str, range(card.num_classes)))  # as if its class file were there
        self.card, self.resolution, self.fingerprint = replace(card, classes=classes), resolution, "f"
        self.splits = {"train": tuple(range(1200))}


def planner(**changes: object) -> Planner:
    return Planner(DataSpec("glyphs", "data", "tiny"), Videos("glyphs", 64), Protocol(), size="tiny", **changes)  # type: ignore[arg-type]


def paper_planner(dataset: str, *, initialisation: str = "scratch", weights_dir: Path | None = None) -> Planner:
    videos, protocol = Videos(dataset, 224), Protocol(initialisation=initialisation)  # type: ignore[arg-type]
    return Planner(DataSpec(dataset, "data", "paper"), videos, protocol, size="paper", weights_dir=weights_dir)


def test_names_are_read_and_written_one_way() -> None:
    card = method_card(" adafocus-v2[ stop_gradient = False, random_pass=false ]")
    assert card.name == "adafocus-v2[random_pass=false,stop_gradient=false]"
    assert card.title == "AdaFocus V2 (random_pass=false, stop_gradient=false)"
    assert card.variant_of == "adafocus-v2" and card.settings == {"random_pass": False, "stop_gradient": False}
    assert method_card(card.name) == card
    assert method_card("adafocus-v2[]") == method_card("adafocus-v2")
    assert recognizer_class(card.name) is recognizer_class("adafocus-v2")


def test_names_stand_for_what_was_recorded() -> None:
    usual = {"name": "adafocus-v2", "settings": {"frames": 8}}
    varied = {"name": "adafocus-v2[random_pass=false]", "settings": {"frames": 8, "random_pass": False}}
    defaults = class_defaults(["adafocus-v2[random_pass=true]", "tsn"])
    assert set(defaults) == {"adafocus-v2"}
    for name, found in {
        "adafocus-v2": [usual],
        "adafocus-v2[random_pass=true]": [usual],
        "adafocus-v2[frames=8]": [usual],
        "adafocus-v2[random_pass=false]": [varied],
        "adafocus-v2[random_pass=false,frames=8]": [varied],
        "adafocus-v2[frames=9]": [],
        "tsn": [],
    }.items():
        assert [m for m in (usual, varied) if stands_for(name, m, defaults["adafocus-v2"])] == found, name


def test_whole_numbers_are_one_setting() -> None:
    assert method_card("tsn[frames=16.0]").name == "tsn[frames=16]"
    assert parse_sets(["frames=16.0"])[0] == parse_sets(["frames=16"])[0]
    one, other = (planner().cell(f"tsn[frames={n}]", 0) for n in ("16", "16.0"))
    assert one.evaluation.key == other.evaluation.key


def test_a_variant_may_be_varied() -> None:
    card = method_card("random-patch[patch_size=24]")
    assert card.variant_of == "random-patch"
    assert card.settings == {"patch_policy": "random", "exit_every": 0, "patch_size": 24}


@pytest.mark.parametrize(
    "settings",
    [
        {"a": True, "b": None, "c": 0.5, "d": "word", "e": [1, 2, 3]},
        {"text": "12", "other": "true", "list": "[1, 2]", "equals": "a=b,c"},
        {"order": [3, 1, 0, 2], "nested": {"a": [1]}},
    ],
)
def test_values_survive_the_name(settings: dict[str, object]) -> None:
    assert split_name(f"m[{written(settings)}]") == ("m", settings)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adafocus-v3[a=1]", "did you mean 'adafocus-v2'"),
        ("adafocus-v2[random_pas=false]", "unknown setting of adafocus-v2 'random_pas' (did you mean 'random_pass'?)"),
        ("adafocus-v2[num_classes=3]", "the data set fixes"),
        ("adafocus-v2[random_pass=false", "settings stand at the end"),
        ("adafocus-v2[random_pass]", "expected setting=value"),
        ("adafocus-v2[dropout=0,dropout=1]", "twice"),
    ],
)
def test_wrong_names_are_told(name: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        method_card(name)
    assert told in str(error.value)


@pytest.mark.parametrize("method", sorted(method_cards()))
def test_settings_read_from_source_are_those_of_the_class(method: str) -> None:
    card = method_cards()[method]
    assert class_settings(card.module, card.cls) == constructor_settings(recognizer_class(method))


def test_a_base_that_cannot_be_found_leaves_the_word_to_the_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_method.py").write_text("import far\nclass M(far.Base):\n    def __init__(self, a): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert class_settings("foreign_method", "M") is None


def test_no_torch() -> None:
    code = (
        "import sys; from harness.contract.registry import method_card; method_card('adafocus-v2[random_pass=false]');"
        " print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_lists_of_methods_keep_brackets_whole() -> None:
    names = "tsn, adafocus-v2[stop_gradient=false,random_pass=false],adafocus-v2[order=[1,0,2,3,4,5,6,7]],tsn"
    assert method_names(names) == (
        "tsn",
        "adafocus-v2[random_pass=false,stop_gradient=false]",
        "adafocus-v2[order=[1,0,2,3,4,5,6,7]]",
    )


def test_set_may_name_a_variant() -> None:
    overrides, _ = parse_sets(["adafocus-v2[random_pass=false].dropout=0.4", "stage.lr=0.1", "order=[1,0]"])
    assert overrides.settings == {"adafocus-v2[random_pass=false].dropout": 0.4, "order": [1, 0]}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_sets(["adafocus-v2[random_pass=false]"])


def test_every_published_variant_and_part_is_in_a_suite() -> None:
    assert cells(SUITES["paper"])["kinetics400"] == ("uni-adafocus-x3d",)
    parts = {"temporal=uniform", "spatial=random", "deformable=false", "pixel_gradient=false"}
    assert {f"uni-adafocus[{part}]" for part in parts} < set(cells(SUITES["ablation"])["glyphs"])


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_suites_name_methods_as_their_cards_do(suite: str) -> None:
    for names in cells(SUITES[suite]).values():
        assert [method_card(name).name for name in names] == list(names)


def test_the_gate_times_variants() -> None:
    (case,) = gate_worker.cases("random-patch[patch_size=16]")
    shapes = {key.shape for key in case.run().counts if key.component == "focus"}
    assert (case.name, shapes) == ("random-patch[patch_size=16]", {(3, 16, 16)})
    assert gate_worker.cases("nothing[patch_size=16]") == []


# -- planning ------------------------------------------------------------------------------------


def test_a_variant_is_other_work_than_its_method() -> None:
    plan = planner()
    plain, varied = (plan.cell(name, 0) for name in ("adafocus-v2", "adafocus-v2[random_pass=false]"))
    assert plain.train[-1].key != varied.train[-1].key
    assert varied.train[-1].settings == {**plain.train[-1].settings, "random_pass": False}
    assert {s.key for s in plain.train[:-1]} == {s.key for s in varied.train[:-1]}, "the pre-training is shared"


def test_the_name_wins_over_set() -> None:
    name = "adafocus-v2[patch_size=24]"
    plan = planner(overrides=Overrides({"patch_size": 40, f"{name}.dropout": 0.3}))
    settings = plan.cell(name, 0).train[-1].settings
    assert (settings["patch_size"], settings["dropout"]) == (24, 0.3)
    assert plan.cell("adafocus-v2", 0).train[-1].settings["patch_size"] == 40
    with pytest.raises(UsageError, match="stands in the method's name"):
        planner(overrides=Overrides({f"{name}.patch_size": 40})).cell(name, 0)


def test_what_defines_a_variant_withstands_set() -> None:
    """A setting for all methods leaves the references what their names say; one for them alone is refused."""
    plan = planner(overrides=Overrides({"patch_policy": "learned", "dropout": 0.3}))
    settings = plan.cell("random-patch", 0).train[-1].settings
    assert (settings["patch_policy"], settings["dropout"]) == ("random", 0.3)
    assert "patch_policy" not in plan.cell("adafocus-v2", 0).train[-1].settings, "its class sets it so anyway"
    overrides = Overrides({"random-patch.patch_policy": "learned"})
    with pytest.raises(UsageError, match="is what makes random-patch a variant"):
        planner(overrides=overrides).cell("random-patch", 0)
    for key in ("random-patch.patch_policy", "patch_policy"):
        with pytest.raises(UsageError, match="random-patch fix 'patch_policy'"):
            check_overrides(Overrides({key: "learned"}), ["random-patch", "tsn"])
    check_overrides(Overrides({"patch_policy": "random"}), ["random-patch", "adafocus-v2"])


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"aux_losses": False}, [["glance"], ["policy"], ["classifier"]]),
        ({"patch_policy": "random"}, [["glance", "glance_head"], ["classifier"]]),
    ],
)
def test_a_recipe_leaves_out_what_set_takes_away(settings: dict[str, object], left: list[list[str]]) -> None:
    videos, protocol = Videos("activitynet", 224), Protocol(initialisation="scratch")
    data = DataSpec("activitynet", "data", "paper")
    plan = Planner(data, videos, protocol, size="paper", overrides=Overrides(settings))  # type: ignore[arg-type]
    spec = plan.cell("adafocus-v2", 0).train[-1]
    assert [group["modules"] for group in spec.stage["groups"]] == left
    with torch.device("meta"):
        build_recognizer("adafocus-v2", spec.settings).set_stage(read_stage(spec.stage))


def test_methods_that_start_from_tsms_mobilenet_find_it(tmp_path: Path) -> None:
    for file in ("resnet50-19c8e357.pth", "mobilenet_v2-b0353104.pth", "mobilenetv2_1.0-f2a8633.pth.tar"):
        (tmp_path / file).touch()
    plan = paper_planner("activitynet", initialisation="pretrained", weights_dir=tmp_path)
    for method, expected in (
        ("adafocus-v1", "mobilenet_v2-b0353104.pth"),
        ("adafocus-v2", "mobilenetv2_1.0-f2a8633.pth.tar"),
    ):
        weights = [w for spec in plan.cell(method, 0).train for w in spec.weights if w.into == "glance" and w.path]
        assert [Path(w.path or "").name for w in weights] == [expected]


def test_paper_recipes_apply_to_variants() -> None:
    for name in ("random-patch", "adafocus-v2[stop_gradient=false]", "random-patch[patch_size=96]"):
        assert paper_recipe(name, "mini-kinetics", "paper") == paper_recipe("adafocus-v2", "mini-kinetics", "paper")
        assert paper_recipe(name, "mini-kinetics", "tiny") is None
    assert paper_recipe("random-patch", "jester", "paper") is None


def test_an_inherited_recipe_yields_to_the_variant() -> None:
    """The recipe's patch size is 128; groups of modules the variant lacks go, the others stay."""
    plan = paper_planner("mini-kinetics")
    spec = plan.cell("random-patch[patch_size=96]", 0).train[-1]
    assert (spec.settings["patch_size"], spec.settings["patch_policy"]) == (96, "random")
    assert (spec.stage["batch_size"], spec.stage["lr"]) == (48, 0.003)
    assert [group["modules"] for group in spec.stage["groups"]] == [["glance", "glance_head"], ["classifier"]]
    whole = plan.cell("adafocus-v2[stop_gradient=false]", 0).train[-1]
    assert [group["modules"] for group in whole.stage["groups"]][1] == ["policy"]


def test_a_recipe_starts_as_the_settings_say(tmp_path: Path) -> None:
    """A recipe file names no initial weights: another glance network finds its own, at its own resolution."""
    for file in ("resnet50-19c8e357.pth", "Initialization_model_prime_resnet50_patch_size_96.pth"):
        (tmp_path / file).touch()
    plan = paper_planner("activitynet", initialisation="pretrained", weights_dir=tmp_path)
    spec = plan.cell("adafocus-v2[glance=resnet50,glance_side=96]", 0).train[-1]
    assert spec.stage["batch_size"] == 32, "the recipe's"
    found = {weights.into: Path(weights.path or "").name for weights in spec.weights}
    assert found == {
        "glance": "Initialization_model_prime_resnet50_patch_size_96.pth",
        "focus": "resnet50-19c8e357.pth",
    }


def test_x3d_starts_whole(tmp_path: Path) -> None:
    """The recipe's file names no initial weights, so the method's own apply: backbones and all four heads."""
    for file in ("x3d_s.pyth", "x3d_l.pyth"):
        (tmp_path / file).touch()
    plan = paper_planner("kinetics400", initialisation="pretrained", weights_dir=tmp_path)
    (spec,) = plan.cell("uni-adafocus-x3d", 0).train
    assert (spec.stage["lr"], spec.settings["num_classes"]) == (0.005, 400), "the recipe's"
    found = {weights.into: (Path(weights.path or "").name, weights.backbone) for weights in spec.weights}
    assert found == {
        f"{net}.{part}": (f"{name}.pyth", name if part == "backbone" else f"{name}-head")
        for net, name in (("glance", "x3d_s"), ("focus", "x3d_l"))
        for part in ("backbone", "head", "aux_head")
    }


def test_a_variant_trained_in_other_stages_keeps_its_own() -> None:
    """V1+ on FCVID: V1's stages make V1's weights, then its own stage trains the second policy."""
    chain = paper_planner("fcvid").cell("adafocus-v1-plus", 0).train
    assert [spec.stage["name"] for spec in chain] == ["glance", "focus", "random", "policy", "finetune", "skip"]
    assert {spec.method for spec in chain[:-1]} == {"adafocus-v1"}
    assert chain[-1].stage["trained"] == ["skip_policy"]


def test_adapted_stages() -> None:
    stage = Stage(
        "main", 1, 1, 0.1,
        groups=(ParamGroup(("a", "gone"), 2.0), ParamGroup(("gone",))),
        trained=("a", "a.b", "gone"), eval_modules=("gone",),
        init=(InitFrom("pretrained:x", into="a"), InitFrom("pretrained:y", into="gone"), InitFrom("stage:z")),
    )  # fmt: skip
    foreign = Stage("other", 1, 1, 0.1, method="tsn", groups=(ParamGroup(("gone",)),))
    (found, same) = adapted((stage, foreign), {"a", "a.b"})
    assert found.groups == (ParamGroup(("a",), 2.0),)
    assert (found.trained, found.eval_modules) == (("a", "a.b"), ())
    assert [init.source for init in found.init] == ["pretrained:x", "stage:z"]
    assert same == foreign


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": "many"}, "stage.epochs='many': expected a valid integer"),
        ({"optimizer": "Foo"}, "unknown stage.optimizer 'Foo'; known: Adam, AdamW, SGD"),
        ({"milestones": ["x"]}, "stage.milestones=['x']: expected a valid integer"),
    ],
)
def test_wrong_values_of_stages_are_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        planner(overrides=Overrides(stages=changes)).cell("tsn", 0)
    assert str(caught.value) == told


def test_stages_take_lists_for_tuples() -> None:
    cell = planner(overrides=Overrides(stages={"milestones": [3, 5], "lr": 1})).cell("tsn", 0)
    assert cell.train[-1].stage["milestones"] == [3, 5] and cell.train[-1].stage["lr"] == 1
