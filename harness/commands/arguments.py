"""From what was typed to values: lists, method names, devices."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Any

from harness.contract.names import split_name
from harness.contract.registry import method_card, method_cards, recognizer_class
from harness.contract.values import split_outside_brackets
from harness.errors import UsageError
from harness.measure.machine import PATIENCE_S, fingerprint
from harness.plan.overrides import parse_sets
from harness.plan.protocol import Protocol
from harness.plan.timing import Clock


def comma_separated(text: str | None) -> tuple[str, ...]:
    """The non-empty parts of a comma-separated option, as in a line of CSV: one in double quotes may hold commas."""
    try:
        parts = next(csv.reader([text or ""], skipinitialspace=True, strict=True), [])
    except csv.Error:
        raise UsageError(f"{text}: a part in quotes ends with a quote before the comma") from None
    return tuple(part.strip() for part in parts if part.strip())


def plain_settings(command: str, sets: Sequence[str] | None) -> dict[str, Any]:
    """`--set` options of a command that neither trains nor evaluates: settings only."""
    overrides, protocol = parse_sets(sets)
    if overrides.stages or protocol != Protocol() or any("." in key for key in overrides.settings):
        raise UsageError(f"{command} trains nothing and evaluates nothing: --set takes SETTING=VALUE here")
    return dict(overrides.settings)


def method_names(text: str | None) -> tuple[str, ...]:
    """The methods of a comma-separated option, each as its card writes it; UsageError for an unknown one.

    Commas in brackets belong to a name: `adafocus-v2[random_pass=false,dropout=0],tsn`. None where there is no option.
    """
    if text is not None and not split_outside_brackets(text):
        raise UsageError(f"--methods {text!r} names no method")
    return tuple(dict.fromkeys(method_card(name).name for name in split_outside_brackets(text or "")))


def class_defaults(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> settings that its class sets, of the known methods among `names` that carry settings.

    A record leaves these out, so that `harness.contract.names.stands_for` asks for them.
    """
    methods = {split_name(name)[0] for name in names if split_name(name)[1]} & method_cards().keys()
    if not methods:
        return {}
    from harness.plan.building import setting_defaults  # imports torch, which plain names need not wait for

    return {method: setting_defaults(recognizer_class(method)) for method in methods}


def integers(option: str, text: str) -> tuple[int, ...]:
    """The numbers of a comma-separated option, 1 or more each."""
    try:
        values = tuple(int(part) for part in comma_separated(text))
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, not {text!r}") from None
    if any(v < 1 for v in values):
        raise UsageError(f"{option}: numbers must be at least 1, not {text!r}")
    return values


def resolve_device(device: str) -> str:
    """`auto`, `cpu` or `cuda` to what is there."""
    import torch  # seconds, which wrong usage need not wait for

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu, cuda or auto, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu, or see `bench.py doctor`")
    return device


def clock(protocol: Protocol, device: str, quiet_wait_s: float = PATIENCE_S) -> Clock | None:
    """Where segments are timed if budgets are in milliseconds; None where they are not."""
    return Clock(fingerprint(), device, quiet_wait_s) if protocol.budget_unit == "ms" else None
