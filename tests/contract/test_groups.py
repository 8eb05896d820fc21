"""Groups of settings: plain keywords outside, one value inside, wrong ones told."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pytest
from torch import nn

from harness.contract.declarations import ParamGroup, Stage
from harness.contract.groups import Positive, grouped, settings, validated
from harness.contract.names import class_settings
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card, method_cards, recognizer_class
from harness.errors import UsageError
from harness.plan.building import build_recognizer, constructor_settings

if TYPE_CHECKING:
    from nowhere import Unknown


@settings
class Exits:
    every: int = 1
    score: Literal["softmax", "logit"] = "softmax"


@validated
@grouped
def made(
    frames: int, *, rate: float = 1.0, exits: Exits = Exits(every=2), order: str | Sequence[int] = "a", **rest: Any
) -> tuple[Any, ...]:
    return frames, rate, exits, order, rest


def test_fields_are_keywords_with_the_functions_defaults() -> None:
    assert made(8) == (8, 1.0, Exits(every=2), "a", {})
    assert made(8, every=4, other=1)[2:] == (Exits(every=4), "a", {"other": 1})
    assert made(8, exits=Exits(every=5))[2] == Exits(every=5)
    defaults = {name: p.default for name, p in inspect.signature(made).parameters.items()}
    assert (defaults["every"], defaults["score"], "exits" in defaults) == (2, "softmax", False)


@pytest.mark.parametrize(
    "given",
    [
        *({"rate": 3}, {"order": [1, 0]}, {"order": (1, 0)}, {"score": "logit"}, {"order": range(2)}),
        *({"every": np.int64(3)}, {"every": 3.0}, {"rate": np.float32(0.5)}, {"order": np.arange(3)}),
    ],
)
def test_right_values(given: dict[str, Any]) -> None:
    made(8, **given)


def test_numbers_of_other_types_arrive_as_plain_ones() -> None:
    frames, _, exits, order, _ = made(np.int32(8), every=4.0, order=range(2))  # type: ignore[arg-type]
    assert (frames, exits, order) == (8, Exits(every=4), [0, 1])
    assert type(frames) is int and type(exits.every) is int


@settings
class Widths:
    hidden: int
    unit: ClassVar[str] = "channels"


@validated
@grouped
def positional(
    frames: Positive, exits: Exits = Exits(), *others: int, widths: Widths | None = None, **rest: Any
) -> Any:
    return frames, exits, others, widths, rest


def test_groups_by_position_and_groups_that_may_be_none() -> None:
    assert positional(8, Exits(every=3)) == (8, Exits(every=3), (), None, {})
    assert positional(8, Exits(), 1, 2, hidden=5) == (8, Exits(), (1, 2), Widths(hidden=5), {})
    assert positional(8, every=2) == (8, Exits(every=2), (), None, {})


@pytest.mark.parametrize(
    ("args", "given", "told"),
    [
        ((8, Exits(every="x")), {}, "every='x': expected a valid integer"),
        ((8,), {"exits": Exits(score="x")}, "unknown score 'x'"),
        ((8,), {"exits": {"every": 2}}, "expected Exits, or its settings by their own names"),
        ((8, Exits()), {"every": 2}, "exits is given together with its every"),
        ((8, Exits(), 1, "2"), {}, "others='2': expected a valid integer"),
        ((0,), {}, "frames=0: expected greater than or equal to 1"),
        ((8,), {"hidden": "x"}, "hidden='x': expected a valid integer"),
    ],
)
def test_groups_themselves_are_checked(args: tuple[Any, ...], given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        positional(*args, **given)
    assert told in str(caught.value)


def test_a_group_with_a_needed_field_and_no_default() -> None:
    @grouped
    def function(widths: Widths) -> Widths:
        return widths

    assert inspect.signature(function).parameters["hidden"].default is inspect.Parameter.empty
    assert function(hidden=3) == Widths(hidden=3)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="hidden is needed"):
        function()  # type: ignore[call-arg]


def test_annotations_that_cannot_be_checked_stand_in_nobodys_way() -> None:
    @settings
    class Local:
        depth: int = 1
        other: Unknown | None = None

    class Method(EfficientRecognizer):
        def __init__(
            self, num_classes: int, *, part: Unknown | None = None, head: nn.Module | None = None,
            local: Local = Local(), width: int = 3, **kwargs: Any
        ) -> None:  # fmt: skip
            super().__init__(num_classes, **kwargs)
            self.depth, self.part, self.head = local.depth, part, head

    model = Method(2, depth=4, part="anything", head=nn.Identity())
    assert model.depth == 4 and model.part == "anything"
    with pytest.raises(UsageError, match="width='x'"):
        Method(2, width="x")
    with pytest.raises(UsageError, match="depth='x'"):
        Method(2, depth="x")
    with pytest.raises(UsageError, match="head=3: expected an instance of Module|head=3: expected a list"):
        Method(2, head=3)


class Mixin:
    def __init__(self, *args: Any, gain: float = 1.0, exits: Exits = Exits(), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain, self.every = gain, exits.every


class Mixed(Mixin, EfficientRecognizer):
    pass


def test_mixins_take_settings_too() -> None:
    assert Mixed(2, every=5, gain=2).every == 5
    with pytest.raises(UsageError, match="gain='x'"):
        Mixed(2, gain="x")
    assert {"gain", "every", "score"} <= constructor_settings(Mixed)


def test_stages_are_checked_whoever_makes_them() -> None:
    assert Stage("s", 2, 4, 1, trained=["a"], milestones=[1]).trained == ("a",)  # type: ignore[arg-type]
    wrong = {"warmup": 2.0, "schedule": "foo", "weight_decay": -5.0, "momentum": 1.0, "epochs": 0, "batch_size": 2.5}
    wrong |= {"trained": "fc", "groups": ("a",), "lr": float("nan")}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=f"stage.{name}"):
            Stage(**{"name": "s", "epochs": 1, "batch_size": 1, "lr": 0.1, name: value})
    with pytest.raises(UsageError, match="group.lr_mult=-1"):
        ParamGroup(("a",), lr_mult=-1)


def test_names_of_settings_are_read_as_they_are_at_run_time(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_groups.py").write_text(
        "import dataclasses\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclasses.dataclass(frozen=True)\nclass A:\n    a: int = 1\n    unit: ClassVar[str] = 'px'\n"
        "@dataclass\nclass B(A):\n    b: int = 1\n"
    )
    (tmp_path / "package_of_methods.py").write_text(
        "import other_groups as groups\nfrom harness.contract.recognizer import EfficientRecognizer\n"
        "class Mixin:\n    def __init__(self, extra: int = 1, **rest): ...\n"
        "class M(Mixin, EfficientRecognizer):\n"
        "    def __init__(self, c: int, *, one: groups.B = groups.B(), two: 'groups.A | None' = None, **kwargs): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = class_settings("package_of_methods", "M")
    assert found is not None
    assert found >= {"a", "b", "c", "extra"} and not found & {"one", "two", "unit", "rest"}


@dataclass
class Plain:
    depth: int = 1


def test_any_dataclass_is_a_group() -> None:
    @validated
    @grouped
    def function(plain: Plain = Plain()) -> Plain:
        return plain

    assert function(depth=2) == Plain(2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"every": "4"}, "every='4': expected a valid integer"),
        ({"every": True}, "every=True: expected a valid integer"),
        ({"every": 1.5}, "every=1.5: expected a valid integer"),
        ({"rate": "fast"}, "rate='fast': expected a valid number"),
        ({"score": "logits"}, "unknown score 'logits' (did you mean 'logit'?); known: logit, softmax"),
        ({"order": 3}, "order=3: expected a valid string or "),
    ],
)
def test_wrong_values_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(8, **given)
    assert str(caught.value).startswith(told)


def test_positional_values_are_checked_too() -> None:
    with pytest.raises(UsageError, match="frames='8'"):
        made("8")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(method_cards()))
def test_names_read_from_the_source_are_those_of_the_constructor(name: str) -> None:
    """`NAME[setting=value]` is checked without importing the method, so groups are read from their source."""
    card = method_card(name)
    assert class_settings(card.module, card.cls) == constructor_settings(recognizer_class(name))


@pytest.mark.parametrize(
    ("method", "wrong", "told"),
    [
        ("adafocus-v2", {"patch_policy": "lernt"}, "did you mean 'learned'"),
        ("adafocus-v2", {"classifier_hidden": "many"}, "classifier_hidden='many'"),
        ("uni-adafocus-tsm", {"exit_head": "first"}, "unknown exit_head 'first'"),
        ("uni-adafocus", {"glance_resize": "nearer"}, "did you mean 'nearest'"),
        ("tsn", {"frames": "8"}, "frames='8'"),
        ("ar-net", {"num_classes": 2.5}, "num_classes=2.5"),
    ],
)
def test_methods_tell_wrong_settings(method: str, wrong: dict[str, Any], told: str) -> None:
    usual = recognizer_class(method).settings_for("tiny", 64)
    with pytest.raises(UsageError) as caught:
        build_recognizer(method, {"num_classes": 10, "resolution": 64, **usual, **wrong})
    assert told in str(caught.value)


def test_a_constructor_stays_an_ordinary_one() -> None:
    """mmengine's registry calls it with the values of a config."""
    assert "__init__" in vars(EfficientRecognizer)
    parameters = inspect.signature(recognizer_class("adafocus-v2")).parameters
    assert parameters["policy_hidden"].default == 2048 and parameters["order"].default == "middle-first"
