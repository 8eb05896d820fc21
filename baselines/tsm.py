"""TSM: TSN whose residual blocks see a few channels of the neighbouring frames, at no cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.contract import EMPTY, ClipRequest, InitFrom, Stage, tiny_stage
from harness.layers.backbones import build_backbone
from harness.layers.init import normal_linear, tsn_groups
from harness.recognizer import Clips, EfficientRecognizer
from harness.trace import Trace

from mmaction.registry import MODELS

CARD = {
    "name": "tsm",
    "class": "TSM",
    "title": "TSM",
    "paper": "TSM: Temporal Shift Module for Efficient Video Understanding (ICCV 2019)",
    "year": 2019,
    "adapts": [],
    "fidelity": "A",
    "source": "baselines.md 9.2; github.com/mit-han-lab/temporal-shift-module",
    "summary": "TSN with channels shifted between neighbouring frames",
    "version": 1,
}


@MODELS.register_module()
class TSM(EfficientRecognizer):
    """Shared 2D network with temporal shift before every residual block, mean of per-frame logits.

    Args:
        num_classes: C.
        backbone: Name of the network (harness.layers.backbones).
        frames: T; the weights serve any T, `point["frames"]` overrides it.
        dropout: Probability before the classifier.
        kwargs: resolution, mean, std, data_preprocessor (EfficientRecognizer).
    """

    def __init__(
        self, num_classes: int, *, backbone: str = "resnet50", frames: int = 8, dropout: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone_name = backbone
        self.frames = frames
        self.backbone = build_backbone(backbone, shift=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = normal_linear(self.backbone.dim, num_classes)

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "tiny":
            return {"backbone": "restiny", "frames": 8, "dropout": 0.2}
        return {"backbone": "resnet50", "frames": 8, "dropout": 0.5}

    def recipe(self, size: str) -> Sequence[Stage]:
        start = (InitFrom(f"pretrained:{self.backbone_name}", into="backbone"),)
        if size == "tiny":
            return [tiny_stage("train", init=start)]
        return [
            Stage(
                "train",
                epochs=50,
                batch_size=64,
                lr=0.01,
                weight_decay=5e-4,
                schedule="step",
                milestones=(20, 40),
                clip_grad=20.0,
                groups=tsn_groups(self),
                init=start,
            )
        ]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(point.get("frames", self.frames)),)

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        logits = self.video_logits(self.as_clips(inputs)["frames"])
        return {"loss_cls": cross_entropy(logits, self.labels(data_samples))}

    def infer(
        self,
        clips: Clips,
        point: Mapping[str, Any] = EMPTY,
        *,
        trace: Trace,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        clip = clips["frames"]
        with trace.event("backbone", variant=self.backbone_name, shape=clip.shape[2:], rows=clip.shape[1]):
            return self.video_logits(clip)

    def video_logits(self, clip: Tensor) -> Tensor:
        """Mean logits (B, C) of a clip (B, T, 3, H, W)."""
        features = self.backbone(self.normalise(clip.flatten(0, 1)), segments=clip.shape[1])
        return self.fc(self.dropout(features)).unflatten(0, clip.shape[:2]).mean(1)
