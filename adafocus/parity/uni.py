"""Uni-AdaFocus on TSN-like networks: evaluation with all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from adafocus.parity import catch, load, to_numpy
from harness.parity import ParityCase
from harness.trace import Trace

if TYPE_CHECKING:
    from adafocus.uni import UniAdaFocus

_METHOD = "Uni-AdaFocus"


def uni_outputs(cls: type[UniAdaFocus], case: ParityCase) -> dict[str, np.ndarray] | None:
    """What our Uni-AdaFocus computes for `case`, by the pair's names.

    None if the pair is another method's or a training step.
    """
    if case.spec.get("method") != _METHOD or case.training:
        return None
    model = load(cls, case)
    clip_BT3HW = torch.from_numpy(case.clip(model.candidates, model.resolution))
    batch = len(clip_BT3HW)
    seen: dict[str, torch.Tensor] = {}
    parts: dict[str, nn.Module] = {"global": model.glance_head, "local": model.focus_head}
    parts |= {"actions": model.spatial_policy, "weights": model.temporal_policy}
    steps = [f"step {k}" for k in range(model.glance_frames + model.frames)]
    parts |= dict(zip(steps, [*model.glance_classifier.heads, *model.classifier.heads], strict=True))
    handles = [catch(seen, name, part) for name, part in parts.items()]
    trace = Trace(batch, details=True, training_parts=True)
    with torch.inference_mode():
        logits = model.infer(model.as_clips(clip_BT3HW), trace=trace)
    for handle in handles:
        handle.remove()
    outputs = {
        "step_logits": torch.stack([seen[name].reshape(batch, -1) for name in steps], dim=1),
        "logits": logits,
        "global_logits": seen["global"].reshape(batch, model.glance_frames, -1),
        "local_logits": seen["local"].reshape(batch, model.frames, -1),
        "frame_weights": seen["weights"],
        "actions": seen["actions"],
        "frame_indices": torch.tensor([[box[1] for box in trace.boxes if box[0] == video] for video in range(batch)]),
    }
    return to_numpy(outputs)
