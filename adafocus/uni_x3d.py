"""Uni-AdaFocus on X3D (2024): X3D-S glances at 16 frames, X3D-L looks at one box in 32 of 96.

    bench.py run --methods uni-adafocus-x3d --datasets glyphs-motion

The method itself stands in `adafocus.uni_clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adafocus.clip_nets import OverTimeNet
from adafocus.settings import Networks
from adafocus.uni_clip import TINY_DEPARTURES, UniClip
from harness.contract.declarations import InitFrom, Stage
from harness.contract.groups import Dropout, Positive
from harness.layers.backbones import IMAGENET_FILES

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
    "authors": "adafocus.authors.uni_x3d",
    "summary": "3-D networks; one box of any size per video in the frames that matter; an early exit",
    "version": 2,
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
        networks: Two of harness.layers.x3d.
        head_hidden: Width of the heads' hidden layer.
        dropout: In the heads, behind the hidden layer.

    On 400 classes both heads of each network start as the published X3D's classifier; else at random.

    Source: docs/methods/uni-adafocus.md#on-x3d. Frames are normalised as the data set's card says; the authors
    take ImageNet's mean and deviation although the SlowFast weights were trained with others (#normalisation).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        networks: Networks = Networks(glance="x3d_s", focus="x3d_l"),
        head_hidden: Positive = 2048,
        dropout: Dropout = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, networks=networks, **kwargs)
        names = networks.glance, networks.focus
        self.published_heads = (num_classes, head_hidden) == PUBLISHED_HEAD and all(
            f"{name}-head" in IMAGENET_FILES for name in names
        )
        self._assemble(*(OverTimeNet(name, num_classes, hidden=head_hidden, dropout=dropout) for name in names))

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
        return {**cls._tiny_settings(resolution, "3d"), "head_hidden": 128}

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
