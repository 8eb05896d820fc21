"""Uni-AdaFocus's released checkpoints, and replays of its recorded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from adafocus.authors.layout import (
    converted,
    count_heads,
    family_state,
    mobilenet,
    networks_on_tsn,
    place,
    substitute,
    under,
    uni_policies,
    uni_policy_widths,
)
from adafocus.authors.replay import (
    FRAME_LOSSES,
    after_backward,
    catch,
    draws,
    given_input,
    is_method,
    load,
    ready_to_train,
    renamed,
    to_numpy,
)
from adafocus.uni import UniAdaFocus
from harness.authors.official import Converted
from harness.authors.parity import ParityCase
from harness.contract.trace import Trace

_MODULES = {
    "global_CNN": ["glance"],
    "global_CNN_fc": ["glance_head"],
    "local_CNN": ["focus"],
    "local_CNN_fc": ["focus_head"],
    "aux_fc": ["spatial_head"],
    "spatial_policy": ["spatial_policy"],
    "temporal_policy": ["temporal_policy"],
    "classifier": ["glance_classifier", "classifier"],
}
"""The authors' module names and ours."""


def from_official(content: Mapping[str, Any], **given: Any) -> Converted | None:
    """Settings and state dict of `uni-adafocus` out of a file; None for other methods' files.

    Args:
        content: What the file holds.
        given: Settings that no tensor tells; they win.

    Source: docs/methods/adafocus-checkpoints.md#layouts.
    """
    state = family_state(content)
    if "classifier.local_classifiers.0.1.weight" not in state or "spatial_policy.encoder.9.weight" not in state:
        return None
    placed = place(
        state,
        [
            *networks_on_tsn(mobilenet("glance.", state, "global_CNN.")),
            *uni_policies("aux_fc."),
            ("classifier.global_mlp.layers.", under("glance_classifier.embed.")),
            ("classifier.local_mlp.layers.", under("classifier.embed.")),
            ("classifier.global_classifiers.", substitute(r"^(\d+)\.1\.", r"glance_classifier.heads.\1.")),
            ("classifier.local_classifiers.", substitute(r"^(\d+)\.1\.", r"classifier.heads.\1.")),
        ],
    )
    found = placed.state
    told = {
        "num_classes": found["classifier.heads.0.weight"].shape[0],
        "frames": count_heads(found, "classifier"),
        "glance_frames": count_heads(found, "glance_classifier"),
        **uni_policy_widths(found),
        "exit_score": "logit",
        "classifier_hidden": found["classifier.embed.0.weight"].shape[0],
    }
    return converted("uni-adafocus", placed, told=told, assumed={"patch_size": 128}, given=given)


def parity(case: ParityCase) -> dict[str, np.ndarray] | None:
    """One forward with all heads, or one training step; None for other methods' pairs."""
    if not is_method(case, "Uni-AdaFocus"):
        return None
    model = load(UniAdaFocus, from_official, case)
    clip_BT3HW = torch.from_numpy(case.clip(model.candidates, model.resolution))
    return _training_step(ready_to_train(model), clip_BT3HW.double(), case) if case.training else _evaluation(
        model, clip_BT3HW
    )


def _evaluation(model: UniAdaFocus, clip_BT3HW: torch.Tensor) -> dict[str, np.ndarray]:
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


def _training_step(model: UniAdaFocus, clip_BT3HW: torch.Tensor, case: ParityCase) -> dict[str, np.ndarray]:
    videos = torch.arange(len(clip_BT3HW))[:, None]
    clips = {"candidates": clip_BT3HW, "glance": clip_BT3HW[videos, given_input(case, "glance_indices")]}
    noise = torch.cat((given_input(case, "frame_noise")[..., None], given_input(case, "random_actions")), dim=-1)
    losses = model.losses(clips, given_input(case, "labels"), noise, draws(case))
    outputs = after_backward(model, torch.stack(list(losses.values())).sum(), _MODULES)
    policies = {name: losses[name] for name in ("loss_temporal", "loss_spatial", "loss_size")}
    return to_numpy({**outputs, **renamed(losses, FRAME_LOSSES), **policies})
