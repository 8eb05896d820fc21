"""Named selections of methods and data sets. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.registry import method_cards
from harness.errors import unknown


@dataclass(frozen=True)
class Suite:
    """What `bench.py run NAME` does; every value can be overridden on the command line."""

    name: str
    summary: str
    size: Literal["tiny", "paper"]
    seeds: int
    cells: dict[str, tuple[str, ...]]
    """Data set -> methods; an empty tuple means all that the zoo has."""
    sets: tuple[str, ...] = ()
    """As typed behind `--set`; what is typed comes after them."""


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "minutes on two cores: representative methods, one seed, embedded data (--all: every method)",
            "tiny",
            1,
            {"glyphs": ("ar-net", "tsn", "adafocus-v2", "random-patch")},
            # networks of a few milliseconds: with all exits open, a batch takes longer than without any
            sets=("protocol.budget_unit=ms", "protocol.budget_batch=16"),
        ),
        Suite(
            "standard",
            "every method, three seeds, embedded data; about an hour on two cores",
            "tiny",
            3,
            {"glyphs": (), "glyphs-motion": ()},
        ),
        Suite(
            "ablation",
            "what each part of AdaFocus V2 and Uni-AdaFocus is worth, three seeds, embedded data; the full points are "
            "without, the exit points with the sample-wise part",
            "tiny",
            3,
            {
                "glyphs": (
                    "adafocus-v2",
                    "random-patch",
                    "centre-patch",
                    "adafocus-v2[random_pass=false]",
                    "adafocus-v2[stop_gradient=false]",
                    "adafocus-v2[aux_losses=false]",
                    "uni-adafocus",
                    "uni-adafocus[temporal=uniform]",
                    "uni-adafocus[spatial=random]",
                    "uni-adafocus[deformable=false]",
                    "uni-adafocus[pixel_gradient=false]",
                )
            },
        ),
        Suite(
            "paper",
            "real data sets and real networks; needs --data-root, --weights-dir and GPUs",
            "paper",
            1,
            {
                **dict.fromkeys(("activitynet", "fcvid", "mini-kinetics", "sthv1", "sthv2", "jester"), ()),
                "kinetics400": ("uni-adafocus-x3d",),
            },
        ),
    )
}


def suite(name: str) -> Suite:
    """The suite called `name`; UsageError with a suggestion where there is none."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def settings(chosen: Suite, typed: Sequence[str]) -> list[str]:
    """All of `--set`: the suite's and what was `typed`. Who asks for another unit of budgets asks for its batch too."""
    own = [text for text in chosen.sets if not any(t.startswith("protocol.budget_unit=") for t in typed)]
    return [*own, *typed]


def cells(chosen: Suite, *, everything: bool = False) -> dict[str, tuple[str, ...]]:
    """Data set -> methods of a suite; `everything` or an empty selection takes the whole zoo."""
    return {data: tuple(method_cards()) if everything or not names else names for data, names in chosen.cells.items()}
