"""What a forward takes over its components alone: indexing, copies, decisions, the loop over exits.

    found = glue(recognizer, clips, point_settings)     # found.verdict.ratio; 1.0: nothing is lost between components

The component calls of one forward are kept with their arguments and run again one after another, in the forms that the
recognizer has. Forward and calls are timed in turns, so that what the machine does meanwhile falls on both.
Limits, and how the gate is run: docs/measurement.md#glue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from harness.contract.components import Call, Form, components
from harness.contract.declarations import EMPTY
from harness.contract.exits import NEVER
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.measure.gate import Verdict, decide
from harness.measure.latency import Unrecorded, learn, no_garbage_collection, prepared, to_device, wait
from harness.measure.parts import RESOLUTIONS, built, synthetic_clips

LIMITS = {1: 1.10, 16: 1.05}
"""Batch -> the largest ratio that the gate lets pass; in between the one below."""
ROUNDS = 6
"""Samples of each side; the smallest p is then 0.002."""
SAMPLE_S = 0.1
"""Seconds of one sample, at least."""


@dataclass(frozen=True)
class Glue:
    """A forward beside its own components."""

    batch: int
    calls: int
    """Components that one forward calls."""
    forward_s: float
    """Median seconds of a forward."""
    components_s: float
    """The same of its calls alone."""
    limit: float
    verdict: Verdict
    """Forward over calls; broken where that is above the limit, significantly."""


def glue(
    recognizer: EfficientRecognizer,
    clips: Clips,
    point_settings: Mapping[str, Any] = EMPTY,
    *,
    device: str | torch.device = "cpu",
    rounds: int = ROUNDS,
    sample_s: float = SAMPLE_S,
) -> Glue:
    """Time forwards of one batch, and the component calls of such a forward.

    Args:
        recognizer: On `device`, in eval mode.
        clips: A collated batch.
        point_settings: Settings of the operating point.
        device: Where the recognizer is.
        rounds: Samples of each side, five or more.
        sample_s: Seconds of a sample, at least.
    """
    target = torch.device(device)
    batch = to_device(clips, target)
    videos = len(next(iter(batch.values())))

    def forward() -> Tensor:
        return recognizer.infer(batch, point_settings, trace=Unrecorded(videos))

    with torch.inference_mode(), no_garbage_collection():
        forward()
        calls = _calls(recognizer, forward)
        sides: dict[str, Callable[[], object]] = {"forward": forward, "calls": partial(_run, calls)}
        repeats = max(1, math.ceil(sample_s / _seconds(forward, 1, target)))
        samples: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                samples[side].append(_seconds(sides[side], repeats, target))
    limit = LIMITS[max((size for size in LIMITS if size <= videos), default=min(LIMITS))]
    verdict = decide(samples["calls"], samples["forward"], threshold=limit - 1)
    return Glue(videos, len(calls), median(samples["forward"]), median(samples["calls"]), limit, verdict)


def gated(
    methods: Sequence[str],
    *,
    size: str = "paper",
    batches: Sequence[int] = tuple(LIMITS),
    device: str | torch.device = "cpu",
    engine: str = "eager",
    report: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Iterator[tuple[str, Glue]]:
    """The glue of methods with random weights on noise, as latency is timed: of their default points, and of all exits.

    Yields:
        `adafocus-v2`, or `adafocus-v2:exits` where every exit is asked and nobody leaves; and what was found.
    """
    for name in methods:
        recognizer = built(name, size, RESOLUTIONS[size], 10, EMPTY)
        points = {name: dict(recognizer.operating_points()[0].settings)}
        if recognizer.exits:
            points[f"{name}:exits"] = {"thresholds": [NEVER / 2] * recognizer.exits}
        with prepared(recognizer, device=device, engine=engine) as target:
            for case, point in points.items():
                for batch in batches:
                    report(f"timing {case} at batch {batch}")
                    clips = synthetic_clips(recognizer, point, videos=batch)
                    learn(recognizer, [clips], point)
                    yield case, glue(recognizer, clips, point, device=target, **options)


def line(found: Glue) -> str:
    """The glue as a line of text."""
    verdict = found.verdict
    return (
        f"glue: x{verdict.ratio:.3f} [{verdict.low:.3f}, {verdict.high:.3f}] at batch {found.batch}; forward "
        f"{1e3 * found.forward_s:.3f} ms, its {found.calls} component calls alone {1e3 * found.components_s:.3f} ms"
    )


class _Kept(Mapping[Call, Form]):
    """A recognizer's forms, its components' functions where it has none; each call is kept."""

    def __init__(self, recognizer: EfficientRecognizer) -> None:
        self.calls: list[Callable[[], Any]] = []
        self._recognizer, self._forms = recognizer, recognizer.forms
        self._parts = components(type(recognizer))

    def __getitem__(self, call: Call) -> Form:
        form = self._forms.get(call)
        if form is None:
            form = partial(self._parts[call.attribute].function, self._recognizer, **dict(call.keywords))

        def run(*args: Tensor | None) -> Any:
            self.calls.append(partial(form, *args))
            return form(*args)

        return run

    def __iter__(self) -> Iterator[Call]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)


def _calls(recognizer: EfficientRecognizer, forward: Callable[[], object]) -> list[Callable[[], Any]]:
    """The component calls of a forward, each with its arguments."""
    before, kept = recognizer.forms, _Kept(recognizer)
    recognizer.forms = kept
    try:
        forward()
    finally:
        recognizer.forms = before
    return kept.calls


def _run(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one run; the device's work is awaited after each."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
        wait(device)
    return (time.perf_counter() - began) / repeats
