"""AdaFocus V1's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus.authors.layout import (
    V1_POLICY,
    check_v1_stage,
    converted,
    family_state,
    place,
    resnet,
    substitute,
    under,
)
from adafocus.authors.replay import (
    catch,
    given_input,
    is_method,
    load,
    places,
    ready_to_train,
    set_modes,
    stage_outputs,
    to_numpy,
)
from adafocus.settings import FULL_SIZE
from adafocus.v1 import AdaFocusV1
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.contract.trace import Trace


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict of `adafocus-v1` out of a file; None for other methods' files.

    The file's entry `policy` is what the authors evaluate. The copies of it inside the focuser, `policy_old`
    among them, are left; `differing` names those that are no copies.

    Args:
        content: What the file holds.
        given: Settings that no tensor tells; they win.

    Raises:
        CheckpointError: The file is of an earlier stage and has no policy.

    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    check_v1_stage(content)
    state = family_state(content)
    if "fc.gru.weight_ih_l0" not in state or "policy.gru.weight_ih_l0" not in state:
        return None
    copies = {name: ours for name in state if (ours := _original(name, state)) is not None}
    placed = place(
        {name: value for name, value in state.items() if name not in copies},
        [
            ("glancer.net.features.", under("glance.blocks.")),
            ("glancer.net.classifier.", under("glance_head.")),
            ("focuser.net.fc.", under("focus_head.")),
            ("focuser.net.", resnet("focus.")),
            ("fc.", under("classifier.")),
            ("policy.", substitute(V1_POLICY, r"policy.\1\2\3.")),
        ],
    )
    found = placed.state
    told = {
        "num_classes": found["classifier.fc.weight"].shape[0],
        **FULL_SIZE,
        "grid": round(found["policy.actor.weight"].shape[0] ** 0.5),
        "policy_channels": found["policy.encoder.0.weight"].shape[0],
        "policy_hidden": found["policy.gru.weight_hh_l0"].shape[1],
        "classifier_hidden": found["classifier.fc.weight"].shape[1],
    }
    whole = converted("adafocus-v1", placed, told=told, assumed={"frames": 16, "patch_size": 128}, given=given)
    return replace(whole, differing=tuple(n for n, ours in copies.items() if _differ(state[n], state[ours])))


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """The logits, those at every step and the cells that the policy chose; or a step of each stage.

    None for other methods' pairs.
    """
    if not is_method(case, "AdaFocus V1"):
        return None
    model = load(AdaFocusV1, from_official, case, frames=case.spec["frames"])
    if case.training:
        return _training_steps(ready_to_train(model), case)
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


def _training_steps(model: AdaFocusV1, case: ParityCase) -> dict[str, np.ndarray]:
    """One step of each stage; the first one moves running statistics, so it comes last."""
    clip = torch.from_numpy(case.clip(model.frames, model.resolution)).double()
    reach = model.resolution - model.patch_size
    outputs: dict[str, Tensor] = {}
    for phase, offsets, modules, in_train_mode in (
        ("finetune", None, {"finetune_fc": ["classifier"]}, ()),
        ("policy", "policy_offsets", {"policy_policy": ["policy"]}, ()),
        ("random", "random_offsets", {"random_focuser": ["focus"], "random_fc": ["classifier"]}, ("focus",)),
    ):
        set_modes(model, in_train_mode)
        # a place in the middle of each whole pixel
        places = None if offsets is None else (given_input(case, offsets) + 0.5) / reach
        cells = given_input(case, "cells")[None]
        losses = model.losses(phase, clip, given_input(case, "labels"), random_BT2=places, cells_SBT=cells)
        outputs |= stage_outputs(model, phase, losses, modules)
    return to_numpy(outputs)


def _original(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The policy's tensor that `focuser.policy.policy{,_old}.*` repeats; None for other names and other shapes."""
    for prefix in ("focuser.policy.policy_old.", "focuser.policy.policy."):
        if name.startswith(prefix):
            ours = "policy." + name.removeprefix(prefix)
            return ours if ours in state and state[ours].shape == state[name].shape else None
    return None


def _differ(one: Tensor, other: Tensor) -> bool:
    return not one.is_meta and not torch.equal(one, other)
