"""What a suite sets, and what is typed beside it."""

from __future__ import annotations

import pytest

from harness.plan.overrides import parse_sets
from harness.plan.protocol import Protocol
from harness.plan.suites import SUITES, settings, suite


@pytest.mark.parametrize(
    ("typed", "unit", "batch"),
    [
        ([], "ms", 16),
        (["protocol.budget_batch=4"], "ms", 4),
        (["protocol.budget_unit=ms"], "ms", 1),
        (["protocol.budget_unit=gflops"], "gflops", 1),
        (["protocol.threads=2", "tsn.frames=4"], "ms", 16),
    ],
)
def test_what_is_typed_comes_after_what_quick_sets(typed: list[str], unit: str, batch: int) -> None:
    overrides, protocol = parse_sets(settings(suite("quick"), typed))
    assert (protocol.budget_unit, protocol.budget_batch) == (unit, batch)
    assert ("tsn.frames" in overrides.settings) == ("tsn.frames=4" in typed)


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"quick"}))
def test_other_suites_have_the_papers_budgets(name: str) -> None:
    assert parse_sets(settings(suite(name), []))[1] == Protocol()
