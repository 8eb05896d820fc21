"""The network and the pictures behind a backbone's pre-training on stills (harness.plan.pretraining)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, Stage
from harness.contract.frames import Frames
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.data.glyphs import stills
from harness.layers.backbones import build_backbone

from mmaction.structures import ActionDataSample

COUNTS = {"tiny": 5000, "paper": 24000}
"""Number of stills, per size."""


class StillsRecognizer(EfficientRecognizer):
    """A backbone and a linear classifier on single images; only the backbone is kept.

    Args:
        backbone: Name known to `harness.layers.backbones.build_backbone`.
    """

    def __init__(self, num_classes: int, *, backbone: str, dropout: float = 0.2, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone = build_backbone(backbone)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.backbone.dim, num_classes))

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(1),)

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        logits = self.look(self.as_clips(inputs)["frames"][:, 0])
        return {"loss_cls": F.cross_entropy(logits, self.labels(data_samples))}

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.look(clips["frames"].at([0])[:, 0])

    @component("backbone")
    def look(self, x_N3HW: Tensor) -> Tensor:
        """Logits (N, C) of stills."""
        return self.head(self.backbone(self.normalise(x_N3HW)))


class StillsDataset(Dataset):
    """Rendered stills as one-frame clips."""

    def __init__(self, name: str, size: str) -> None:
        self.images, self.labels = stills(name, size, count=COUNTS[size], seed=0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = ActionDataSample()
        sample.set_gt_label(int(self.labels[index]))
        return {"inputs": {"frames": torch.from_numpy(self.images[index])[None]}, "data_samples": sample}
