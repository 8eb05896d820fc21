"""Replays of Uni-AdaFocus's recorded pairs on TSM and on X3D."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from adafocus.authors.replay import (
    CLIP_LOSSES,
    Reader,
    after_backward,
    catch,
    draws,
    given_input,
    is_method,
    load,
    ready_to_train,
    renamed,
    to_numpy,
    two_clips,
)
from adafocus.uni_clip import UniClip
from harness.authors.parity import ParityCase
from harness.contract.recognizer import Clips
from harness.contract.trace import Trace
from harness.errors import UsageError


def replay(
    cls: type[UniClip], from_official: Reader, case: ParityCase, method: str, modules: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray] | None:
    """One evaluation forward, or one training step; None where the pair is not of `method`.

    `modules` are the authors' modules whose gradients a training pair has, and ours. The frame indices are those
    that the forward really looked at, out of its trace.
    """
    if not is_method(case, method):
        return None
    counted = re.search(r"(\d+) focus", case.spec["frames"])
    if counted is None:
        raise UsageError(f"{case.name}: frames {case.spec['frames']!r} does not tell the focus frames")
    model = load(cls, from_official, case, focus_frames=int(counted[1]))
    glance, candidates = two_clips(case)
    if case.training:
        return _training_step(ready_to_train(model), {"glance": glance, "candidates": candidates}, case, modules)
    seen: dict[str, Tensor] = {}
    handles = [catch(seen, "actions", model.spatial_policy), catch(seen, "weights", model.temporal_policy)]
    trace = Trace(len(glance), details=True)
    with torch.inference_mode():
        logits = model.infer({"glance": glance, "candidates": candidates}, trace=trace)
    for handle in handles:
        handle.remove()
    indices = [[step for video, step, *_ in trace.boxes if video == row] for row in range(len(glance))]
    outputs = {"logits": logits, "actions": seen["actions"][:, 0], "frame_weights": seen["weights"]}
    return to_numpy(outputs) | {"frame_indices": np.asarray(indices)}


def _training_step(
    model: UniClip, clips: Clips, case: ParityCase, modules: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    clips = {name: clip.double() for name, clip in clips.items()}
    noise = given_input(case, "frame_noise"), given_input(case, "random_actions")
    losses = model.losses(clips, given_input(case, "labels"), *noise, draws(case))
    outputs = after_backward(model, torch.stack(list(losses.values())).sum(), modules)
    policies = {name: losses[name] for name in ("loss_temporal", "loss_spatial")}
    policies["loss_size"] = losses["loss_size"] / model.policies.size_weight
    return to_numpy({**outputs, **renamed(losses, CLIP_LOSSES), **policies})
