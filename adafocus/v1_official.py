"""The authors' checkpoints of AdaFocus V1 on TSN-like networks (adafocus.md 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adafocus.official import family_state, place, resnet, substitute, under
from harness.errors import CheckpointError
from harness.official import Converted


def v1_official(content: Mapping[str, Any], given: Mapping[str, Any]) -> Converted | None:
    """Settings and state dict of `adafocus-v1` out of a file; None for other methods' files.

    The copies of the policy inside the focuser, `policy_old` among them, are left: they must equal it.

    Args:
        content: What the file holds.
        given: Settings that no tensor tells; they win.

    Raises:
        CheckpointError: The file is of the first stage and has no policy, or its policies differ.
    """
    state = family_state(content)
    if "fc.gru.weight_ih_l0" not in state:
        return None
    if "policy.gru.weight_ih_l0" not in state:
        raise CheckpointError("the checkpoint of AdaFocus V1 has no policy: it is one of stage 1; use stage 2 or 3")
    placed = place(
        {n: v for n, v in state.items() if not _copy_of_policy(n, state)},
        [
            ("glancer.net.features.", under("glance.blocks.")),
            ("glancer.net.classifier.", under("glance_head.")),
            ("focuser.net.fc.", under("focus_head.")),
            ("focuser.net.", resnet("focus.")),
            ("fc.", under("classifier.")),
            ("policy.", substitute(r"^(?:state_(encoder)|(gru)\b|(actor|critic)\.0)\.", r"policy.\1\2\3.")),
        ],
    )
    found = placed.state
    settings: dict[str, Any] = {
        "num_classes": found["classifier.fc.weight"].shape[0],
        "frames": 16,
        "patch_size": 128,
        "glance": "mobilenet_v2",
        "focus": "resnet50",
        "grid": round(found["policy.actor.weight"].shape[0] ** 0.5),
        "policy_channels": found["policy.encoder.0.weight"].shape[0],
        "policy_hidden": found["policy.gru.weight_hh_l0"].shape[1],
        "classifier_hidden": found["classifier.fc.weight"].shape[1],
    }
    return Converted("adafocus-v1", settings | dict(given), found, placed.unused, placed.unplaced)


def _copy_of_policy(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of the file repeats one of the policy: `focuser.policy.policy{,_old}.*`."""
    for prefix in ("focuser.policy.policy_old.", "focuser.policy.policy."):
        if name.startswith(prefix):
            ours = state.get("policy." + name.removeprefix(prefix))
            if ours is None or ours.shape != state[name].shape:
                return False
            if not ours.is_meta and not torch.equal(ours, state[name]):
                raise CheckpointError(f"{name} differs from the policy's own tensor; which of the two acted is unknown")
            return True
    return False
