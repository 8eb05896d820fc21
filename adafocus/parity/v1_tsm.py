"""AdaFocus V1 on TSM: evaluation, with the batch's own statistics in the policy, as the authors' code runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from adafocus.parity import load, places, to_numpy, two_clips
from harness.parity import ParityCase
from harness.trace import Trace

if TYPE_CHECKING:
    from adafocus.v1_tsm import AdaFocusV1TSM

_METHOD = "AdaFocus V1 + TSM"


def v1_tsm_outputs(cls: type[AdaFocusV1TSM], case: ParityCase) -> dict[str, np.ndarray] | None:
    """What our V1-TSM computes for `case`, by the pair's names; None if it is another method's or a training step."""
    if case.spec.get("method") != _METHOD or case.training:
        return None
    glance, focus = two_clips(case)
    model = load(cls, case, focus_frames=focus.shape[1], policy_statistics="batch")
    trace = Trace(len(glance), details=True)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "focus": focus}, trace=trace)
    return to_numpy({"logits": logits, "actions": places(trace, focus.shape[1])[:, 0]})
