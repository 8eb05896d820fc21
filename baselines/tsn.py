"""TSN: one 2D network on T frames, the mean of their logits. The reference every other method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from harness.contract.declarations import OperatingPoint, Stage, frame_points, tiny_stage
from harness.contract.groups import Positive, Share
from harness.layers.frame_classifier import FrameClassifier
from harness.layers.init import tsn_groups
from harness.layers.resize import ResizeMode, resize, share_of

from mmaction.registry import MODELS

CARD = {
    "name": "tsn",
    "class": "TSN",
    "title": "TSN",
    "paper": "Temporal Segment Networks (ECCV 2016)",
    "year": 2016,
    "adapts": [],
    "fidelity": "A",
    "source": "docs/methods/tsn-tsm.md#tsn; recipe as in AR-Net's code (docs/methods/ar-net.md#training)",
    "summary": "2D network on uniformly sampled frames, logits averaged",
    "knobs": {"frames": "test", "share": "train"},
    "version": 1,
}


@MODELS.register_module()
class TSN(FrameClassifier):
    """Shared 2D network, mean of per-frame logits.

    Args:
        num_classes: C.
        share: Side of the network's input as a share of `resolution`.
        resize: How frames are made smaller where `share` < 1.
        test_frames: Numbers of frames of the `frames` knob.
        kwargs: backbone, frames, dropout (FrameClassifier).
    """

    test_settings = ("test_frames",)

    def __init__(
        self,
        num_classes: int,
        *,
        share: Share = 1.0,
        resize: ResizeMode = "area",
        test_frames: Sequence[Positive] = (1, 2, 4, 8, 16),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.side = share_of(self.resolution, share)
        self.resize = resize
        self.test_frames = tuple(test_frames)

    def recipe(self, size: str) -> Sequence[Stage]:
        if size == "tiny":
            return [tiny_stage("train", init=self.start)]
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
                init=self.start,
            )
        ]

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        return frame_points(self.frames, self.test_frames)

    def seen(self, x_N3HW: Tensor) -> Tensor:
        return resize(x_N3HW, self.side, self.resize)
