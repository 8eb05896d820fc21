"""What `--set` and `--epochs` change: read from `KEY=VALUE` texts, checked against the methods. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.contract.values import from_mapping, literal, setting_value, split_outside_brackets
from harness.errors import UsageError
from harness.plan.protocol import Protocol


@dataclass(frozen=True)
class Overrides:
    """Changes to settings and recipes, already parsed."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """`setting` or `method.setting` -> value."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """`field` or `stage-name.field` -> value, for the stages of every method."""
    epochs: int | None = None


def parse_sets(sets: Sequence[str] | None, epochs: int | None = None) -> tuple[Overrides, Protocol]:
    """`KEY=VALUE` options as overrides and protocol; values are Python literals, else strings."""
    settings: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    for text in sets or ():
        parts = split_outside_brackets(text, "=", most=1)  # a method's name may hold settings, in brackets
        if len(parts) != 2:
            raise UsageError(f"--set takes KEY=VALUE, not {text!r}")
        key, value = parts
        head, _, rest = key.partition(".")
        if key.startswith(".") or key.endswith(".") or rest.startswith("."):
            raise UsageError(f"--set takes KEY=VALUE, and {key!r} lacks a name beside a dot")
        if head == "protocol":
            protocol[rest] = literal(value)
        elif head == "stage":
            stages[rest] = literal(value)
        else:
            settings[key] = setting_value(value)
    if "budgets" in protocol:
        budgets = protocol["budgets"]
        protocol["budgets"] = tuple(budgets) if isinstance(budgets, list | tuple) else (budgets,)
    return Overrides(settings, stages, epochs), from_mapping(Protocol, protocol, kind="protocol")
