"""Tables, plots and pages from records alone: nothing is run, and torch is never imported.

    from reports import build
    build([Path("results")], Path("results/report"))

`reports.versus` says which of two methods is better at equal cost, `reports.compare` what changed between two folders
of results.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def build(work_dirs: Iterable[Path], out: Path, *, allow_mixed: bool = False) -> list[Path]:
    """Write the report of all records below `work_dirs` into `out`.

    Files: index.html (self-contained), comparison.md, comparison.tex (booktabs), points.csv and .parquet,
    latency.csv and .parquet, and every plot as PNG and PDF.

    Args:
        work_dirs: Work directories of `bench.py run`; records they share are taken once.
        out: Folder, made where it is missing; files of an earlier report are overwritten.
        allow_mixed: Put records of differing versions of one dataset into one table, with a note; by default each
            version has tables of its own.

    Returns:
        The files written, the page first.

    Raises:
        BenchError: nothing to report.
    """
    from reports.writing import write_report

    return write_report(work_dirs, out, allow_mixed=allow_mixed)


def set_aside(out: Path) -> list[Path]:
    """Rename the pages of an earlier report in `out`, so that they do not pass for today's; returns the new names."""
    kept = []
    for name in ("index.html", "comparison.md", "comparison.tex"):
        path = out / name
        if path.exists():
            kept.append(path.rename(path.with_stem(f"{path.stem}.old")))
    return kept
