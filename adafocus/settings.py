"""Settings that several methods of the AdaFocus family have, in groups (harness.contract.groups).

A method whose defaults differ says so at its constructor: `networks: Networks = Networks(glance_resize="nearest")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from harness.contract.exits import Score
from harness.contract.groups import Dropout, Natural, Positive, Weight, settings
from harness.layers.crop import box_stretch
from harness.layers.resize import ResizeMode

Placed = Literal["learned", "random", "centre"]
"""How patches are placed; `random` and `centre` are references without policy network."""


@settings
class Networks:
    """A light network that glances at whole frames, and a deep one that looks at patches."""

    glance: str = "mobilenet_v2"
    """Backbone that sees whole frames."""
    glance_side: Positive | None = None
    """Side in pixels at which it sees them; None for full resolution."""
    glance_resize: ResizeMode = "bilinear"
    """How frames get there, see `harness.layers.resize`."""
    focus: str = "resnet50"
    """Backbone that sees the patches."""


FULL_SIZE: dict[str, Any] = {"glance": "mobilenet_v2", "focus": "resnet50"}
"""Networks of the papers."""


def tiny_networks(resolution: int, suffix: str = "") -> dict[str, Any]:
    """Settings of the tiny size: small networks, the glance at a quarter of the side.

    Args:
        resolution: Side of the frames in pixels.
        suffix: `3d` for those that convolve over time.
    """
    return {
        "glance": f"mbtiny{suffix}",
        "glance_side": resolution // 4,
        "glance_resize": "area",
        "focus": f"restiny{suffix}",
    }


@settings
class PolicyWidths:
    """The policy that places patches, V1 and V2."""

    policy_channels: Positive
    """Of the 1x1 convolution."""
    policy_hidden: Positive = 1024
    """Of the layers behind it."""


@settings
class PatchLearning:
    """Learning to place patches by back-propagation, V2."""

    policy_centred: bool = False
    """The policy starts near the frame's centre."""
    stop_gradient: bool = True
    """The policy does not train the glance network through its input."""
    patch_grad_clip: bool = False
    """Scale each patch's gradient at its place down to the batch's median norm."""
    random_pass: bool = True
    """Train the focus network on random patches too (the paper's diversity augmentation)."""


@settings
class BoxesAndFrames:
    """The two policies of Uni-AdaFocus: a box in space, frames in time."""

    spatial: Placed = "learned"
    """Boxes are `learned`; `random` and `centre` cut patches of P x P pixels without policy network."""
    temporal: Literal["learned", "uniform"] = "learned"
    """Focus frames by `learned` weights, or `uniform`."""
    deformable: bool = True
    """Boxes have a learned height and width; else P x P pixels."""
    smallest_box: Positive | None = None
    """Side of the smallest box in pixels; None for 3/7 of the frame, the paper's 96 of 224."""
    spatial_channels: Positive = 128
    """Width of the spatial policy's hidden convolutions."""
    temporal_channels: Positive = 64
    """Width of the temporal policy's."""
    policies_centred: bool = False
    """Start the spatial policy at the centre and the temporal one at equal weights."""
    size_weight: Weight = 1.0
    """Weight of the prior that pulls boxes towards the whole frame (the code's `norm_ratio`)."""
    draws: Positive = 128
    """Random orders of the Monte-Carlo estimate, see `monte_carlo_logits`."""
    random_pass: bool = True
    """Train the focus network on random patches too."""

    @property
    def outputs(self) -> int:
        """Numbers that the spatial policy gives for a box."""
        return 4 if self.deformable else 2

    def stretch(self, patch_size: int, resolution: int) -> tuple[float, float]:
        """The range of boxes, see `harness.layers.crop.box_stretch`."""
        return box_stretch(patch_size, self.smallest_box or resolution * 3 // 7, resolution)


@settings
class StepClassifier:
    """The classifier that sees more frames at every step, V2 and Uni-AdaFocus: see RunningMaxClassifier."""

    classifier_hidden: Natural = 4096
    """Of its MLP; 0: none."""
    classifier_shared: bool = False
    """One linear layer for all steps."""
    dropout: Dropout = 0.2
    """Before the linear layers."""

    def options(self) -> dict[str, Any]:
        """Keywords of RunningMaxClassifier."""
        return {"hidden": self.classifier_hidden, "shared": self.classifier_shared, "dropout": self.dropout}


@settings
class FrameHeads:
    """Auxiliary classifiers of single frames, V2 and Uni-AdaFocus."""

    aux_losses: bool = True
    """Classify single frames of both networks too."""
    head_dropout: Dropout = 0.2
    """Dropout of those classifiers."""
    glance_loss: Literal["frame", "video"] = "frame"
    """Loss of single glance frames per `frame` or on the `video`'s mean logits."""


@settings
class Exits:
    """The order of frames and where videos may leave, V2 and Uni-AdaFocus."""

    order: str | Sequence[int] = "temporal"
    """Order in which frames are processed, see `frame_order`."""
    exit_every: Natural = 1
    """Frames between exits; larger ones cost less overhead. 0: no exits."""
    exit_score: Score = "softmax"
    """See `exit_scores`; the authors' code calls the largest `logit` confidence."""
