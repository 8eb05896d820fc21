"""What a run shows: one live line per cell on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from harness.plan.planner import Cell
from harness.plan.units import LatencySpec, TrainSpec
from harness.work.scheduler import Notify, Task

STYLES = {
    "done": "green",
    "cached": "cyan",
    "stale": "yellow",
    "failed": "bold red",
    "blocked": "red",
    "stopped": "yellow",
    "running": "bold",
    "waiting": "dim",
}


class Display:
    """Follows tasks; a context manager that yields what the scheduler tells changes to.

    Args:
        cells: The cells of the run, in the order of their lines.
        tasks: All tasks by key (filled later by the scheduler).
        out: Where to write; a terminal gets a live table.
    """

    def __init__(self, cells: Sequence[Cell], tasks: Mapping[str, Task], out: TextIO = sys.stdout) -> None:
        self.cells, self.tasks = cells, tasks
        self.console = Console(file=out)
        self.live = (
            Live(console=self.console, auto_refresh=False, transient=False) if self.console.is_terminal else None
        )
        self.said: dict[str, tuple[str, float]] = {}
        self.noted: dict[str, int] = {}
        self.refreshed = 0.0

    def __enter__(self) -> Notify:
        if self.live is not None:
            self.live.start()
        return self.update

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.stop()

    def update(self, task: Task) -> None:
        """A task changed."""
        now = time.monotonic()
        for note in task.notes[self.noted.get(task.key, 0) :]:
            self._print(f"note     {task.spec.label()}: {note}")
        self.noted[task.key] = len(task.notes)
        if self.live is not None:
            if now - self.refreshed > 0.2 or task.over:
                self.refreshed = now
                self.live.update(self._table(), refresh=True)
            return
        status, last = self.said.get(task.key, ("", 0.0))
        told = task.progress or task.status != "running" or not isinstance(task.spec, LatencySpec)
        if told and (task.status != status or now - last > 20.0):  # all timings start at once; launches tell
            self.said[task.key] = (task.status, now)
            if task.status != "cached" or not isinstance(task.spec, TrainSpec):
                self._print(f"{task.status:8} {task.spec.label()}{_detail(task)}")

    def _print(self, line: str) -> None:
        """A line of its own, above the live table where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for cell in self.cells:
            status, text = self.line(cell)
            label = f"{cell.method} · {cell.data.label()} · seed {cell.seed}"
            table.add_row(escape(label), f"[{STYLES[status]}]{status}[/]", escape(text))
        timing = [t for t in self.tasks.values() if isinstance(t.spec, LatencySpec)]
        if timing:
            over = sum(t.finished for t in timing)
            status = (
                "done"
                if over == len(timing)
                else "running"
                if any(t.status == "running" for t in timing)
                else "waiting"
            )
            failed = [t for t in timing if t.status == "failed"]
            status = "failed" if failed else status
            table.add_row(
                "latency",
                f"[{STYLES[status]}]{status}[/]",
                f"{over}/{len(timing)} {escape(failed[0].reason) if failed else ''}",
            )
        return table

    def line(self, cell: Cell) -> tuple[str, str]:
        """Status of a cell and what it is doing."""
        tasks = [self.tasks[s.key] for s in cell.specs if s.key in self.tasks]
        for task in tasks:
            if task.status in ("failed", "blocked", "stopped"):
                return ("failed" if task.status == "blocked" else task.status), task.reason
        for task in tasks:
            if task.status == "running":
                what = f"{task.spec.stage['name']} " if isinstance(task.spec, TrainSpec) else ""
                return "running", what + _detail(task).strip()
        last = tasks[-1]
        if last.finished:
            return last.status, last.why if last.status == "stale" else ""
        return "waiting", f"rerun, {last.why}" if last.why else ""


def _detail(task: Task) -> str:
    if task.status in ("failed", "blocked", "stopped"):
        return f": {task.reason}"
    if task.status == "done":
        return f" ({task.seconds:.0f} s)"
    progress = task.progress
    if task.why and not progress:
        return f" ({task.why})"
    if task.status != "running" or not progress:
        return ""
    if "epoch" in progress:
        eta = f", {progress['eta_s']:.0f} s left" if progress.get("eta_s") is not None else ""
        return f": epoch {progress['epoch']}/{progress['epochs']}, loss {progress['loss']:.3f}{eta}"
    done = f" {progress['done']}/{progress['total']}" if progress.get("total") else ""
    return f": {progress.get('note', '')}{done}"
