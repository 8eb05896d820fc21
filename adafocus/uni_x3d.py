"""Uni-AdaFocus on X3D (2024): X3D-S glances at 16 frames, X3D-L looks at one box in 32 of 96.

    bench.py run --methods uni-adafocus-x3d --datasets glyphs-motion

The method itself stands in `adafocus.uni_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adafocus.official import converted, family_state, place, under
from adafocus.parity.uni_clip import uni_clip_outputs
from adafocus.uni_clip import TINY_DEPARTURES, UniClip
from adafocus.x3d_net import OverTimeNet
from harness.contract import InitFrom, Stage
from harness.layers.backbones import IMAGENET_FILES
from harness.layers.x3d import from_slowfast
from harness.official import Converted
from harness.parity import ParityCase

from mmaction.registry import MODELS

CARD = {
    "name": "uni-adafocus-x3d",
    "class": "UniAdaFocusX3D",
    "title": "Uni-AdaFocus on X3D",
    "paper": "Uni-AdaFocus: Spatial-temporal Dynamic Computation for Video Recognition (arXiv 2412.11228)",
    "year": 2024,
    "adapts": ["space", "time", "sample"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/Uni-AdaFocus",
    "summary": "3-D networks; one box of any size per video in the frames that matter; an early exit",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "exit": "test"},
    "settings": {},
}


PUBLISHED_HEAD = (400, 2048)
"""Classes and hidden width of the classifier in SlowFast's X3D files."""

HEAD_DEPARTURE = "all four heads start at random weights (paper: at X3D's own classifier of Kinetics-400)"


@MODELS.register_module()
class UniAdaFocusX3D(UniClip):
    """Uni-AdaFocus on networks that convolve over time.

    Args:
        num_classes: C.
        glance: Network of harness.layers.x3d that sees whole frames.
        focus: Network of harness.layers.x3d that sees the patches.
        head_hidden: Width of the heads' hidden layer.
        dropout: In the heads, behind the hidden layer.

    On 400 classes both heads of each network start as the published X3D's classifier; else at random.

    Source: adafocus.md 10. Frames are normalised as the data set's card says; the authors take ImageNet's mean
    and deviation although the SlowFast weights were trained with others (adafocus.md 14.17).
    """

    joined_passes = True

    def __init__(
        self,
        num_classes: int,
        *,
        glance: str = "x3d_s",
        focus: str = "x3d_l",
        head_hidden: int = 2048,
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        heads: dict[str, Any] = {"hidden": head_hidden, "dropout": dropout}
        self.published_heads = (num_classes, head_hidden) == PUBLISHED_HEAD and all(
            f"{name}-head" in IMAGENET_FILES for name in (glance, focus)
        )
        self._assemble(OverTimeNet(glance, num_classes, **heads), OverTimeNet(focus, num_classes, **heads))

    def _init(self) -> tuple[InitFrom, ...]:
        """The backbones' weights and, where they fit, the published classifier for both heads of each network."""
        heads = [
            InitFrom(f"pretrained:{name}-head", into=f"{net}.{head}")
            for net, name in (("glance", self.glance.name), ("focus", self.focus.name))
            for head in ("head", "aux_head")
        ]
        return (*super()._init(), *(heads if self.published_heads else ()))

    def _cells(self, exact: float) -> int:
        return max(1, round(exact))

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {
                "frames": 16,
                "focus_frames": 32,
                "patch_size": 128,
                "glance": "x3d_s",
                "glance_side": resolution * 5 // 7,
                "focus": "x3d_l",
            }
        return {
            "frames": 8,
            "focus_frames": 8,
            "patch_size": resolution * 5 // 8,
            "smallest_box": resolution // 2,
            "size_weight": 0.0,
            "glance": "mbtiny3d",
            "glance_side": resolution // 4,
            "glance_resize": "area",
            "focus": "restiny3d",
            "head_hidden": 128,
            "spatial_channels": 16,
            "temporal_channels": 16,
            "policies_centred": True,
            "dropout": 0.2,
            "align_crops": True,
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        departures = () if self.published_heads else (HEAD_DEPARTURE,)
        if size != "paper":
            return self._tiny_recipe(epochs=12, departures=(*TINY_DEPARTURES, *departures))
        groups = self._groups(policies=0.4, glance=0.5)
        return [
            Stage(
                "main",
                epochs=50,
                batch_size=64,
                lr=0.005,
                weight_decay=5e-5,
                clip_grad=20.0,
                groups=groups,
                init=self._init(),
                departures=departures,
            )
        ]

    @classmethod
    def from_official(cls, content: Mapping[str, Any], **given: Any) -> Converted | None:
        """Settings and state dict out of the authors' checkpoint; None for other methods' files.

        `patch_size` and `focus_frames` stand in no tensor; they must be given where they are not 128 and 32.
        Source: adafocus.md 13.
        """
        state = family_state(content)
        if "global_CNN.s1.pathway0_stem.conv_xy.weight" not in state:
            return None
        placed = place(
            state,
            [
                ("global_CNN.head.lin_5.", under("glance.head.0.")),
                ("global_CNN.head.projection.", under("glance.head.3.")),
                ("local_CNN.head.lin_5.", under("focus.head.0.")),
                ("local_CNN.head.projection.", under("focus.head.3.")),
                ("global_CNN_head.", under("glance.aux_head.")),
                ("local_CNN_head.", under("focus.aux_head.")),
                ("global_CNN.", lambda rest: _slowfast("glance", rest)),
                ("local_CNN.", lambda rest: _slowfast("focus", rest)),
                ("aux_head.0.", under("spatial_head.fc.")),
                ("spatial_policy.", under("spatial_policy.")),
                ("temporal_policy.", under("temporal_policy.")),
            ],
        )
        linear = {f"{net}.head.0.weight" for net in ("glance", "focus")}  # 1x1x1 convolutions in the file
        found = {name: value.flatten(1) if name in linear else value for name, value in placed.state.items()}
        last = found["spatial_policy.encoder.9.weight"]
        told = {
            "num_classes": found["glance.head.3.weight"].shape[0],
            "frames": last.shape[2],
            "glance": "x3d_s",
            "glance_side": 32 * last.shape[-1],
            "focus": "x3d_l",
            "head_hidden": found["glance.head.0.weight"].shape[0],
            "spatial_channels": found["spatial_policy.encoder.0.weight"].shape[0],
            "temporal_channels": found["temporal_policy.Tconv.0.weight"].shape[0],
        }
        placed, assumed = replace(placed, state=found), {"focus_frames": 32, "patch_size": 128}
        return converted("uni-adafocus-x3d", placed, told=told, assumed=assumed, given=given)

    @classmethod
    def parity(cls, case: ParityCase) -> dict[str, np.ndarray] | None:
        """Outputs for a recorded pair of the authors (harness.parity); None where it is not Uni-X3D's."""
        return uni_clip_outputs(cls, case, "Uni-AdaFocus + X3D")


def _slowfast(net: str, rest: str) -> str:
    name = from_slowfast(rest)
    return f"{net}.backbone.{name}" if name else ""
