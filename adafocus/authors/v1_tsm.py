"""AdaFocus V1-TSM's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from adafocus.authors.layout import (
    V1_POLICY,
    check_v1_stage,
    converted,
    family_state,
    mobilenet,
    place,
    resnet,
    substitute,
    under,
)
from adafocus.authors.replay import (
    given_input,
    is_method,
    load,
    places,
    ready_to_train,
    set_modes,
    stage_outputs,
    to_numpy,
    two_clips,
)
from adafocus.settings import FULL_SIZE
from adafocus.v1_tsm import AdaFocusV1TSM
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.contract.recognizer import Clips
from harness.contract.trace import Trace


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict out of the authors' checkpoint; None for other methods' files.

    `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 144 and 12.

    Raises:
        CheckpointError: The file is of an earlier stage and has no policy.

    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    check_v1_stage(content)
    state = family_state(content)
    shifted = any(name.startswith("focuser.net.base_model.") for name in state)
    if not shifted or "fc.weight" not in state or "policy.gru.weight_ih_l0" not in state:
        return None
    placed = place(
        state,
        [
            ("glancer.net.classifier.", under("glance.head.")),
            ("glancer.net.", mobilenet("glance.backbone.", state, "glancer.net.")),
            ("focuser.net.base_model.", resnet("focus.backbone.")),
            ("fc.", under("focus.head.")),
            ("policy.", substitute(V1_POLICY, r"policy.\1\2\3.")),
        ],
    )
    convolution, head = placed.state["policy.encoder.0.weight"], placed.state["glance.head.weight"]
    told = {
        "num_classes": head.shape[0],
        "frames": convolution.shape[1] // head.shape[1],
        **FULL_SIZE,
        "policy_channels": convolution.shape[0],
        "policy_hidden": placed.state["policy.gru.weight_hh_l0"].shape[1],
    }
    assumed = {"focus_frames": 12, "patch_size": 144}
    return converted("adafocus-v1-tsm", placed, told=told, assumed=assumed, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """One evaluation forward or a step of each stage; None for other pairs."""
    if not is_method(case, "AdaFocus V1 + TSM"):
        return None
    glance, focus = two_clips(case)
    model = load(AdaFocusV1TSM, from_official, case, focus_frames=focus.shape[1])
    if case.training:
        return _training_steps(ready_to_train(model), {"glance": glance.double(), "focus": focus.double()}, case)
    trace = Trace(len(glance), details=True)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "focus": focus}, trace=trace)
    return to_numpy({"logits": logits, "actions": places(trace, focus.shape[1])[:, 0]})


def _training_steps(model: AdaFocusV1TSM, clips: Clips, case: ParityCase) -> dict[str, np.ndarray]:
    """One step of each stage; those that move running statistics come last."""
    outputs: dict[str, torch.Tensor] = {}
    for phase, random, modules, in_train_mode in (
        ("finetune", None, {"finetune_fc": ["focus.head"]}, ()),
        ("policy", "policy_random", {"policy_policy": ["policy"]}, ("policy",)),
        ("random", "random_actions", {"random_focuser": ["focus.backbone"], "random_fc": ["focus.head"]}, ("focus",)),
    ):
        set_modes(model, in_train_mode)
        places = None if random is None else given_input(case, random)
        drawn = given_input(case, "places")[None]
        losses = model.losses(phase, clips, given_input(case, "labels"), random_B2=places, places_RB2=drawn)
        outputs |= stage_outputs(model, phase, losses, modules)
    return to_numpy(outputs)
