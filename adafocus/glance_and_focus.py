"""What all of the AdaFocus family have: a light network that glances at frames, a deep one that sees patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adafocus.settings import Networks
from harness.contract.components import component
from harness.contract.groups import Positive
from harness.contract.recognizer import EfficientRecognizer
from harness.errors import UsageError
from harness.layers.crop import check_patch_size
from harness.layers.resize import resize


class GlanceAndFocus(EfficientRecognizer):
    """Base class of the family; a subclass builds the two networks as `glance` and `focus`.

    Args:
        num_classes: C.
        patch_size: P in pixels.
        networks: See Networks.

    Attributes:
        glance_side: Side in pixels at which the glance network sees frames.
        networks: The settings of both networks.
    """

    glance: Any
    focus: Any
    glance_head: nn.Module
    focus_head: nn.Module

    def __init__(self, num_classes: int, *, patch_size: Positive, networks: Networks, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        check_patch_size(patch_size, self.resolution)
        self.patch_size, self.networks = patch_size, networks
        self.glance_side = networks.glance_side or self.resolution
        if self.glance_side > self.resolution:
            raise UsageError(f"glance_side {self.glance_side} is larger than the frames of {self.resolution} px")

    def shrink(self, x_N3HW: Tensor) -> Tensor:
        """Frames as the glance network sees them."""
        return resize(x_N3HW, self.glance_side, self.networks.glance_resize)

    @component("glance", variant=lambda model: model.networks.glance, side=lambda model: model.glance_side)
    def see(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, D, h, w) and vectors (N, D) of whole frames."""
        maps = self.glance.features(self.shrink(self.normalise(x_N3HW)))
        return maps, maps.mean((2, 3))

    @property
    def map_side(self) -> int:
        """Height and width of the glance network's map."""
        return -(-self.glance_side // self.glance.stride)

    def frame_head(self, dim: int, dropout: float) -> nn.Sequential:
        """A classifier of single frames."""
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, self.num_classes))

    @component("glance head", fast=False)
    def glance_aux(self, glance_ND: Tensor) -> Tensor:
        """Logits (N, C) of single frames."""
        return self.glance_head(glance_ND)

    @component("focus head", fast=False)
    def focus_aux(self, focus_ND: Tensor) -> Tensor:
        """Logits (N, C) of single patches."""
        return self.focus_head(focus_ND)


def shifted(model: ClipGlanceAndFocus) -> bool:
    """Whether networks work frame by frame; those that convolve over time take a clip as one row."""
    return not model.glance.over_time


class ClipGlanceAndFocus(GlanceAndFocus):
    """Base class of those whose two networks see clips and have two heads each (adafocus.clip_nets).

    Attributes:
        frames: T, frames glanced at.
        focus_frames: N, frames looked at closely.
    """

    frames: int
    focus_frames: int

    @component("glance head", steps=shifted, fast=False)
    def glance_logits(self, vectors_BTD: Tensor) -> Tensor:
        """The glance's half of the sum (B, C)."""
        return self.glance.logits(vectors_BTD.flatten(0, 1), self.frames)

    @component("glance head", steps=True, fast=False)
    def glance_frame_logits(self, vectors_BTD: Tensor) -> Tensor:
        """Logits (B, T, C) out of the auxiliary head."""
        return self.glance.aux_logits(vectors_BTD.flatten(0, 1), self.frames)

    @component("focus head", steps=shifted, fast=False)
    def focus_logits(self, vectors_BND: Tensor) -> Tensor:
        """The focus network's half of the sum (B, C)."""
        return self.focus.logits(vectors_BND.flatten(0, 1), self.focus_frames)

    @component("focus head", steps=True, fast=False)
    def focus_frame_logits(self, vectors_BND: Tensor) -> Tensor:
        """Logits (B, N, C) out of the auxiliary head."""
        return self.focus.aux_logits(vectors_BND.flatten(0, 1), self.focus_frames)
