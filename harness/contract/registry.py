"""Finding methods: each file's literal `CARD` is read without importing it, so `list` answers at once.

A name may carry settings, `adafocus-v2[random_pass=false]` (harness.contract.names): a variant of that method.

Packages to scan come from the entry-point group `focusbench.methods`, so a third party adds methods
from its own package; this project's own two are always scanned.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from harness.contract.declarations import MethodCard
from harness.contract.groups import check
from harness.contract.names import DATA_SETTINGS, class_settings, split_name, written
from harness.contract.values import from_mapping
from harness.errors import BenchError, UsageError, about, unknown

ENTRY_POINTS = "focusbench.methods"
OWN_PACKAGES = ("adafocus", "baselines")


@cache
def method_cards() -> dict[str, MethodCard]:
    """All methods by name, sorted; a file whose card is broken raises and is named."""
    cards: dict[str, MethodCard] = {}
    for package in dict.fromkeys((*OWN_PACKAGES, *(e.value for e in entry_points(group=ENTRY_POINTS)))):
        for module, path in _modules(package):
            for card in _cards_in(module, path):
                if card.name in cards:
                    raise BenchError(f"method {card.name!r} is in both {cards[card.name].module} and {module}")
                cards[card.name] = card
    return dict(sorted(cards.items()))


def method_card(name: str) -> MethodCard:
    """The card of one method; an unknown name, or an unknown setting in it, raises UsageError with the nearest.

    The card of a name with settings is that of a variant: its title says what differs, and its own `name` is the
    one way to write it (settings sorted), which goes into keys and records.
    """
    base, settings = split_name(name)
    try:
        card = method_cards()[base]
    except KeyError:
        raise unknown("method", base, method_cards()) from None
    return _with_settings(card, settings) if settings else card


def recognizer_class(name: str) -> Any:
    """Import the method's module (torch and mmaction2 with it) and return its class."""
    card = method_card(name)
    try:
        return getattr(importlib.import_module(card.module), card.cls)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise BenchError(f"method {card.name}: {card.module}.{card.cls} cannot be imported: {error}") from error


def authors_module(card: MethodCard) -> Any:
    """Import the module that knows the authors' files of a method; None where its card names none.

    Raises:
        BenchError: There is no such module, or it cannot be imported; names the card.
    """
    if card.authors is None:
        return None
    try:
        return importlib.import_module(card.authors)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise BenchError(f"the card of {card.name} names authors {card.authors!r}, not importable: {reason}") from error


def _with_settings(card: MethodCard, settings: dict[str, Any]) -> MethodCard:
    known = class_settings(card.module, card.cls)
    for key in settings:
        if key in DATA_SETTINGS:
            raise UsageError(f"{card.name}[{key}=...]: the data set fixes {', '.join(DATA_SETTINGS)}")
        if known is not None and key not in known:
            raise unknown(f"setting of {card.name}", key, known - set(DATA_SETTINGS))
    differs = written(settings)
    return replace(
        card,
        name=f"{card.name}[{differs}]",
        title=f"{card.title} ({differs.replace(',', ', ')})",
        settings={**card.settings, **settings},
        variant_of=card.name,
    )


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise BenchError(f"entry point group {ENTRY_POINTS} names {package!r}, which is not an importable package")
    for location in spec.submodule_search_locations:
        for path in sorted(Path(location).glob("*.py")):
            if path.stem != "__init__":
                yield f"{package}.{path.stem}", path


def _cards_in(module: str, path: Path) -> Iterator[MethodCard]:
    """The card of a file and its `variants`; nothing where the file holds no CARD."""
    with about(path):
        text = path.read_text(encoding="utf-8")
    if "CARD" not in text:
        return
    try:
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise BenchError(f"{path} is no Python: {error}") from error
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "CARD" for t in targets):
            try:
                entry = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                variants = entry.pop("variants", {})
                check("variants", variants, dict[str, dict[str, Any]])
            except (ValueError, AttributeError, TypeError, UsageError) as error:
                raise BenchError(f"{path}: CARD must be a literal dict: {error}") from None
            card = _card(module, path, entry)
            yield card
            for name, changes in variants.items():
                yield _card(module, path, {**entry, "name": name, "variant_of": card.name, **changes})


def _card(module: str, path: Path, entry: dict[str, Any]) -> MethodCard:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    values["cls"] = values.pop("class", None)
    try:
        return from_mapping(MethodCard, {**values, "module": module}, kind="CARD")
    except UsageError as error:
        raise BenchError(f"{path}: {error}") from None
