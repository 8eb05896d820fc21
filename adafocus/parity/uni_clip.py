"""Uni-AdaFocus on TSM and on X3D: one evaluation forward."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from adafocus.parity import catch, load, to_numpy, two_clips
from harness.errors import UsageError
from harness.layers.x3d import X3D
from harness.parity import ParityCase
from harness.trace import Trace

if TYPE_CHECKING:
    from adafocus.uni_clip import UniClip


WITHOUT_SWISH = (
    "compared WITHOUT the Swish behind X3D's depthwise convolutions, which the recorded pair lacks; models that are "
    "trained or converted have it, and what they compute with it is not verified by this pair"
)
"""The remark on pairs with X3D."""


def uni_clip_outputs(cls: type[UniClip], case: ParityCase, method: str) -> dict[str, np.ndarray] | None:
    """What our model computes for `case`, by the pair's names; None if the pair is not of `method` or a training step.

    The frame indices are those that the forward really looked at, out of its trace.
    """
    if case.spec.get("method") != method or case.training:
        return None
    counted = re.search(r"(\d+) focus", case.spec["frames"])
    if counted is None:
        raise UsageError(f"{case.name}: frames {case.spec['frames']!r} does not tell the focus frames")
    model = load(cls, case, focus_frames=int(counted[1]))
    if _drop_swish(model):
        case.remarks.append(WITHOUT_SWISH)
    glance, candidates = two_clips(case)
    seen: dict[str, Tensor] = {}
    handles = [catch(seen, "actions", model.spatial_policy), catch(seen, "weights", model.temporal_policy)]
    trace = Trace(len(glance), details=True)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "candidates": candidates}, trace=trace)
    for handle in handles:
        handle.remove()
    indices = [[step for video, step, *_ in trace.boxes if video == row] for row in range(len(glance))]
    outputs = {"logits": logits, "actions": seen["actions"][:, 0], "frame_weights": seen["weights"]}
    return to_numpy(outputs) | {"frame_indices": np.asarray(indices)}


def _drop_swish(model: nn.Module) -> bool:
    """Take the activation behind X3D's depthwise convolutions out of `model`; whether there was any.

    The authors' networks have it, and so has a converted checkpoint. The pairs were recorded where it did
    nothing: with it `uni_x3d` is missed by 0.15, without it met to rounding; and the operators listed with
    the recorded multiply-accumulates (adafocus.md 12) hold no sigmoids but those of squeeze-and-excitation.
    """
    blocks = [block for network in model.modules() if isinstance(network, X3D) for block in network.blocks()]
    for block in blocks:
        block.swish = nn.Identity()
    return bool(blocks)
