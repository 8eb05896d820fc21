"""TSM: TSN whose residual blocks see a few channels of the neighbouring frames, at no cost."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contract.declarations import Stage, tiny_stage
from harness.layers.frame_classifier import FrameClassifier
from harness.layers.init import tsn_groups

from mmaction.registry import MODELS

CARD = {
    "name": "tsm",
    "class": "TSM",
    "title": "TSM",
    "paper": "TSM: Temporal Shift Module for Efficient Video Understanding (ICCV 2019)",
    "year": 2019,
    "adapts": [],
    "fidelity": "A",
    "source": "docs/methods/tsn-tsm.md#tsm; github.com/mit-han-lab/temporal-shift-module",
    "summary": "TSN with channels shifted between neighbouring frames",
    "version": 1,
}


@MODELS.register_module()
class TSM(FrameClassifier):
    """Shared 2D network with temporal shift before every residual block, mean of per-frame logits."""

    shift = True

    def recipe(self, size: str) -> Sequence[Stage]:
        if size == "tiny":
            return [tiny_stage("train", init=self.start)]
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
                init=self.start,
            )
        ]
