"""A forward that cannot hide work: counted, watched, and compared with what torch's profiler saw.

    done = audited(recognizer, clips, settings)         # logits, trace and count of one and the same execution
    repeat(recognizer, clips, settings, done)           # the same once more as it is timed: no meter, other witness

What is refused, and what cannot be seen: docs/measurement.md#what-the-audit-refuses.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.nn.modules.module import register_module_forward_pre_hook

from harness.contract.declarations import EMPTY
from harness.contract.trace import EventKey, Trace
from harness.errors import BenchError
from harness.measure.counter import MacMeter, Shapes, counted_operators, declarable, product

HOST_VALUES = 4096
"""Values per video that may leave torch in one forward (numpy, lists, single numbers): decisions, not activations."""
DOORS = ("numpy", "tolist", "data_ptr", "__dlpack__")
"""Methods of a tensor through which its values reach code whose work no operator shows."""
STARTED = {
    "_thread.start_new_thread": "a thread",
    "_thread.start_joinable_thread": "a thread",
    "subprocess.Popen": "a process",
    "os.exec": "a process",
    "os.fork": "a process",
    "os.forkpty": "a process",
    "os.posix_spawn": "a process",
    "os.spawn": "a process",
    "os.startfile": "a process",
    "os.system": "a process",
}
"""Python's audit events of work that would go on elsewhere (threads: from Python 3.12 on)."""
TOLERANCE = 1e-3
"""Largest difference, absolute and relative, between logits with and without a meter."""

Observe = Callable[[EventKey], AbstractContextManager[object]]


@dataclass
class Audited:
    """One forward of `infer` under the audit."""

    logits: Tensor
    """(B, C) float32, on the host."""
    trace: Trace
    macs: float
    """All that ran, inside components or not (nothing may run outside)."""
    products: Mapping[tuple[str, Shapes], float] = field(repr=False)
    """What was counted, see `harness.measure.counter.product`."""
    declared: frozenset[str]
    """Custom operators whose cost the method declared."""
    host_values: int
    """Values that left torch."""


def audited(
    recognizer: Any,
    clips: Mapping[str, Tensor],
    point: Mapping[str, Any] = EMPTY,
    *,
    generator: torch.Generator | None = None,
    details: bool = False,
    training_parts: bool = False,
    observe: Observe | None = None,
) -> Audited:
    """Run `infer` on one batch, all of it inside the audit; the recognizer is in eval mode, clips on its device.

    Raises:
        BenchError: Work ran outside components, in another thread or process, through numpy, through an operator
            without a formula; or the trace does not tell of all that ran.
    """
    name, videos = type(recognizer).__name__, len(next(iter(clips.values())))
    audit = _Audit(recognizer, videos, observe)
    trace = Trace(videos, meter=audit, observe=audit.event, details=details, training_parts=training_parts)
    with torch.inference_mode(), audit:
        logits = recognizer.infer(clips, point, trace=trace, generator=generator).float().cpu()
    if audit.unsupported:
        custom = [operator for operator in audit.unsupported if declarable(operator)]
        remedy = (
            "harness.measure.counter.declare gives custom operators a formula"
            if custom
            else "torch's own operators take no formula from a method; use convolutions, linear layers, matrix products"
        )
        names = ", ".join(sorted(custom or audit.unsupported))
        raise BenchError(f"{name}.infer runs {names}, whose cost is unknown; {remedy}")
    told = sum(macs for measured in trace.macs.values() for macs, _ in measured)
    if not math.isclose(told, audit.total, rel_tol=1e-9):
        raise BenchError(
            f"{name}.infer ran {audit.total:.0f} MACs, its components tell of {told:.0f}; give every "
            "component rows, and their videos where these do not share them equally"
        )
    return Audited(logits, trace, audit.total, audit.products, frozenset(audit.declared), audit.host_values)


def repeat(
    recognizer: Any,
    clips: Mapping[str, Tensor],
    point: Mapping[str, Any],
    done: Audited,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Run a batch again as it is timed, without a meter, and compare logits, decisions and products.

    The products are those that torch's profiler sees in any thread. `generator` is as it was before `done`.

    Raises:
        BenchError: Something differs: the method does other work when it is counted, or somewhere else.
    """
    name, trace = type(recognizer).__name__, Trace(done.trace.videos)
    found: list[Tensor] = []

    def forward() -> None:
        with torch.inference_mode():
            found.append(recognizer.infer(clips, point, trace=trace, generator=generator).float().cpu())

    seen = products(forward)
    if seen != done.products:
        more, less = _beyond(seen, done.products), _beyond(done.products, seen)
        raise BenchError(
            f"{name}.infer does other work without a meter, or in another thread: there ran also {more}, and not {less}"
        )
    if not torch.allclose(found[0], done.logits, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise BenchError(f"{name}.infer gives other logits on the same batch when it is run again without a meter")
    if not _same_counts(trace, done.trace):
        raise BenchError(f"{name}.infer tells of other work on the same batch when it is run again without a meter")


def products(work: Callable[[], object]) -> Mapping[tuple[str, Shapes], float]:
    """Calls of operators that have a formula while `work` runs, as torch's profiler sees them in all threads.

    Kinds and numbers are those of `harness.measure.counter.product`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to stderr that there is no GPU
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True, experimental_config=everywhere) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    names = counted_operators()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() in names]
    events.sort(key=lambda e: (e.start_thread_id(), e.start_ns(), -e.duration_ns()))
    found: defaultdict[tuple[str, Shapes], float] = defaultdict(float)
    thread, until = -1, -1
    for event in events:
        if event.start_thread_id() == thread and event.start_ns() < until:
            continue  # a part of the one before
        thread, until = event.start_thread_id(), event.start_ns() + event.duration_ns()
        shapes = [tuple(shape) for shape in event.shapes() if not (shape and isinstance(shape[0], list))]
        kind, number = product(event.name(), shapes)
        found[kind] += number
    return found


class _Audit(MacMeter):
    """A meter that knows where work belongs, and refuses what it could not count."""

    def __init__(self, recognizer: Any, videos: int, observe: Observe | None) -> None:
        super().__init__()
        self.host_values = 0
        self._thread = threading.get_ident()
        self._name, self._videos, self._observe = type(recognizer).__name__, videos, observe
        self._event: EventKey | None = None
        self._refusal: BenchError | None = None
        self._weights = {_storage(parameter): name for name, parameter in recognizer.named_parameters()}
        self._weights.pop(None, None)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        global _active
        _listen_for_good()
        _active = self
        hook = register_module_forward_pre_hook(self._entered)
        self._stack.callback(hook.remove)
        for door in DOORS:
            self._stack.enter_context(_before(Tensor, door, lambda tensor: self.leaves(tensor.numel())))
        self._stack.enter_context(_before(threading.Thread, "start", lambda _: self.starts("a thread")))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        _active = None
        self._stack.close()
        super().__exit__(kind, error, trace)
        if self._refusal is not None and error is not self._refusal:
            raise self._refusal from error  # the method has swallowed it, or it was raised in another thread

    @contextmanager
    def event(self, key: EventKey) -> Iterator[None]:
        """Work in this block belongs to `key`."""
        self._event = key
        try:
            with self._observe(key) if self._observe is not None else nullcontext():
                yield
        finally:
            self._event = None

    def add(self, name: str, macs: float) -> None:
        super().add(name, macs)
        if self._event is None and macs:
            self._outside(f"{name} ({macs:.0f} MACs)")

    def saw(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.leaves(1)
        if self._event is None:
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(tensor, Tensor) and (weight := self._weights.get(_storage(tensor))) is not None:
                        self._outside(f"{func._overloadpacket.__name__} on the parameter {weight}")

    def leaves(self, values: int) -> None:
        """So many values go where no operator shows what is done with them; a declared operator's formula covers it."""
        if self.believed:
            return
        self.host_values += values
        if self.host_values > HOST_VALUES * self._videos:
            self.refuse(
                f"takes more than {HOST_VALUES} values per video out of torch{_where()}; what is computed there cannot "
                "be counted: compute with torch, take out decisions only"
            )

    def starts(self, what: str) -> None:
        """A thread or a process begins; no matter of ours where another thread or a declared operator starts it."""
        if not self.believed and threading.get_ident() == self._thread:
            self.refuse(f"starts {what}, where nothing is counted{_where()}")

    def refuse(self, what: str) -> None:
        """Raise, and again at the end should it not arrive."""
        error = BenchError(f"{self._name}.infer {what}")
        self._refusal = self._refusal or error
        raise error

    def _outside(self, what: str) -> None:
        self.refuse(f"runs {what} outside components{_where()}; put all such work into methods that are a @component")

    def _entered(self, module: nn.Module, _: Any) -> None:
        if all(parameter is None for parameter in module._parameters.values()):
            return
        if threading.get_ident() != self._thread:
            self.refuse(f"runs {type(module).__name__} in another thread, where nothing is counted{_where()}")
        if self._event is None:
            self._outside(type(module).__name__)


_active: _Audit | None = None


@cache
def _listen_for_good() -> None:
    """Python's audit hooks cannot be taken away; this one does nothing outside of an audit."""

    def listen(event: str, _: tuple[Any, ...]) -> None:
        if _active is not None and event in STARTED:
            _active.starts(STARTED[event])

    sys.addaudithook(listen)


@contextmanager
def _before(owner: type, name: str, watch: Callable[[Any], None]) -> Iterator[None]:
    """Call `watch` with the object before each call of the method `name` of `owner`."""
    original, own = getattr(owner, name), name in vars(owner)

    @wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch(self)
        return original(self, *args, **kwargs)

    setattr(owner, name, watched)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def _storage(tensor: Tensor) -> int | None:
    """Where a tensor's memory begins; None where it has none."""
    if tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr() or None


_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<", os.__file__.removesuffix("os.py"))


def _where() -> str:
    """` (file:line)` of the method's code that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _beyond(one: Mapping[tuple[str, Shapes], float], other: Mapping[tuple[str, Shapes], float]) -> str:
    """What `one` holds more of, the first three kinds."""
    more = {kind: number - other.get(kind, 0) for kind, number in one.items() if number > other.get(kind, 0)}
    shown = [f"{number:.0f} {name} {' x '.join(map(str, shapes))}".rstrip() for (name, shapes), number in more.items()]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "") if shown else "nothing"


def _same_counts(one: Trace, other: Trace) -> bool:
    keys = {key for trace in (one, other) for key, counts in trace.counts.items() if counts.any()}
    nothing = np.zeros(one.videos)
    return all(np.array_equal(one.counts.get(key, nothing), other.counts.get(key, nothing)) for key in keys)
