"""From what a loader gives to the batch that a recognizer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

import harness.compat.imports  # noqa: F401  (before mmaction)

from mmaction.registry import MODELS


@MODELS.register_module()
class ClipPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device and stacks it; frames stay uint8 until a method consumes them.

    Accepts what `collate` gives, lists of per-sample clips of each request, and what mmaction2's
    pipelines give: (T, 3, H, W) or (1, T, 3, H, W) tensors in a list. Normalisation belongs to
    `EfficientRecognizer.normalise`; pipelines of mmaction2 must not normalise uint8 frames themselves.
    """

    def forward(self, data: Any, training: bool = False) -> Any:
        """`{'inputs': {request: (B, T, 3, H, W)} or (B, T, 3, H, W), 'data_samples': list or None}`."""
        data = self.cast_data(data)
        inputs = data["inputs"]
        if isinstance(inputs, Mapping):
            inputs = {name: _stacked(clip) for name, clip in inputs.items()}
        elif isinstance(inputs, list) and isinstance(inputs[0], Mapping):
            inputs = {name: _stacked([clips[name] for clips in inputs]) for name in inputs[0]}
        else:
            inputs = _stacked(inputs)
        return {"inputs": inputs, "data_samples": data.get("data_samples")}


def _stacked(clips: Tensor | Sequence[Tensor]) -> Tensor:
    """(B, T, 3, H, W) from a batch or from B clips of (T, 3, H, W) or (1, T, 3, H, W)."""
    if isinstance(clips, Tensor):
        return clips
    return torch.stack([clip.squeeze(0) if clip.ndim == 5 else clip for clip in clips])
