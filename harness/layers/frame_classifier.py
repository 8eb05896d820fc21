"""One 2D network on T frames, the mean of their logits: what TSN and TSM are, and what is built on them.

Shapes: B videos, T frames, N = B * T, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, Stage
from harness.contract.frames import Frames
from harness.contract.groups import Dropout, Positive
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.layers.backbones import build_backbone
from harness.layers.init import normal_linear


class FrameClassifier(EfficientRecognizer):
    """A shared network, dropout and a linear layer on every frame.

    Args:
        num_classes: C.
        backbone: Name of the network (harness.layers.backbones).
        frames: T; the weights serve any T, `point["frames"]` overrides it.
        dropout: Probability before the classifier.
        kwargs: resolution, mean, std, data_preprocessor (EfficientRecognizer).

    Attributes:
        shift: With a temporal shift in front of every residual block.
        side: Side in pixels at which the network sees frames.
    """

    shift: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        frames: Positive = 8,
        dropout: Dropout = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone_name, self.frames, self.side = backbone, frames, self.resolution
        self.backbone = build_backbone(backbone, shift=self.shift)
        self.dropout = nn.Dropout(dropout)
        self.fc = normal_linear(self.backbone.dim, num_classes)

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "tiny":
            return {"backbone": "restiny", "frames": 8, "dropout": 0.2}
        return {"backbone": "resnet50", "frames": 8, "dropout": 0.5}

    @property
    def start(self) -> tuple[InitFrom, ...]:
        """The backbone's published or pre-trained weights."""
        return (InitFrom(f"pretrained:{self.backbone_name}", into="backbone"),)

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(point.get("frames", self.frames)),)

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        logits = self.frame_logits(self.as_clips(inputs)["frames"]).mean(1)
        return {"loss_cls": cross_entropy(logits, self.labels(data_samples))}

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.frame_logits(clips["frames"].all()).mean(1)

    def frame_logits(self, clip_BT3HW: Tensor) -> Tensor:
        """Logits of every frame (B, T, C)."""
        if self.shift:
            return self.clip_scores(clip_BT3HW)
        return self.frame_scores(clip_BT3HW.flatten(0, 1)).unflatten(0, clip_BT3HW.shape[:2])

    @component("backbone", variant=lambda model: model.backbone_name, side=lambda model: model.side)
    def frame_scores(self, x_N3HW: Tensor) -> Tensor:
        """Logits (N, C) of frames that do not know of each other."""
        return self.fc(self.dropout(self.backbone(self.seen(self.normalise(x_N3HW)))))

    @component("backbone", variant=lambda model: model.backbone_name, side=lambda model: model.side, steps=True)
    def clip_scores(self, clip_BT3HW: Tensor) -> Tensor:
        """Logits (B, T, C) of the frames of clips."""
        x_N3HW = self.seen(self.normalise(clip_BT3HW.flatten(0, 1)))
        features = self.backbone(x_N3HW, segments=clip_BT3HW.shape[1])
        return self.fc(self.dropout(features)).unflatten(0, clip_BT3HW.shape[:2])

    def seen(self, x_N3HW: Tensor) -> Tensor:
        """Normalised frames as the network sees them."""
        return x_N3HW
