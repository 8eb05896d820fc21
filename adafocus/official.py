"""Reading the authors' released checkpoints of AdaFocus V2 (ActivityNet, FCVID, Mini-Kinetics).

    converted = convert("actnet_p128_mbv2.pth.tar")
    model = AdaFocusV2(**converted.settings)
    model.load_state_dict(converted.state, strict=False)      # mean and std are not part of it

Layout of the files: adafocus.md 13.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import CheckpointError
from harness.layers.backbones import mobilenet_from_flat


@dataclass(frozen=True)
class Converted:
    """An official checkpoint in this project's names."""

    settings: Mapping[str, Any]
    """Constructor settings of AdaFocusV2 that follow from the file."""
    state: Mapping[str, Tensor]
    """State dict of AdaFocusV2."""
    unused: tuple[str, ...]
    """Tensors of the file that the model does not use: the backbones' ImageNet classifiers."""

    def report(self) -> str:
        """One paragraph for the user."""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"AdaFocus V2, {len(self.state)} tensors, {dict(self.settings)}{unused}"


def convert(source: Path | str | Mapping[str, Any], *, patch_size: int = 128) -> Converted:
    """Rename an official V2 checkpoint.

    Args:
        source: The file, or its content.
        patch_size: P; no tensor's shape tells it, the file's name does.

    Raises:
        CheckpointError: The file needs more than tensors and numbers, or is no V2 checkpoint.
    """
    raw = source if isinstance(source, Mapping) else read_official(source)
    raw = raw.get("state_dict", raw)
    state = {key.removeprefix("module."): value for key, value in raw.items()}
    if "policy_stn.gru.weight_ih_l0" not in state:
        raise CheckpointError(
            "this is no checkpoint of AdaFocus V2 on ActivityNet, FCVID or Mini-Kinetics: it has no "
            "'policy_stn.gru'; other members of the family are not supported"
        )
    mobile = any(key.startswith("global_CNN.features.") for key in state)
    renamed = _rename(state, mobile)
    unused = tuple(sorted(key for key in state if _is_imagenet_head(key)))
    steps = len({key for key in renamed if re.fullmatch(r"classifier\.heads\.\d+\.weight", key)})
    settings = {
        "num_classes": int(renamed["classifier.heads.0.weight"].shape[0]),
        "frames": steps,
        "patch_size": patch_size,
        "glance": "mobilenet_v2" if mobile else "resnet50",
        "glance_side": None if mobile else 96,
        "focus": "resnet50",
        "policy_channels": int(renamed["policy.encoder.0.weight"].shape[0]),
        "policy_hidden": int(renamed["policy.gru.weight_hh_l0"].shape[1]),
        "classifier_hidden": int(renamed["classifier.embed.0.weight"].shape[0]),
    }
    return Converted(settings, renamed, unused)


def read_official(path: Path | str) -> dict[str, Any]:
    """Content of an official file, read without running code from it.

    Tensors and plain values, and NumPy's scalars under their new and their old name (`best_acc1`).

    Raises:
        CheckpointError: The file holds anything else, or is broken.
    """
    scalar: Any = np.float64(0).__reduce__()[0]  # NumPy's own function that rebuilds a scalar
    numbers: list[Any] = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    allowed: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *numbers]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a file of tensors and numbers: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


_NAMES = (
    (r"^global_CNN_fc\.", "glance_head."),
    (r"^local_CNN_fc\.", "focus_head."),
    (r"^local_CNN\.", "focus."),
    (r"^policy_stn\.fc\.0\.", "policy.fc."),
    (r"^policy_stn\.", "policy."),
    (r"^classifier\.mlp\.layers\.", "classifier.embed."),
    (r"^classifier\.classifiers\.(\d+)\.1\.", r"classifier.heads.\1."),
)


def _rename(state: Mapping[str, Tensor], mobile: bool) -> dict[str, Tensor]:
    prefix = "global_CNN."
    glance = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if mobile:
        glance = {re.sub(r"^features\.", "blocks.", k): v for k, v in mobilenet_from_flat(glance).items()}
    renamed = {f"glance.{key}": value for key, value in glance.items() if not _is_imagenet_head(prefix + key)}
    for key, value in state.items():
        if key.startswith(prefix) or _is_imagenet_head(key):
            continue
        for pattern, name in _NAMES:
            key, found = re.subn(pattern, name, key)
            if found:
                break
        renamed[key] = value
    return renamed


def _is_imagenet_head(key: str) -> bool:
    return key.startswith(("global_CNN.classifier.", "global_CNN.fc.", "local_CNN.fc."))
