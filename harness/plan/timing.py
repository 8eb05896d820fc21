"""How latencies are measured, and the units of work that follow from a finished evaluation. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.contract.values import plain
from harness.errors import UsageError, unknown
from harness.plan.protocol import Protocol, budget_label
from harness.plan.units import MODES, DataSpec, LatencySpec


@dataclass(frozen=True)
class TimingPlan:
    """What is timed of an evaluation, and how."""

    batches: tuple[int, ...] = (1, 16)
    """Empty: nothing."""
    dtype: str = "float32"
    """Other than float32: the heavy networks' (harness.engine.precision)."""
    engine: str = "eager"
    """How components run, see harness.engine.forms."""
    memory_format: str = "channels_last"
    threads: int = 1
    min_seconds: float = 1.0
    """Spent in timed forwards of each point and batch size, over all launches."""
    launches: int = 3
    """Fresh processes that each time everything once."""
    quiet_wait_s: float = 60.0
    """How long a run waits for a quiet machine, in all; then it times and says so."""
    modes: tuple[str, ...] = ("batch",)
    """What is on the clock, of `harness.plan.units.MODES`."""
    max_wait_s: float = 60.0
    """Age from which on a video of a stream waits no longer for others."""

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise unknown("mode", mode, MODES)
        if any(batch < 1 for batch in self.batches) or self.threads < 1 or self.launches < 1:
            raise UsageError("batch sizes, threads and launches are at least 1")
        if not self.min_seconds >= 0 or not self.quiet_wait_s >= 0 or not self.max_wait_s >= 0:
            raise UsageError("seconds that timings take or wait are 0 or more")

    def specs(
        self,
        evaluation: Mapping[str, Any],
        *,
        data: DataSpec,
        machine: str,
        device: str,
        points: Sequence[str] = (),
    ) -> list[LatencySpec]:
        """Every operating point of an evaluation record (or only `points`) at every batch size, in every mode.

        Raises:
            UsageError: there is no such point, or a stream of several views is asked for.
        """
        if "stream" in self.modes and evaluation["protocol"]["views"] != "centre":
            raise UsageError(
                f"{evaluation['method']['name']} was evaluated with protocol.views={evaluation['protocol']['views']}; "
                "--mode stream times one view of a video, --mode batch all"
            )
        names = [point["name"] for point in evaluation["points"]]
        for point in points:
            if point not in names:
                raise unknown(f"operating point of {evaluation['method']['name']}", point, names)
        options = {"min_seconds": self.min_seconds, "launches": self.launches}
        return [
            LatencySpec(
                evaluation=evaluation["key"],
                method=evaluation["method"]["name"],
                size=evaluation["method"]["size"],
                data=data,
                seed=evaluation["seed"],
                point=point,
                batch=batch,
                machine=machine,
                device=device,
                mode=mode,
                dtype=self.dtype,
                engine=self.engine,
                memory_format=self.memory_format,
                threads=self.threads,
                options=options | ({"max_wait_s": self.max_wait_s} if mode == "stream" else {}),
                quiet_wait_s=self.quiet_wait_s,
                budgets=budget_label(evaluation["protocol"]),
            )
            for point in points or names
            for batch in self.batches
            for mode in self.modes
        ]


@dataclass(frozen=True)
class Clock:
    """Where segments are timed for budgets in milliseconds."""

    machine: str
    """Fingerprint (harness.measure.machine)."""
    device: str
    quiet_wait_s: float
    """How long a quiet machine is waited for."""


def budgeted(protocol: Protocol, exits: int, clock: Clock | None) -> dict[str, Any]:
    """`protocol`, `timed_on` and `quiet_wait_s` of the EvalSpec of a method with so many exits.

    A method without exits has nothing to calibrate: its evaluation is the same for every unit.

    Raises:
        UsageError: budgets are in milliseconds, and there is no clock.
    """
    if protocol.budget_unit == "gflops" or not exits:
        return {"protocol": plain(replace(protocol, budget_unit="gflops", budget_batch=1))}
    if clock is None:
        raise UsageError("protocol.budget_unit=ms needs a clock: say on which machine and device segments are timed")
    where = {"machine": clock.machine, "device": clock.device, "threads": protocol.threads}
    form = {"dtype": "float32", "engine": "eager", "memory_format": "channels_last"}  # as evaluations run
    return {"protocol": plain(protocol), "timed_on": {**where, **form}, "quiet_wait_s": clock.quiet_wait_s}
