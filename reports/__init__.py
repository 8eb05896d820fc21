"""Tables, plots and pages from records alone: nothing is run, and torch is never imported.

    from reports import build
    build([Path("results")], Path("results/report"))

`reports.compare` tells what changed between two folders of results.
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
        allow_mixed: Put records of differing versions of one dataset into one table, with a note.

    Returns:
        The files written, the page first.

    Raises:
        BenchError: nothing to report, a damaged record, or mixed datasets.
    """
    from reports.writing import write_report

    return write_report(work_dirs, out, allow_mixed=allow_mixed)
