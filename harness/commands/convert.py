"""`bench.py convert`: the authors' checkpoint as an artifact of ours."""

from __future__ import annotations

from pathlib import Path

from harness.authors import official
from harness.commands.arguments import plain_settings
from harness.contract.registry import method_card
from harness.errors import OK, UsageError
from harness.plan.building import build_recognizer
from harness.store import artifacts, sources


def convert(file: Path, method: str | None, out: Path, *, sets: list[str] | None) -> int:
    """Write the authors' checkpoint as an artifact of ours."""
    if method is not None:
        method_card(method)
    if (out / "artifact.json").exists():
        raise UsageError(f"{out} holds an artifact already; choose another --out")
    converted = official.convert(file, method=method, **plain_settings("convert", sets))
    card = method_card(converted.method)
    model = build_recognizer(converted.method, converted.settings)
    artifacts.load_into(model, converted.state, origin=str(file))
    description = {
        "method": card.name,
        "stage": artifacts.OFFICIAL,
        "size": "paper",
        "settings": converted.settings,
        "recipe": {"epochs": 0},
        "inputs": [file.name],
        "unused": list(converted.unused),
        "unplaced": list(converted.unplaced),
        "differing": list(converted.differing),
        "assumed": list(converted.assumed),
        "initialisation": f"official checkpoint {file.name}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "departures": [],
        "sources": sources.loaded("training"),
    }
    artifacts.write(out, model.state_dict(), description)
    print(converted.report())
    print(f"wrote {out}")
    return OK
