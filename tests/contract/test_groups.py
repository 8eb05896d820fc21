"""Groups of settings: plain keywords outside, one value inside, wrong ones told."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from harness.contract.groups import grouped, settings, validated
from harness.contract.names import class_settings
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_card, method_cards, recognizer_class
from harness.errors import UsageError
from harness.plan.building import build_recognizer, constructor_settings


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


@pytest.mark.parametrize("given", [{"rate": 3}, {"order": [1, 0]}, {"order": (1, 0)}, {"score": "logit"}])
def test_right_values(given: dict[str, Any]) -> None:
    made(8, **given)


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
