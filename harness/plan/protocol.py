"""The evaluation protocol: everything that must be equal before two numbers may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from harness.contract.groups import Positive, Rate, Share, check_fields
from harness.errors import UsageError

VERSION = 1
"""Raised when the meaning of a protocol setting changes; part of every key."""

TIME_BUDGETS = ("budget_unit", "budget_batch")
"""Settings that only evaluations with budgets in milliseconds depend on."""
Split = Literal["train", "calib", "val", "test"]
"""What every opened data set has."""


@dataclass(frozen=True)
class Protocol:
    """Settings shared by all methods of a comparison; stored in every record."""

    train_split: Split = "train"
    calib_split: Split = "calib"
    """Thresholds come from here only: a fixed 10 % of train where the dataset has no such list."""
    test_split: Split = "test"
    pipeline: Literal["harness", "authors"] = "harness"
    """How stored frames become crops: the shorter side resized first, by OpenCV, or as the methods' authors do it,
    training crops from frames as they are stored and PIL's bilinear filter (docs/data.md#crops)."""
    views: Literal["centre", "three-crop"] = "centre"
    selection: Literal["last", "best-val"] = "last"
    """Which checkpoint of a stage is kept: the last epoch's, or the best on `val`; never on test."""
    initialisation: Literal["auto", "pretrained", "scratch"] = "auto"
    """`auto`: the card's pre-training (stills of the embedded sets, ImageNet files of --weights-dir for
    real-size networks), from scratch where the card has none; the record says which it was."""
    epoch_scale: Rate = 1.0
    """Every stage's epochs are multiplied by this (at least one epoch is trained)."""
    test_randomness: Literal["deterministic", "sampled"] = "deterministic"
    """`sampled`: methods that draw their decisions at test time draw them, from a seeded generator."""
    test_seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Training autocast; evaluation is float32."""
    threads: Annotated[int, Ge(1), Le(1024)] = 1
    """Torch threads per process: results are equal to the last digit only for the same number."""
    budgets: tuple[Share, ...] = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75)
    """Shares of the full cost for which exits are calibrated."""
    budget_unit: Literal["gflops", "ms"] = "gflops"
    """What budgets are shares of: multiply-accumulates, or time as it was measured on this machine; then exits and
    thresholds are chosen together, and the evaluation belongs to the machine."""
    budget_batch: Positive = 1
    """Videos in a batch when time is measured for `budget_unit=ms`."""
    limit: Annotated[int, Ge(1)] | None = None
    """Use only the first N videos of every split (for trying things out; shown in the report)."""
    eval_batch: Positive = 16

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        if self.test_split == self.train_split:
            raise UsageError("the test split must not be the training split")
        if self.selection == "best-val" and self.test_split == "val":
            raise UsageError("best-val selection on the split that is tested would select on test")
        if self.budget_unit == "gflops" and self.budget_batch != 1:
            raise UsageError(
                f"protocol.budget_batch={self.budget_batch} goes with protocol.budget_unit=ms; "
                "multiply-accumulates of a video are the same in every batch"
            )
        names = [f"{budget:.2f}" for budget in self.budgets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            told = f"{', '.join(twice)} twice; operating points go by two decimals, as in exit@{twice[0]}"
            raise UsageError(f"protocol.budgets={self.budgets}: {told}")


def split_roles(protocol: Protocol) -> dict[str, str]:
    """Role -> split, for `VideoSet.refuse_overlap`; `val` only where checkpoints are selected on it."""
    roles: dict[str, str] = {"train": protocol.train_split, "calib": protocol.calib_split, "test": protocol.test_split}
    return roles | ({"val": "val"} if protocol.selection == "best-val" else {})


def budget_label(protocol: Mapping[str, Any]) -> str:
    """What to add to a method's name where a record's budgets are times: ` (ms)`, ` (ms, batch 16)`."""
    if protocol.get("budget_unit", "gflops") == "gflops":
        return ""
    return " (ms)" if protocol["budget_batch"] == 1 else f" (ms, batch {protocol['budget_batch']})"
