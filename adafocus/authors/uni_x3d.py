"""Uni-AdaFocus-X3D's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as replaced
from typing import Any

import numpy as np

from adafocus.authors.layout import converted, family_state, place, under, uni_policies, uni_policy_widths
from adafocus.authors.uni_clip import replay
from adafocus.uni_x3d import UniAdaFocusX3D
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.layers.x3d import from_slowfast

_MODULES = {
    "global_CNN": ["glance.backbone", "glance.head"],
    "global_CNN_head": ["glance.aux_head"],
    "local_CNN": ["focus.backbone", "focus.head"],
    "local_CNN_head": ["focus.aux_head"],
    "aux_head": ["spatial_head"],
    "spatial_policy": ["spatial_policy"],
    "temporal_policy": ["temporal_policy"],
}
"""The authors' module names and ours."""


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict out of the authors' checkpoint; None for other methods' files.

    `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 128 and 32.
    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    state = family_state(content)
    if "global_CNN.s1.pathway0_stem.conv_xy.weight" not in state:
        return None
    placed = place(
        state,
        [
            ("global_CNN.head.lin_5.", under("glance.head.0.")),
            ("global_CNN.head.projection.", under("glance.head.3.")),
            ("local_CNN.head.lin_5.", under("focus.head.0.")),
            ("local_CNN.head.projection.", under("focus.head.3.")),
            ("global_CNN_head.", under("glance.aux_head.")),
            ("local_CNN_head.", under("focus.aux_head.")),
            ("global_CNN.", lambda rest: _slowfast("glance", rest)),
            ("local_CNN.", lambda rest: _slowfast("focus", rest)),
            *uni_policies("aux_head.0."),
        ],
    )
    linear = {f"{net}.head.0.weight" for net in ("glance", "focus")}  # 1x1x1 convolutions in the file
    found = {name: value.flatten(1) if name in linear else value for name, value in placed.state.items()}
    last = found["spatial_policy.encoder.9.weight"]
    told = {
        "num_classes": found["glance.head.3.weight"].shape[0],
        "frames": last.shape[2],
        "glance": "x3d_s",
        "glance_side": 32 * last.shape[-1],
        "focus": "x3d_l",
        "head_hidden": found["glance.head.0.weight"].shape[0],
        **uni_policy_widths(found),
        "exit_score": "logit",
    }
    placed, assumed = replaced(placed, state=found), {"focus_frames": 32, "patch_size": 128}
    return converted("uni-adafocus-x3d", placed, told=told, assumed=assumed, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """One evaluation forward or one training step; None for other pairs."""
    return replay(UniAdaFocusX3D, from_official, case, "Uni-AdaFocus + X3D", _MODULES)


def _slowfast(net: str, rest: str) -> str:
    name = from_slowfast(rest)
    return f"{net}.backbone.{name}" if name else ""
