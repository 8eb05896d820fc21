"""`bench.py list`: methods, data sets, suites and recipes; reads cards only, so it answers at once. No torch."""

from __future__ import annotations

import json

from harness.contract.registry import method_cards
from harness.data.cards import dataset_summaries
from harness.errors import unknown
from harness.plan.recipes import recipes
from harness.plan.suites import SUITES

KINDS = ("methods", "datasets", "suites", "recipes")


def show(what: str, *, as_json: bool) -> None:
    """Print what there is."""
    found = listing(what)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for title, rows in found.items():
        print(f"{title}:")
        width = max((len(name) for name in rows), default=0)
        for name, text in rows.items():
            print(f"  {name:{width}}  {text}")


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
