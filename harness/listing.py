"""What `bench.py list` shows; reads cards only, so it answers at once. No torch."""

from __future__ import annotations

from harness.data.cards import dataset_summaries
from harness.errors import unknown
from harness.recipes import recipes
from harness.registry import method_cards
from harness.suites import SUITES

KINDS = ("methods", "datasets", "suites", "recipes")


def listing(what: str = "all") -> dict[str, dict[str, str]]:
    """Kind -> name -> one line; `what` is one of KINDS or `all`."""
    if what != "all" and what not in KINDS:
        raise unknown("list", what, (*KINDS, "all"))
    found = {
        "methods": {
            c.name: f"{c.summary} [{', '.join(c.adapts) or 'static'}; {c.year}]" for c in method_cards().values()
        },
        "datasets": dataset_summaries(),
        "suites": {s.name: s.summary for s in SUITES.values()},
        "recipes": {r.name: f"{r.method} on {r.dataset} ({r.source})" for r in recipes()},
    }
    return found if what == "all" else {what: found[what]}
