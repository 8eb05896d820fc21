"""AdaFocus V2-TSM's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus.authors.layout import converted, family_state, networks_on_tsm, place, under
from adafocus.authors.replay import (
    CLIP_LOSSES,
    after_backward,
    catch,
    given_input,
    is_method,
    load,
    ready_to_train,
    renamed,
    to_numpy,
    two_clips,
)
from adafocus.settings import FULL_SIZE
from adafocus.v2_tsm import AdaFocusV2TSM
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.contract.trace import Trace


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict out of the authors' checkpoint; None for other methods' files.

    `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 128 and 12.
    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    state = family_state(content)
    if "policy_stn.10.weight" not in state or "global_CNN.new_new_fc.weight" not in state:
        return None
    placed = place(
        state,
        [
            *networks_on_tsm(state),
            ("policy_stn.", under("policy.layers.")),
        ],
    )
    convolution = placed.state["policy.layers.0.weight"]
    told = {
        "num_classes": placed.state["glance.head.weight"].shape[0],
        "frames": convolution.shape[1] // placed.state["glance.head.weight"].shape[1],
        **FULL_SIZE,
        "policy_channels": convolution.shape[0],
        "policy_hidden": placed.state["policy.layers.4.weight"].shape[0],
    }
    assumed = {"focus_frames": 12, "patch_size": 128}
    return converted("adafocus-v2-tsm", placed, told=told, assumed=assumed, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """One evaluation forward or one training step; None for other pairs."""
    if not is_method(case, "AdaFocus V2 + TSM"):
        return None
    glance, focus = two_clips(case)
    model = load(AdaFocusV2TSM, from_official, case, focus_frames=focus.shape[1])
    if case.training:
        return _training_step(ready_to_train(model), glance.double(), focus.double(), case)
    seen: dict[str, Tensor] = {}
    handle = catch(seen, "actions", model.policy)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "focus": focus}, trace=Trace(len(glance)))
    handle.remove()
    return to_numpy({"logits": logits, "actions": seen["actions"]})


def _training_step(
    model: AdaFocusV2TSM, glance: torch.Tensor, focus: torch.Tensor, case: ParityCase
) -> dict[str, np.ndarray]:
    losses = model.losses(glance, focus, given_input(case, "labels"), given_input(case, "random_actions"))
    modules = {"global_CNN": ["glance"], "local_CNN": ["focus"], "policy_stn": ["policy"]}
    outputs = after_backward(model, torch.stack(list(losses.values())).sum(), modules)
    return to_numpy({**outputs, **renamed(losses, CLIP_LOSSES)})
