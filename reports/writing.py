"""Writes a report: collect, draw, tabulate, render."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import BenchError
from harness.store.files import write_atomically
from reports import drawing, export
from reports.collect import Group, Report, collect
from reports.folds import pooled_tables
from reports.page import GroupPictures, page
from reports.plots import PLOTS
from reports.strips import strip
from reports.tables import file_table, findings, headline, operating_points, savings, stream_table, timing_table
from reports.text import Table, latex_head, markdown_text, to_latex, to_markdown


def write_report(work_dirs: Iterable[Path], out: Path, *, allow_mixed: bool = False) -> list[Path]:
    """See `reports.build`."""
    report = collect(work_dirs, allow_mixed=allow_mixed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write the report to {out}: {error.strerror}; choose another --out") from error
    files = [
        *export.write(export.points(report.evaluations), out / "points"),
        *export.write(export.latencies(report.latencies), out / "latency"),
    ]
    pictures = {}
    with drawing.style():
        for group, stem in zip(report.groups, _stems(report.groups), strict=True):
            pictures[group.anchor], drawn = _draw(group, out / stem)
            files += drawn
    tables = {g.anchor: _tables(g) for g in report.groups}
    pooled = pooled_tables(report.groups)
    texts = {
        out / "index.html": page(report, pictures, tables, pooled),
        out / "comparison.md": _markdown(report, tables, pooled),
        out / "comparison.tex": _latex(report, tables, pooled),
    }
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return [*texts, *files]


def _tables(group: Group) -> list[Table]:
    made = (headline, savings, operating_points, timing_table, stream_table, file_table)
    return [table for make in made if (table := make(group)) is not None]


def _draw(group: Group, stem: Path) -> tuple[GroupPictures, list[Path]]:
    """All pictures of a group for the page, and the files they were saved to."""
    pictures, files = GroupPictures(), []
    for name, (title, figure_of, caption) in PLOTS.items():
        if (figure := figure_of(group)) is not None:
            path = stem.with_name(f"{stem.name}-{name}")
            files += drawing.save(figure, path)
            pictures.add("plots", title, caption, drawing.inline_svg(figure, path.name, f"{title}: {group.title}"))
    for i, method in enumerate(group.methods):
        if (figure := strip(method, group.dataset["classes"])) is not None:
            path = stem.with_name(f"{stem.name}-frames-{_slug(method.label)}-{i}")
            files += drawing.save(figure, path)
            pictures.add(
                "strips", method.label, "", drawing.inline_svg(figure, path.name, f"Frames and patches: {method.label}")
            )
    return pictures, files


def _markdown(report: Report, tables: dict[str, list[Table]], pooled: Sequence[Table]) -> str:
    parts = ["# Efficient video recognition: comparison\n", *map(to_markdown, pooled)]
    for group in report.groups:
        first, *others = tables[group.anchor]
        parts.append(to_markdown(first))
        parts.append("\n".join(f"* {markdown_text(line)}" for line in [*findings(group), *group.notes]) + "\n")
        parts += [to_markdown(t) for t in others]
        if lines := [f"* {markdown_text(d)}" for d in group.disclosures]:
            parts.append("To be known with these figures:\n\n" + "\n".join(lines) + "\n")
    if report.failures:
        failures = (f"* {markdown_text(f['what'])}: {markdown_text(f['reason'])}" for f in report.failures)
        parts.append("## Failed\n\n" + "\n".join(failures) + "\n")
    return "\n".join(parts)


def _latex(report: Report, tables: dict[str, list[Table]], pooled: Sequence[Table]) -> str:
    kinds = ("headline", "second", "third", "fourth")
    labelled = [(t, f"pooled-{number}") for number, t in enumerate(pooled)]
    labelled += [
        (table, f"{stem}-{kind}")
        for group, stem in zip(report.groups, _stems(report.groups), strict=True)
        for table, kind in zip(tables[group.anchor], kinds, strict=False)
    ]
    body = "\n".join(to_latex(table, label) for table, label in labelled)
    return latex_head(body) + body


def _stems(groups: Sequence[Group]) -> list[str]:
    """A file name for every group: its dataset, numbered where several share it."""
    return list(_unique(_slug(group.title) for group in groups))


def _unique(names: Iterable[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}"


def _slug(text: str) -> str:
    """A short file name of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "data"
