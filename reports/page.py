"""The report as one HTML file: style, plots and frames inside, no script, nothing fetched, every string escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.measure.metrics import classes_without_positives
from harness.plan.protocol import TIME_BUDGETS
from harness.store.records import Record
from reports.claims import OBSERVED, PARETO
from reports.collect import Group, Report
from reports.drawing import colour
from reports.tables import findings
from reports.text import Table


def page(
    report: Report,
    shown: Mapping[str, GroupPictures],
    tables: Mapping[str, Sequence[Table]],
    pooled: Sequence[Table] = (),
) -> str:
    """The whole page.

    Args:
        report: The groups, failures and records.
        shown: Group anchor -> its pictures.
        tables: Group anchor -> headline table first, then those that are folded away.
        pooled: Tables of cross-validations, all folds together.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(swatch=_swatch, tags=(PARETO, OBSERVED))
    records = [r for g in report.groups for m in g.methods for r in m.records]
    return environment.get_template("page.html").render(
        groups=[_group(g, shown[g.anchor], tables[g.anchor]) for g in report.groups],
        pooled=pooled,
        failures=report.failures,
        evaluations=len(report.evaluations),
        latencies=len(report.latencies),
        newest=max(r.result["created"] for r in records)[:10],
        provenance=_provenance([*records, *report.latencies]),
        style=Markup(environment.get_template("page.css").render()),
    )


class GroupPictures:
    """Finished pictures of a group: `plots` and `strips`, each (title, caption, svg)."""

    def __init__(self) -> None:
        self.plots: list[tuple[str, str, Markup]] = []
        self.strips: list[tuple[str, str, Markup]] = []

    def add(self, kind: str, title: str, caption: str, svg: str) -> None:
        """Add an SVG made by `drawing.inline_svg`, which has escaped its strings."""
        getattr(self, kind).append((title, caption, Markup(svg)))


def _swatch(style: int | None) -> str:
    return colour(style) if style is not None else "transparent"


def _group(group: Group, pictures: GroupPictures, tables: Sequence[Table]) -> dict[str, Any]:
    dataset = group.dataset
    return {
        "title": group.title,
        "anchor": group.anchor,
        "facts": _facts(group),
        "findings": findings(group),
        "notes": [*group.notes, *_silent_classes(group)],
        "headline": tables[0],
        "folded": tables[1:],
        "plots": pictures.plots,
        "strips": pictures.strips,
        "disclosures": group.disclosures,
        "departures": [(m.label, found) for m in group.methods if (found := _departures(m.records))],
        "methods": [_method(m.label, m.records) for m in group.methods],
        "protocol": [(k.replace("_", " "), _text(v)) for k, v in group.protocol.items() if k not in TIME_BUDGETS],
        "fingerprint": dataset["fingerprint"],
    }


def _facts(group: Group) -> list[tuple[str, str]]:
    dataset = group.dataset
    videos = ", ".join(f"{count} {split}" for split, count in dataset["videos"].items())
    decoder = ", ".join(f"{name} ({count})" for name, count in dataset["decoder"].items())
    return [
        ("classes", str(len(dataset["classes"]))),
        ("resolution", f"{dataset['resolution']} px"),
        ("videos", videos),
        ("metric", group.metric.title),
        ("decoder", decoder),
        ("fingerprint", str(dataset["fingerprint"])),
    ]


def _silent_classes(group: Group) -> Iterable[str]:
    """With mAP, a class nobody shows counts as zero; the reader must know."""
    if not group.metric.name.startswith("mAP"):
        return
    names = group.dataset["classes"]
    silent = classes_without_positives(group.methods[0].records[0].arrays()["targets"], len(names))
    if silent:
        shown = ", ".join(str(names[i]) for i in silent[:8]) + (" …" if len(silent) > 8 else "")
        yield f"{len(silent)} classes have no test video and count as 0 in mAP: {shown}"


def _departures(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(d for r in records for d in r.result["training"]["departures"]))


def _method(label: str, records: Sequence[Record]) -> dict[str, Any]:
    first, about = records[0].result, records[0].result["method"]
    stages = [
        f"{s['name']} ({s['method']}): {s['epochs']} epochs, {s['samples']} samples, {s['seconds']:.0f} s"
        + (", shared" if s["shared"] else "")
        for s in first["training"]["stages"]
    ]
    checks = [r.result["cost"]["whole_check"]["max_relative_difference"] for r in records]
    return {
        "label": label,
        "facts": [
            ("class", f"{about.get('class')} (version {about['version']}, size {about['size']}, {about['year']})"),
            ("source", about["source"]),
            ("settings", _text(about["settings"])),
            ("initialisation", first["initialisation"]),
            ("training", "; ".join(stages) or "none here"),
            ("seeds", ", ".join(str(r.result["seed"]) for r in records)),
            ("GFLOPs check", f"whole forward against trace × table: {100 * max(checks):.2f} % at most"),
            ("records", ", ".join(str(r.result["key"]) for r in records)),
        ],
    }


def _provenance(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Every distinct value of every provenance entry."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.result["provenance"].items():
            if value not in (None, [], {}, ""):
                found.setdefault(key, {})[_provenance_text(key, value)] = None
    return [(key, list(values)) for key, values in found.items()]


def _provenance_text(key: str, value: Any) -> str:
    if key == "git":
        return f"{value['revision'][:12]}{' with uncommitted changes' if value['dirty'] else ''}"
    if key == "command":
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "–"
    return value if isinstance(value, str) else re.sub(r"^null$", "–", json.dumps(value))
