"""TSN: one 2D network on T frames, the mean of their logits. The reference every other method must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.contract import EMPTY, ClipRequest, InitFrom, OperatingPoint, Stage, tiny_stage
from harness.layers.backbones import build_backbone
from harness.layers.init import normal_linear, tsn_groups
from harness.layers.resize import resize
from harness.recognizer import Clips, EfficientRecognizer
from harness.trace import Trace

from mmaction.registry import MODELS

CARD = {
    "name": "tsn",
    "class": "TSN",
    "title": "TSN",
    "paper": "Temporal Segment Networks (ECCV 2016)",
    "year": 2016,
    "adapts": [],
    "fidelity": "A",
    "source": "baselines.md 9.1; recipe as in AR-Net's code (2.4)",
    "summary": "2D network on uniformly sampled frames, logits averaged",
    "knobs": {"frames": "test", "share": "train"},
    "version": 1,
}


@MODELS.register_module()
class TSN(EfficientRecognizer):
    """Shared 2D network, mean of per-frame logits.

    Args:
        num_classes: C.
        backbone: Name of the network (harness.layers.backbones).
        frames: T in training and at the default point.
        share: Side of the network's input as a share of `resolution`.
        resize: How frames are made smaller where `share` < 1: area, bilinear or nearest.
        dropout: Probability before the classifier.
        test_frames: Numbers of frames of the `frames` knob.
        kwargs: resolution, mean, std, data_preprocessor (EfficientRecognizer).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        frames: int = 8,
        share: float = 1.0,
        resize: str = "area",
        dropout: float = 0.5,
        test_frames: Sequence[int] = (1, 2, 4, 8, 16),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone_name = backbone
        self.frames = frames
        self.side = round(self.resolution * share)
        self.resize = resize
        self.test_frames = tuple(test_frames)
        self.backbone = build_backbone(backbone)
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
                epochs=120,
                batch_size=48,
                lr=1e-3,
                weight_decay=1e-4,
                schedule="step",
                milestones=(100,),
                clip_grad=20.0,
                groups=tsn_groups(self),
                init=start,
            )
        ]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(point.get("frames", self.frames)),)

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        others = [n for n in self.test_frames if n != self.frames]
        return [
            OperatingPoint("full", knob="frames", value=self.frames),
            *(OperatingPoint(f"frames={n}", {"frames": n}, knob="frames", value=n) for n in others),
        ]

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        clip = self.as_clips(inputs)["frames"]
        logits = self.frame_logits(clip).mean(1)
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
        with trace.event("backbone", variant=self.backbone_name, shape=(3, self.side, self.side), rows=clip.shape[1]):
            return self.frame_logits(clip).mean(1)

    def frame_logits(self, clip: Tensor) -> Tensor:
        """Logits of every frame (B, T, C) of a clip (B, T, 3, H, W)."""
        frames = resize(self.normalise(clip.flatten(0, 1)), self.side, self.resize)
        return self.fc(self.dropout(self.backbone(frames))).unflatten(0, clip.shape[:2])
