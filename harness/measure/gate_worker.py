"""Times `infer` of methods in one source tree, on request; `harness.measure.gate` runs it as a process of its own.

    PYTHONPATH=TREE python -P harness/measure/gate_worker.py TREE

It reads one JSON request per line, `{"method", "batch", "seconds", "threads"}`, and answers each with one
line: `{"cases": {name: {"median_s", "forwards", "work"}}}`, empty where the tree has no such method. It
ends with its input, or with the traceback of a method that fails. The tree may hold older code than this
file, so it uses only what every revision of the contract has.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PLACES = {
    "registry": ("harness.contract.registry", "harness.registry"),
    "names": ("harness.contract.names", "harness.inline"),
    "trace": ("harness.contract.trace", "harness.trace"),
}
"""Of what is used, today's module and that of revisions before the rooms."""
CLASSES, RESOLUTION, SEED, WARMUP, LEAST = 10, 64, 0, 2, 3


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    name: str
    """`tsn`, or `adafocus-v2:exit` for stopping half-way."""
    run: Callable[[], Any]
    """One forward of one batch; returns its trace."""


def cases(method: str, batch: int = 1) -> list[Case]:
    """The tiny size of `method` on fixed random clips: its default point, and stopping half-way.

    Empty where this tree has no such method.
    """
    registry, names = _module("registry"), _module("names")
    name, bracket, _ = method.partition("[")
    card = registry.method_cards().get(name)
    if card is None or (bracket and names is None):
        return []
    given = names.split_name(method)[1] if bracket else {}
    import torch

    cls = registry.recognizer_class(method)
    settings = {**cls.settings_for("tiny", RESOLUTION), **card.settings, **given}
    torch.manual_seed(SEED)
    recognizer = cls(num_classes=CLASSES, resolution=RESOLUTION, **settings).eval()
    for parameter in recognizer.parameters():
        if parameter.dim() == 4:  # 3-D convolutions have no such format
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    point = dict(next(iter(recognizer.operating_points(()))).settings)
    found = [_case(method, recognizer, point, batch)]
    if recognizer.exits:
        found.append(_case(f"{method}:exit", recognizer, recognizer.exit_settings(recognizer.exits // 2), batch))
    return found


def _module(what: str) -> Any:
    """A module of the tree, at its place or where older revisions have it; None where the tree has none.

    By its file: an editable installation would hand out its own copy of what the tree lacks.
    """
    root = Path(str(importlib.import_module("harness").__file__)).parents[1]
    for place in PLACES[what]:
        if root.joinpath(*place.split(".")).with_suffix(".py").is_file():
            return importlib.import_module(place)
    return None


def _case(name: str, recognizer: Any, point: dict[str, Any], batch: int) -> Case:
    import torch

    trace_class = _module("trace").Trace
    generator = torch.Generator().manual_seed(SEED)
    clips = {}
    for request in recognizer.clip_requests(point):
        side = request.resolution or RESOLUTION
        shape = (batch, request.frames, 3, side, side)
        clips[request.name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def run() -> Any:
        trace = trace_class(batch)
        with torch.inference_mode():
            recognizer.infer(clips, point, trace=trace)
        return trace

    return Case(name, run)


def work(trace: Any) -> dict[str, float]:
    """Rows executed per kind of work: equal for two revisions that do the same."""
    return {key.label(): float(rows.sum()) for key, rows in sorted(trace.counts.items())}


def serve(tree: Path, requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until they end; a method is built once and timed in every request for it."""
    _check_tree(tree)
    built: dict[tuple[str, int], list[Case]] = {}
    for line in requests:
        request = json.loads(line)
        key = (request["method"], request["batch"])
        if key not in built:
            built[key] = _warmed(cases(*key), request["threads"])
        answer({"cases": {case.name: _time(case, request["seconds"]) for case in built[key]}})


def _check_tree(tree: Path) -> None:
    """The imports must come from the tree, not from an installed copy of the project."""
    origin = importlib.import_module("harness").__file__
    if origin is None or not Path(origin).resolve().is_relative_to(tree.resolve()):
        raise ImportError(f"there is no harness in {tree}")


def _warmed(found: list[Case], threads: int) -> list[Case]:
    import torch

    torch.set_num_threads(threads)
    for case in found:
        for _ in range(WARMUP):
            case.run()
    return found


def _time(case: Case, seconds: float) -> dict[str, Any]:
    samples = list(_samples(case, seconds))
    return {"median_s": statistics.median(samples), "forwards": len(samples), "work": work(case.run())}


def _samples(case: Case, seconds: float) -> Iterator[float]:
    end, count = time.perf_counter() + seconds, 0
    while count < LEAST or time.perf_counter() < end:
        began = time.perf_counter()
        case.run()
        yield time.perf_counter() - began
        count += 1


def main() -> None:
    """Answers go to the real standard output; what libraries print there goes to standard error."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the gate
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(Path(sys.argv[1]), sys.stdin, lambda value: print(json.dumps(value), file=answers))


if __name__ == "__main__":
    main()
