"""The authors' checkpoints of Uni-AdaFocus on TSN-like networks (adafocus.md 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adafocus.official import converted, family_state, mobilenet, place, resnet, substitute, under
from harness.official import Converted


def uni_official(content: Mapping[str, Any], given: Mapping[str, Any]) -> Converted | None:
    """Settings and state dict of `uni-adafocus` out of a file; None for other methods' files.

    Args:
        content: What the file holds.
        given: Settings that no tensor tells; they win.
    """
    state = family_state(content)
    if "classifier.local_classifiers.0.1.weight" not in state or "spatial_policy.encoder.9.weight" not in state:
        return None
    placed = place(
        state,
        [
            ("global_CNN_fc.", under("glance_head.")),
            ("local_CNN_fc.", under("focus_head.")),
            ("global_CNN.", mobilenet("glance.", state, "global_CNN.")),
            ("local_CNN.", resnet("focus.")),
            ("aux_fc.", under("spatial_head.fc.")),
            ("spatial_policy.", under("spatial_policy.")),
            ("temporal_policy.", under("temporal_policy.")),
            ("classifier.global_mlp.layers.", under("glance_classifier.embed.")),
            ("classifier.local_mlp.layers.", under("classifier.embed.")),
            ("classifier.global_classifiers.", substitute(r"^(\d+)\.1\.", r"glance_classifier.heads.\1.")),
            ("classifier.local_classifiers.", substitute(r"^(\d+)\.1\.", r"classifier.heads.\1.")),
        ],
    )
    found = placed.state
    told = {
        "num_classes": found["classifier.heads.0.weight"].shape[0],
        "frames": _heads(found, "classifier."),
        "glance_frames": _heads(found, "glance_classifier."),
        "spatial_channels": found["spatial_policy.encoder.0.weight"].shape[0],
        "temporal_channels": found["temporal_policy.Tconv.0.weight"].shape[0],
        "classifier_hidden": found["classifier.embed.0.weight"].shape[0],
    }
    return converted("uni-adafocus", placed, told=told, assumed={"patch_size": 128}, given=given)


def _heads(state: Mapping[str, Tensor], prefix: str) -> int:
    return sum(key.startswith(f"{prefix}heads.") and key.endswith(".weight") for key in state)
