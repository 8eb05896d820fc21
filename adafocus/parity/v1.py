"""AdaFocus V1: evaluation, with the logits at every step and the cells that the policy chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adafocus.parity import catch, load, to_numpy
from harness.parity import ParityCase
from harness.trace import Trace

if TYPE_CHECKING:
    from adafocus.v1 import AdaFocusV1

_METHOD = "AdaFocus V1"


def v1_outputs(cls: type[AdaFocusV1], case: ParityCase) -> dict[str, np.ndarray] | None:
    """What our V1 computes for `case`, by the pair's names; None if it is another method's or a training step."""
    if case.spec.get("method") != _METHOD or case.training:
        return None
    model = load(cls, case, frames=case.spec["frames"])
    seen: dict[str, Tensor] = {}
    parts = {"cells": model.policy.actor, "states": model.classifier.gru}
    handles = [catch(seen, name, part) for name, part in parts.items()]
    clip = torch.from_numpy(case.clip(model.frames, model.resolution))
    with torch.inference_mode():
        logits = model.infer({"frames": clip}, trace=Trace(len(clip)))
        step_logits = model.classifier.classify(seen["states"][0])
    for handle in handles:
        handle.remove()
    return to_numpy({"logits": logits, "step_logits": step_logits, "cells": seen["cells"].argmax(-1)})
