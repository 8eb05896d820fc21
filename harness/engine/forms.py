"""Fast forms of components: compiled with folded batch norms, captured as CUDA graphs, cut into calls of the best size.

    with engaged(recognizer, "compiled", context=context, table=Path("results/tuning")) as forms:
        with forms.learning():
            recognizer.infer(clips, point, trace=trace)    # runs as it is; what occurs is compiled and measured
        recognizer.infer(clips, point, trace=trace)        # here nothing is

What is computed is the component's function; only rounding may differ. Whoever shows figures of a form shows its
accuracy and its decisions beside those of the eager float32 ones (harness.measure.timing).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from harness.contract.components import Call, Form, components
from harness.contract.declarations import ENGINES
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.values import digest
from harness.engine.rows import SIZES, RowTable, measured
from harness.errors import unknown
from harness.store.files import read_json, write_json

Args = tuple[Tensor | None, ...]
Signature = tuple[tuple[tuple[int, ...], str] | None, ...]
"""Of each argument: shape of a row and dtype; None where there is none."""
RECOMPILATIONS = 64
"""Of one component, at most: one row, several rows, and what a compiler takes for another shape."""
UNDISTURBED = 0.9
"""Processor seconds per second, at least, of a process that nobody takes the processor from while it computes."""
HEAVY = 0.02
"""Share of the components' time from which on a component is compiled on a CPU."""


@dataclass(frozen=True)
class Way:
    """One way to run a component on arguments of one signature."""

    name: str
    """`eager`, `compiled` or `graph`."""
    run: Form
    rows: RowTable


@dataclass(frozen=True)
class _Measured:
    """A file of the table of row times."""

    what: Mapping[str, Any]
    seconds: Mapping[str, float]


class Forms(Mapping[Call, Form]):
    """Forms of a recognizer's components.

    Args:
        recognizer: In eval mode, on its device.
        engine: See ENGINES.
        context: What row times depend on beside the call.
        table: Folder of measured row times; None: they are measured each time.

    Attributes:
        ways: What was chosen for each kind of call.
        prepare_s: Seconds spent on compiling and measuring.
        unprepared: Calls that ran as they are because nothing like them occurred while learning.
    """

    def __init__(
        self, recognizer: EfficientRecognizer, engine: str, context: Mapping[str, Any], table: Path | None
    ) -> None:
        self.recognizer, self.engine, self.context, self.table = recognizer, engine, context, table
        self.ways: dict[tuple[Call, Signature], Way] = {}
        self.prepare_s, self.unprepared = 0.0, 0
        self._parts = components(type(recognizer))
        self._forms: dict[Call, Form] = {}
        self._noted: dict[tuple[Call, Signature], Args] | None = None
        self._compiled: dict[tuple[Call, Signature], Form | None] = {}

    def __getitem__(self, call: Call) -> Form:
        if call not in self._forms:
            if not self._parts[call.attribute].fast:
                raise KeyError(call)
            self._forms[call] = partial(self._run, call)
        return self._forms[call]

    def __iter__(self) -> Iterator[Call]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """What runs in this block is prepared for at its end; in the block components run as they are."""
        self._noted = {}
        try:
            yield
            noted, self._noted = self._noted, None
            began = time.perf_counter()
            with torch.inference_mode():
                self._prepare(noted)
            self.prepare_s += time.perf_counter() - began
        finally:
            self._noted = None

    def told(self) -> dict[str, dict[str, Any]]:
        """What was chosen, for records: kind of call -> way, and milliseconds of a call by rows."""
        return {
            _label(call, signature): {
                "component": self._parts[call.attribute].name,
                "way": way.name,
                "milliseconds": {str(n): 1e3 * seconds for n, seconds in way.rows.seconds.items()},
            }
            for (call, signature), way in self.ways.items()
        }

    def compiled(self) -> set[str]:
        """Names of the components that never run as they are."""
        eager = {self._parts[call.attribute].name for (call, _), way in self.ways.items() if way.name == "eager"}
        plain = {part.name for part in self._parts.values() if not part.fast}
        return {self._parts[call.attribute].name for call, _ in self.ways} - eager - plain

    def _run(self, call: Call, *args: Tensor | None) -> Any:
        signature = tuple(None if arg is None else (tuple(arg.shape[1:]), str(arg.dtype)) for arg in args)
        rows = _rows(args)
        if self._noted is not None:
            known = self._noted.get((call, signature))
            if known is None or _rows(known) < rows:
                self._noted[call, signature] = args
            return self._eager(call)(*args)
        way = self.ways.get((call, signature))
        if way is None:
            self.unprepared += 1
            return self._eager(call)(*args)
        return divided(way.run, args, way.rows.calls(rows), exact=way.rows.exact)

    def _eager(self, call: Call) -> Form:
        return partial(self._parts[call.attribute].function, self.recognizer, **dict(call.keywords))

    def _prepare(self, noted: Mapping[tuple[Call, Signature], Args]) -> None:
        fresh = {kind: args for kind, args in noted.items() if not self._prepared(kind, _rows(args))}
        eager = {kind: self._way("eager", self._eager(kind[0]), kind, args) for kind, args in fresh.items()}
        whole = sum(way.rows.cost(_rows(fresh[kind])) for kind, way in eager.items())
        for kind, args in fresh.items():
            found = [eager[kind]]
            heavy = found[0].rows.cost(_rows(args)) >= HEAVY * whole or _on_gpu(args)
            if self.engine != "eager" and heavy and (compiled := self._compiled_once(kind, args)) is not None:
                found.append(self._way("compiled", compiled, kind, args))
            if self.engine == "graphs" and _on_gpu(args):
                found.append(self._way("graph", _Captured(_fastest(found, args).run), kind, args))
            self.ways[kind] = _fastest(found, args)

    def _compiled_once(self, kind: tuple[Call, Signature], args: Args) -> Form | None:
        """None where torch cannot compile it as a whole."""
        if kind not in self._compiled:
            call, _ = kind
            function = self._parts[call.attribute].function  # its own code, so its own cache of compiled variants
            self._compiled[kind] = _compiled(function, self.recognizer, dict(call.keywords), args)
        return self._compiled[kind]

    def _prepared(self, kind: tuple[Call, Signature], rows: int) -> bool:
        """Whether times are known up to so many rows."""
        return kind in self.ways and max(self.ways[kind].rows.seconds) >= min(rows, SIZES[-1])

    def _way(self, name: str, run: Form, kind: tuple[Call, Signature], args: Args) -> Way:
        """With the seconds of a call by rows, out of the table where they are known, else measured.

        They are put there unless others had the processor meanwhile: a table lasts.
        """
        sizes = [n for n in SIZES if n < 2 * _rows(args)]
        what = {**self.context, "method": type(self.recognizer).__name__, "way": name, "call": _label(*kind)}
        file = None if self.table is None else self.table / f"{digest(what)}.json"
        seconds: dict[int, float] = {}
        if file is not None and file.is_file():
            seconds = {int(n): float(s) for n, s in read_json(file, _Measured)["seconds"].items()}
        missing = [n for n in sizes if n not in seconds]
        for n in sizes if name != "eager" else ():
            if n not in missing:
                run(*filled(args, n))  # compiles, captures; what is missing is run by being measured
        if missing:
            began, computed = time.perf_counter(), time.process_time()
            seconds |= measured(lambda n: run(*filled(args, n)), missing, partial(_clock, args))
            own = (time.process_time() - computed) / (time.perf_counter() - began)
            if file is not None and own >= UNDISTURBED:
                write_json(file, {"what": what, "seconds": {str(n): s for n, s in seconds.items()}})
        return Way(name, run, RowTable({n: seconds[n] for n in sizes}, exact=name != "eager"))


@contextlib.contextmanager
def engaged(
    recognizer: EfficientRecognizer,
    engine: str = "eager",
    *,
    context: Mapping[str, Any],
    table: Path | None = None,
) -> Iterator[Forms]:
    """Give the components of `recognizer`, which is in eval mode on its device, their forms until the end of the block.

    Args:
        engine: See ENGINES.
        context: What row times depend on beside the call: machine, device, dtype, memory format, threads.
        table: Folder of measured row times; None: they are measured each time.

    Raises:
        UsageError: `engine` is unknown.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    forms = Forms(recognizer, engine, {**context, "engine": engine, "torch": torch.__version__}, table)
    before, recognizer.forms = recognizer.forms, forms
    try:
        with _compiler(engine):
            yield forms
    finally:
        recognizer.forms = before


def divided(run: Form, args: Args, calls: tuple[int, ...], *, exact: bool = False) -> Any:
    """`run` on consecutive rows of `args`, so many a call; what it returns for each is put together again.

    Args:
        exact: Each call gets exactly that many rows, the last one filled up.
    """
    rows = _rows(args)
    if calls == (rows,):
        return run(*args)
    parts, start = [], 0
    for number in calls:
        part = tuple(None if arg is None else arg[start : start + number] for arg in args)
        there = min(number, rows - start)
        found = run(*filled(part, number)) if exact and there < number else run(*part)
        parts.append(tree_map(lambda x, n=there: x[:n], found) if exact and there < number else found)
        start += number
    return parts[0] if len(parts) == 1 else tree_map(lambda *x: torch.cat(x), *parts)


def filled(args: Args, rows: int) -> Args:
    """Arguments with that many rows: the first ones, repeated where there are fewer."""

    def fill(arg: Tensor) -> Tensor:
        return arg[:rows] if rows <= len(arg) else torch.cat([arg] * -(-rows // len(arg)))[:rows]

    return tuple(None if arg is None else fill(arg) for arg in args)


def _compiled(
    function: Callable[..., Any], recognizer: EfficientRecognizer, keywords: Mapping[str, Any], args: Args
) -> Form | None:
    """A compiled form for any number of rows; None where torch cannot compile it as a whole."""
    compiled = torch.compile(function, fullgraph=True)

    def call(*args: Tensor | None) -> Any:
        for arg in args:
            if arg is not None and len(arg) > 1:  # one row is a shape of its own to the compiler
                torch._dynamo.maybe_mark_dynamic(arg, 0)
        return compiled(recognizer, *args, **keywords)

    try:
        call(*args)
    except torch._dynamo.exc.TorchDynamoException:
        return None
    return call


class _Captured:
    """CUDA graphs of a component, one for each number of rows; inputs are copied in, outputs out."""

    def __init__(self, run: Form) -> None:
        self.run = run
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Args, Any]] = {}

    def __call__(self, *args: Tensor | None) -> Any:
        if _rows(args) not in self.graphs:
            self.graphs[_rows(args)] = self._capture(args)
        graph, inputs, outputs = self.graphs[_rows(args)]
        for inside, arg in zip(inputs, args, strict=True):
            if inside is not None and arg is not None:
                inside.copy_(arg)
        graph.replay()
        return tree_map(torch.clone, outputs)

    def _capture(self, args: Args) -> tuple[torch.cuda.CUDAGraph, Args, Any]:
        inputs = tuple(None if arg is None else arg.clone() for arg in args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their algorithms before the capture
            for _ in range(3):
                self.run(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.run(*inputs)
        return graph, inputs, outputs


@contextlib.contextmanager
def _compiler(engine: str) -> Iterator[None]:
    """The compiler's settings for frozen weights."""
    if engine == "eager":
        yield
        return
    import torch._inductor.config as inductor

    with (
        inductor.patch(freezing=True),
        torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS, allow_rnn=True),
    ):
        yield


def _fastest(ways: list[Way], args: Args) -> Way:
    return min(ways, key=lambda way: way.rows.cost(_rows(args)))


def _rows(args: Args) -> int:
    assert args[0] is not None
    return len(args[0])


def _on_gpu(args: Args) -> bool:
    assert args[0] is not None
    return args[0].device.type == "cuda"


def _clock(args: Args) -> float:
    if _on_gpu(args):
        torch.cuda.synchronize()
    return time.perf_counter()


def _label(call: Call, signature: Signature) -> str:
    """`look(path=0) 3x224x224 uint8, 2 float32`."""
    keywords = ", ".join(f"{name}={value}" for name, value in call.keywords)
    shapes = ", ".join(
        "-" if part is None else f"{'x'.join(map(str, part[0]))} {part[1].removeprefix('torch.')}" for part in signature
    )
    return f"{call.attribute}({keywords}) {shapes}"
