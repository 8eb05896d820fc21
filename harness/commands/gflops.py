"""`bench.py gflops`: the parts of one method's cost, or measured beside published."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.authors.paper_costs import measure_paper
from harness.authors.published import exit_table, paper_table
from harness.commands.arguments import plain_settings
from harness.contract.values import plain
from harness.errors import FAILED, OK, UsageError
from harness.measure.parts import method_table

FVCORE = (
    "fvcore: its count of the convolutions and linear layers that were executed; it knows no recurrent cells and sees "
    "no products outside layers."
)


def gflops(
    method: str | None,
    *,
    paper: bool,
    size: str,
    resolution: int,
    classes: int,
    sets: list[str] | None,
    as_json: bool,
) -> int:
    """Measured beside published, or the parts of one method; 1 where a published figure is missed."""
    if paper == (method is not None):
        raise UsageError("say which method to count, or --paper for all published fixed costs")
    if paper and sets:
        raise UsageError("--paper counts what was published; --set goes with a method")
    if method is not None:
        settings = plain_settings("gflops", sets)
        result: Any = method_table(method, size=size, resolution=resolution, num_classes=classes, settings=settings)
        ok = True
    else:
        rows = (*paper_table(), *exit_table())
        result = measure_paper(rows, progress=lambda row: print(f"counting {row.label()}", file=sys.stderr))
        ok = all(row["ok"] is not False for row in result)
    if as_json:
        print(json.dumps(plain(result), indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for table in [render_method(result)] if method is not None else render_paper(result):
            console.print(table)
    return OK if ok else FAILED


def render_paper(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Measured beside published as tables for the terminal: whole forwards, and where there are any, exits."""
    whole = [r for r in results if not r["point"]]
    exits = [r for r in results if r["point"]]
    tables = []
    if whole:
        table = _paper_table("GFLOPs per video (1e9 multiply-accumulates), measured beside published", whole)
        table.caption = (
            "counted: what the published figure covers. It includes heads that only training needs: all those of "
            "AdaFocusV2 and of V2 and Uni-AdaFocus on TSM, and those of Uni-AdaFocus's steps. " + FVCORE
        )
        tables.append(table)
    if exits:
        table = _paper_table("GFLOPs per video by exit, measured beside the cost models of the authors' code", exits)
        table.caption = "measured: every video stopped at that exit, and only what it needs was run."
        tables.append(table)
    return tables


def _paper_table(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("method", "dataset", "variant"):
        table.add_column(heading)
    if results[0]["point"]:
        table.add_column("exit", justify="right")
    for heading in ("executed", "fvcore", "training only", "counted", "published", "difference", ""):
        table.add_column(heading, justify="right")
    for r in results:
        where = [str(value) for value in r["point"].values()]
        counts = (r[key] for key in ("executed", "fvcore", "training_only", "counted"))
        figures = [*map(_figure, counts), f"{r['published']:g}"]
        verdict = {True: "ok", False: "[bold red]off[/]", None: r["status"]}[r["ok"]]
        difference = "" if r["difference"] is None else f"{r['difference']:+.2%}"
        table.add_row(r["title"], r["dataset"], r["variant"], *where, *figures, difference, verdict)
    return table


def render_method(result: Mapping[str, Any]) -> Table:
    """The parts of one method's cost as a table for the terminal."""
    heading = f"{escape(result['method'])} ({result['size']}, {result['resolution']} px, {result['classes']} classes)"
    table = Table(title=f"{heading}: {result['executed']:.4g} GFLOPs per video", title_justify="left", show_footer=True)
    table.add_column("component", footer="executed")
    table.add_column("variant")
    table.add_column("input of a row")
    table.add_column("MMACs per row", justify="right")
    table.add_column("rows per video", justify="right")
    table.add_column("GFLOPs per video", justify="right", footer=f"{result['executed']:.4g}")
    table.add_column("fvcore", justify="right", footer=f"{result['fvcore']:.4g}")
    table.add_column("share", justify="right")
    table.caption = FVCORE
    for part in result["parts"]:
        share = "training only" if part["share"] is None else f"{part['share']:.1%}"
        shape = " x ".join(map(str, part["shape"]))
        cost = f"{part['mmacs']:.6g}", f"{part['rows']:g}", f"{part['gflops']:.4g}", f"{part['fvcore']:.4g}"
        table.add_row(part["component"], part["variant"], shape, *cost, share)
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
