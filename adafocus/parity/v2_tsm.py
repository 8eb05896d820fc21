"""AdaFocus V2 on TSM: evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adafocus.parity import catch, load, to_numpy, two_clips
from harness.parity import ParityCase
from harness.trace import Trace

if TYPE_CHECKING:
    from adafocus.v2_tsm import AdaFocusV2TSM

_METHOD = "AdaFocus V2 + TSM"


def v2_tsm_outputs(cls: type[AdaFocusV2TSM], case: ParityCase) -> dict[str, np.ndarray] | None:
    """What our V2-TSM computes for `case`, by the pair's names; None if it is another method's or a training step."""
    if case.spec.get("method") != _METHOD or case.training:
        return None
    glance, focus = two_clips(case)
    model = load(cls, case, focus_frames=focus.shape[1])
    seen: dict[str, Tensor] = {}
    handle = catch(seen, "actions", model.policy)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "focus": focus}, trace=Trace(len(glance)))
    handle.remove()
    return to_numpy({"logits": logits, "actions": seen["actions"]})
