"""Replays of Uni-AdaFocus's recorded pairs on TSM and on X3D."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from adafocus.authors.replay import Reader, catch, is_evaluation, load, to_numpy, two_clips
from adafocus.uni_clip import UniClip
from harness.authors.parity import ParityCase
from harness.contract.trace import Trace
from harness.errors import UsageError


def replay(
    cls: type[UniClip], from_official: Reader, case: ParityCase, method: str
) -> dict[str, np.ndarray] | None:
    """One evaluation forward; None where the pair is not of `method` or a training step.

    The frame indices are those that the forward really looked at, out of its trace.
    """
    if not is_evaluation(case, method):
        return None
    counted = re.search(r"(\d+) focus", case.spec["frames"])
    if counted is None:
        raise UsageError(f"{case.name}: frames {case.spec['frames']!r} does not tell the focus frames")
    model = load(cls, from_official, case, focus_frames=int(counted[1]))
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
