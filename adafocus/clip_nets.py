"""The networks of the AdaFocus family that see a clip as a whole, on TSM and on X3D, with one face.

    glance = TwoHeadNet("mobilenet_v2", num_classes)        # or OverTimeNet("x3d_s", num_classes)
    maps = glance.maps(frames, segments=8)                  # (B * 8, 1280, 7, 7), for the policies
    vectors = glance.vectors(maps)                          # (B * 8, 1280)
    glance.logits(vectors, 8)                               # (B, C); trains the head alone
    glance.aux_logits(vectors, 8).mean(1)                   # (B, C); trains the backbone

Shapes: B videos, T frames, N = B * T, D features, C classes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from harness.errors import unknown
from harness.layers.backbone import Backbone
from harness.layers.backbones import OVER_TIME, build_backbone
from harness.layers.init import normal_linear


class ClipNet(nn.Module):
    """A backbone over clips with the classifier `head`, and with `aux_head`, which classifies single frames.

    Args:
        backbone: The network.
        name: Its name (harness.layers.backbones).

    Attributes:
        over_time: It convolves over time: the whole clip is one input, and `head` sees the clip's mean.
    """

    over_time: ClassVar[bool] = False
    head: nn.Module
    aux_head: nn.Module

    def __init__(self, backbone: Backbone, name: str) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone

    @property
    def dim(self) -> int:
        """D, channels of the feature map."""
        return self.backbone.dim

    @property
    def stride(self) -> int:
        """Input side divided by the feature map's side, rounded up."""
        return self.backbone.stride

    def maps(self, x_N3HW: Tensor, segments: int) -> Tensor:
        """Feature maps (N, D, h, w) of normalised frames, `segments` of each clip side by side."""
        return self.backbone.features(x_N3HW, segments)

    def vectors(self, maps_NDHW: Tensor) -> Tensor:
        """Each frame's features (N, D): the map's mean over space."""
        return maps_NDHW.mean((2, 3))

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C)."""
        raise NotImplementedError

    def aux_logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """Each frame's logits (B, T, C) out of `aux_head`; their mean over T is the clip's."""
        return self.aux_head(vectors_ND).unflatten(0, (-1, segments))


class ShiftedNet(ClipNet):
    """A network with temporal shift and a classifier of frames, averaged over time (V1-TSM); no `aux_head`.

    Args:
        backbone: Name of the network (harness.layers.backbones).
        num_classes: C.
        dropout: Probability before the head.

    Attributes:
        head: Linear, N(0, .001).

    Source: docs/methods/adafocus-v1.md#on-tsm.
    """

    def __init__(self, backbone: str, num_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__(build_backbone(backbone, shift=True), backbone)
        self.dropout = nn.Dropout(dropout)
        self.head = normal_linear(self.dim, num_classes)

    def vectors(self, maps_NDHW: Tensor) -> Tensor:
        """Each frame's features (N, D): the map's mean over space, after dropout."""
        return self.dropout(super().vectors(maps_NDHW))

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C), the mean of their frames'."""
        return self.head(vectors_ND).unflatten(0, (-1, segments)).mean(1)


class TwoHeadNet(ShiftedNet):
    """A shifted network with two heads: `head` predicts but trains nothing below it, `aux_head` trains the backbone.

    The authors' `new_fc` and `new_new_fc` of V2-TSM and Uni-AdaFocus-TSM.

    Source: docs/methods/adafocus-v2.md#on-tsm, docs/methods/uni-adafocus.md#on-tsm.
    """

    def __init__(self, backbone: str, num_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__(backbone, num_classes, dropout=dropout)
        self.aux_head = normal_linear(self.dim, num_classes)

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C); no gradient reaches `vectors_ND`."""
        return super().logits(vectors_ND.detach(), segments)


class OverTimeNet(ClipNet):
    """A network that convolves over time, with two heads: X3D's own on the clip's mean, and `aux_head`.

    `head` predicts but trains nothing below it; the backbone learns through `aux_head`.

    Args:
        backbone: Name of a network of harness.layers.x3d.
        num_classes: C.
        hidden: Width of the heads' hidden layer.
        dropout: Behind the hidden layer.

    Raises:
        UsageError: The network does not convolve over time.

    Source: docs/methods/uni-adafocus.md#on-x3d.
    """

    over_time = True

    def __init__(self, backbone: str, num_classes: int, *, hidden: int = 2048, dropout: float = 0.5) -> None:
        if backbone not in OVER_TIME:
            raise unknown("backbone over time", backbone, OVER_TIME)
        super().__init__(build_backbone(backbone), backbone)
        self.head = _mlp(self.dim, hidden, num_classes, dropout)
        self.aux_head = _mlp(self.dim, hidden, num_classes, dropout)

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C), of their mean vector; no gradient reaches `vectors_ND`."""
        return self.head(vectors_ND.detach().unflatten(0, (-1, segments)).mean(1))


def stacked(maps_NDHW: Tensor, segments: int) -> Tensor:
    """The maps of a clip's frames on top of each other, (B, T * D, h, w): what a policy sees that decides once."""
    return maps_NDHW.unflatten(0, (-1, segments)).flatten(1, 2)


def _mlp(dim: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
    )
