"""Uni-AdaFocus on TSM (2024): one box per video and the frames that matter, for data sets where order matters.

    bench.py run --methods uni-adafocus-tsm,adafocus-v2-tsm,tsm --datasets glyphs-motion

The method itself stands in `adafocus.uni_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adafocus.official import converted, family_state, mobilenet, place, resnet, under
from adafocus.parity.uni_clip import uni_clip_outputs
from adafocus.tsm_net import TwoHeadNet
from adafocus.uni_clip import UniClip
from harness.contract import Stage
from harness.official import Converted
from harness.parity import ParityCase

from mmaction.registry import MODELS

CARD = {
    "name": "uni-adafocus-tsm",
    "class": "UniAdaFocusTSM",
    "title": "Uni-AdaFocus on TSM",
    "paper": "Uni-AdaFocus: Spatial-temporal Dynamic Computation for Video Recognition (arXiv 2412.11228)",
    "year": 2024,
    "adapts": ["space", "time", "sample"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/Uni-AdaFocus",
    "summary": "Networks with temporal shift; one box of any size per video in the frames that matter; an early exit",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "exit": "test"},
    "settings": {},
}


@MODELS.register_module()
class UniAdaFocusTSM(UniClip):
    """Uni-AdaFocus on temporally shifted networks.

    Args:
        num_classes: C.
        glance: Backbone that sees whole frames.
        focus: Backbone that sees the patches.
        dropout: Before the heads; the temporal policy sees the features behind it, as in the code.

    Source: adafocus.md 9.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        glance: str = "mobilenet_v2",
        focus: str = "resnet50",
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self._assemble(
            TwoHeadNet(glance, num_classes, dropout=dropout), TwoHeadNet(focus, num_classes, dropout=dropout)
        )

    def _cells(self, exact: float) -> int:
        return max(1, int(exact))

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"patch_size": 128, "glance": "mobilenet_v2", "focus": "resnet50"}
        return {
            "frames": 8,
            "focus_frames": 8,
            "patch_size": resolution * 5 // 8,
            "smallest_box": resolution // 2,
            "size_weight": 0.0,
            "glance": "mbtiny",
            "glance_side": resolution // 4,
            "glance_resize": "area",
            "focus": "restiny",
            "spatial_channels": 16,
            "temporal_channels": 16,
            "policies_centred": True,
            "dropout": 0.2,
            "align_crops": True,
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        if size != "paper":
            return self._tiny_recipe(epochs=12)
        groups = self._groups(policies=0.2, glance=0.5)
        return [
            Stage(
                "main",
                epochs=50,
                batch_size=64,
                lr=0.02,
                weight_decay=1e-3,
                clip_grad=20.0,
                groups=groups,
                init=self._init(),
            )
        ]

    @classmethod
    def from_official(cls, content: Mapping[str, Any], **given: Any) -> Converted | None:
        """Settings and state dict out of the authors' checkpoint; None for other methods' files.

        `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 128 and 12.
        Source: adafocus.md 13.
        """
        state = family_state(content)
        if "spatial_policy.encoder.9.weight" not in state or "global_CNN.new_new_fc.weight" not in state:
            return None
        placed = place(
            state,
            [
                ("global_CNN.new_fc.", under("glance.head.")),
                ("global_CNN.new_new_fc.", under("glance.aux_head.")),
                ("local_CNN.new_fc.", under("focus.head.")),
                ("local_CNN.new_new_fc.", under("focus.aux_head.")),
                ("global_CNN.base_model.", mobilenet("glance.backbone.", state, "global_CNN.base_model.")),
                ("local_CNN.base_model.", resnet("focus.backbone.")),
                ("aux_fc.", under("spatial_head.fc.")),
                ("spatial_policy.", under("spatial_policy.")),
                ("temporal_policy.", under("temporal_policy.")),
            ],
        )
        found = placed.state
        told = {
            "num_classes": found["glance.head.weight"].shape[0],
            "frames": found["spatial_policy.encoder.9.weight"].shape[2],
            "glance": "mobilenet_v2",
            "focus": "resnet50",
            "spatial_channels": found["spatial_policy.encoder.0.weight"].shape[0],
            "temporal_channels": found["temporal_policy.Tconv.0.weight"].shape[0],
        }
        assumed = {"focus_frames": 12, "patch_size": 128}
        return converted("uni-adafocus-tsm", placed, told=told, assumed=assumed, given=given)

    @classmethod
    def parity(cls, case: ParityCase) -> dict[str, np.ndarray] | None:
        """Outputs for a recorded pair of the authors (harness.parity); None where it is not Uni-TSM's."""
        return uni_clip_outputs(cls, case, "Uni-AdaFocus + TSM")
