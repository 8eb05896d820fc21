"""The evaluation protocol: everything that must be equal before two numbers may be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from harness.errors import UsageError, unknown

VERSION = 1
"""Raised when the meaning of a protocol setting changes; part of every key."""


@dataclass(frozen=True)
class Protocol:
    """Settings shared by all methods of a comparison; stored in every record."""

    train_split: str = "train"
    calib_split: str = "calib"
    """Thresholds come from here only: a fixed 10 % of train where the dataset has no such list."""
    test_split: str = "test"
    views: Literal["centre", "three-crop"] = "centre"
    selection: Literal["last", "best-val"] = "last"
    """Which checkpoint of a stage is kept: the last epoch's, or the best on `val`; never on test."""
    initialisation: Literal["auto", "pretrained", "scratch"] = "auto"
    """`auto`: the card's pre-training (stills of the embedded sets, ImageNet files of --weights-dir for
    real-size networks), from scratch where the card has none; the record says which it was."""
    epoch_scale: float = 1.0
    """Every stage's epochs are multiplied by this (at least one epoch is trained)."""
    test_randomness: Literal["deterministic", "sampled"] = "deterministic"
    """`sampled`: methods that draw their decisions at test time draw them, from a seeded generator."""
    test_seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Training autocast; evaluation is float32."""
    threads: int = 1
    """Torch threads per process: results are equal to the last digit only for the same number."""
    budgets: tuple[float, ...] = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75)
    """Shares of the full cost for which exits are calibrated."""
    limit: int | None = None
    """Use only the first N videos of every split (for trying things out; shown in the report)."""
    eval_batch: int = 16

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Protocol).items():
            allowed = get_args(hint) if get_origin(hint) is Literal else ()
            if allowed and getattr(self, name) not in allowed:
                raise unknown(f"protocol.{name}", str(getattr(self, name)), allowed)
        if self.test_split == self.train_split:
            raise UsageError("the test split must not be the training split")
        if self.selection == "best-val" and self.test_split == "val":
            raise UsageError("best-val selection on the split that is tested would select on test")
        if not self.epoch_scale > 0:
            raise UsageError(f"epoch_scale must be positive, not {self.epoch_scale}")
        if any(not 0 < b <= 1 for b in self.budgets):
            raise UsageError(f"budgets are shares of the full cost in (0, 1], not {self.budgets}")


def split_roles(protocol: Protocol) -> dict[str, str]:
    """Role -> split, for `VideoSet.refuse_overlap`; `val` only where checkpoints are selected on it."""
    roles = {"train": protocol.train_split, "calib": protocol.calib_split, "test": protocol.test_split}
    return roles | ({"val": "val"} if protocol.selection == "best-val" else {})
