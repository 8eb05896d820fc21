"""Uni-AdaFocus-TSM's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adafocus.authors.layout import (
    converted,
    family_state,
    networks_on_tsm,
    place,
    uni_policies,
    uni_policy_widths,
)
from adafocus.authors.uni_clip import replay
from adafocus.settings import FULL_SIZE
from adafocus.uni_tsm import UniAdaFocusTSM
from harness.authors.official import Converted
from harness.authors.parity import ParityCase

_MODULES = {
    "global_CNN": ["glance"],
    "local_CNN": ["focus"],
    "aux_fc": ["spatial_head"],
    "spatial_policy": ["spatial_policy"],
    "temporal_policy": ["temporal_policy"],
}
"""The authors' module names and ours."""


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict out of the authors' checkpoint; None for other methods' files.

    `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 128 and 12.
    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    state = family_state(content)
    if "spatial_policy.encoder.9.weight" not in state or "global_CNN.new_new_fc.weight" not in state:
        return None
    placed = place(
        state,
        [*networks_on_tsm(state), *uni_policies("aux_fc.")],
    )
    found = placed.state
    told = {
        "num_classes": found["glance.head.weight"].shape[0],
        "frames": found["spatial_policy.encoder.9.weight"].shape[2],
        **FULL_SIZE,
        **uni_policy_widths(found),
        "exit_score": "logit",
    }
    assumed = {"focus_frames": 12, "patch_size": 128}
    return converted("uni-adafocus-tsm", placed, told=told, assumed=assumed, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """One evaluation forward or one training step; None for other pairs."""
    return replay(UniAdaFocusTSM, from_official, case, "Uni-AdaFocus + TSM", _MODULES)
