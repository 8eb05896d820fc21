"""AdaFocus V1: evaluation, with the logits at every step and the cells that the policy chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adafocus.parity import catch, load, places, to_numpy
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
    handle = catch(seen, "states", model.classifier.gru)
    clip = torch.from_numpy(case.clip(model.frames, model.resolution))
    with torch.inference_mode():
        trace = Trace(len(clip), details=True)
        logits = model.infer({"frames": clip}, trace=trace)
        step_logits = model.classifier.classify(seen["states"][0])
    handle.remove()
    rows, columns = (places(trace, model.frames) * (model.grid - 1)).round().long().unbind(-1)
    return to_numpy({"logits": logits, "step_logits": step_logits, "cells": rows * model.grid + columns})
