"""AdaFocus V2's released checkpoints, and replays of its recorded pairs: evaluation and one training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus.authors.layout import (
    converted,
    count_heads,
    family_state,
    mobilenet,
    networks_on_tsn,
    place,
    resnet,
    substitute,
    under,
)
from adafocus.authors.replay import (
    FRAME_LOSSES,
    after_backward,
    catch,
    given_input,
    is_method,
    load,
    ready_to_train,
    renamed,
    to_numpy,
)
from adafocus.v2 import AdaFocusV2
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.contract.trace import Trace

_MODULES = {
    "global_CNN": ["glance"],
    "global_CNN_fc": ["glance_head"],
    "local_CNN": ["focus"],
    "local_CNN_fc": ["focus_head"],
    "policy_stn": ["policy"],
    "classifier": ["classifier"],
}
"""The authors' module names and ours."""


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict out of the authors' checkpoint; None for other methods' files.

    `patch_size` stands in no tensor; it must be given where it is not 128. Videos leave by the largest raw
    logit, the authors' criterion. Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    state = family_state(content)
    if "policy_stn.gru.weight_ih_l0" not in state:
        return None
    mobile = any(key.startswith("global_CNN.features.") for key in state)
    placed = place(
        state,
        [
            *networks_on_tsn(mobilenet("glance.", state, "global_CNN.") if mobile else resnet("glance.")),
            ("policy_stn.fc.0.", under("policy.fc.")),
            ("policy_stn.", under("policy.")),
            ("classifier.mlp.layers.", under("classifier.embed.")),
            ("classifier.classifiers.", substitute(r"^(\d+)\.1\.", r"classifier.heads.\1.")),
        ],
    )
    found = placed.state
    told = {
        "num_classes": found["classifier.heads.0.weight"].shape[0],
        "frames": count_heads(found, "classifier"),
        "glance": "mobilenet_v2" if mobile else "resnet50",
        "glance_side": None if mobile else 96,
        "focus": "resnet50",
        "policy_channels": found["policy.encoder.0.weight"].shape[0],
        "policy_hidden": found["policy.gru.weight_hh_l0"].shape[1],
        "classifier_hidden": found["classifier.embed.0.weight"].shape[0],
        "exit_score": "logit",
    }
    return converted("adafocus-v2", placed, told=told, assumed={"patch_size": 128}, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """What our V2 computes for `case`, by the pair's names; None for other methods' pairs."""
    if not is_method(case, "AdaFocus V2"):
        return None
    model = load(AdaFocusV2, from_official, case)
    clip = torch.from_numpy(case.clip(model.frames, model.resolution))
    return _training_step(ready_to_train(model), clip, case) if case.training else _evaluation(model, clip)


def _evaluation(model: AdaFocusV2, clip_BT3HW: Tensor) -> dict[str, np.ndarray]:
    """One forward with all heads; what each part returned is caught by hooks."""
    seen: dict[str, Tensor] = {}
    steps = [f"step {k}" for k in range(model.frames)]
    parts = {"global": model.glance_head, "local": model.focus_head, "policy": model.policy}
    parts |= dict(zip(steps, model.classifier.heads, strict=True))
    handles = [catch(seen, name, part) for name, part in parts.items()]
    clips = {"frames": torch.empty_like(clip_BT3HW)}
    clips["frames"][:, model.order] = clip_BT3HW  # the pair's frames are in processing order already
    batch = len(clip_BT3HW)
    with torch.inference_mode():
        logits = model.infer(clips, trace=Trace(batch, training_parts=True))
    for handle in handles:
        handle.remove()
    outputs = {
        "step_logits": torch.stack([seen[name].reshape(batch, -1) for name in steps], dim=1),
        "logits": logits,
        "global_logits": seen["global"].unflatten(0, (batch, -1)),
        "local_logits": seen["local"].unflatten(0, (batch, -1)),
        "actions": seen["policy"][0],
    }
    return to_numpy(outputs)


def _training_step(model: AdaFocusV2, clip_BT3HW: Tensor, case: ParityCase) -> dict[str, np.ndarray]:
    losses = model.losses(clip_BT3HW.double(), given_input(case, "labels"), given_input(case, "random_actions"))
    outputs = after_backward(model, torch.stack(list(losses.values())).sum(), _MODULES)
    bias = {"grad_policy_fc_bias": model.policy.fc.bias.grad}
    return to_numpy({**outputs, **renamed(losses, FRAME_LOSSES), **bias})
