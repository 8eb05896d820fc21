"""The papers' recipes per data set: TOML files in the `recipes` folder of a package of methods. No torch.

    method = "adafocus-v2"
    dataset = "activitynet"
    source = "docs/methods/adafocus-v2.md#training"
    [settings]                  # constructor settings that differ from the paper size's
    dropout = 0.2
    [[stages]]                  # fields of harness.contract.declarations.Stage
    name = "train"
    ...

A stage without `init` starts as the method's own stage of that name, so another backbone finds its own weights.
They apply at the paper size, to variants without a file of their own too; a data set without a file gets the
method's own default recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from harness.contract.declarations import Stage
from harness.contract.groups import check, check_fields
from harness.contract.registry import method_card, method_cards
from harness.contract.values import from_mapping
from harness.errors import BenchError, about
from harness.plan.units import read_stage


@dataclass(frozen=True)
class Recipe:
    """How a paper trained a method on a data set."""

    name: str
    method: str
    dataset: str
    source: str
    stages: tuple[Stage, ...] = ()
    """Empty: the method's default stages."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "recipe")


@cache
def recipes() -> tuple[Recipe, ...]:
    """All recipes of all packages that hold methods, by name."""
    found: list[Recipe] = []
    for package in sorted({card.module.rpartition(".")[0] for card in method_cards().values()}):
        folder = files(package) / "recipes"
        if not folder.is_dir():
            continue
        paths = [path for path in folder.iterdir() if path.name.endswith(".toml")]
        found += map(_read, paths)
    return tuple(sorted(found, key=lambda r: r.name))


def paper_recipe(method: str, dataset: str, size: str) -> Recipe | None:
    """The paper's recipe for a method on a data set, or of what it is a variant of; None: the default one applies."""
    if size != "paper":
        return None
    name: str | None = method
    while name is not None:
        for recipe in recipes():
            if (recipe.method, recipe.dataset) == (name, dataset):
                return recipe
        name = method_card(name).variant_of
    return None


def adapted(stages: Sequence[Stage], names: Collection[str]) -> tuple[Stage, ...]:
    """A recipe's stages for a variant that lacks some of the method's modules: what names only those goes.

    Args:
        stages: The stages of the recipe.
        names: Dotted names of all modules and parameters that the variant has.
    """

    def there(prefixes: Iterable[str]) -> tuple[str, ...]:
        return tuple(prefix for prefix in prefixes if not prefix or prefix in names)

    def fitted(stage: Stage) -> Stage:
        groups = [replace(group, modules=there(group.modules)) for group in stage.groups]
        return replace(
            stage,
            groups=tuple(group for group in groups if group.modules),
            trained=there(stage.trained),
            eval_modules=there(stage.eval_modules),
            init=tuple(init for init in stage.init if there((init.into,))),
        )

    return tuple(stage if stage.method is not None else fitted(stage) for stage in stages)


def _read(path: Traversable) -> Recipe:
    with about(str(path)):
        text = path.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
        stages = check("stages", values.pop("stages", []), list[dict[str, Any]])
        return from_mapping(
            Recipe,
            {"name": path.name.removesuffix(".toml"), **values, "stages": tuple(map(read_stage, stages))},
            kind="recipe",
        )
    except (tomllib.TOMLDecodeError, TypeError, BenchError) as error:
        raise BenchError(f"{path}: {error}") from error
