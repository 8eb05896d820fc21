"""The temporally shifted networks of the AdaFocus family on TSM: backbone, dropout, linear heads, mean over frames.

    glance = TwoHeadNet("mobilenet_v2", num_classes)
    maps = glance.maps(frames, segments=8)          # (B * 8, 1280, 7, 7), for the policies
    vectors = glance.vectors(maps)                  # (B * 8, 1280), after dropout
    glance.logits(vectors, 8)                       # (B, C); trains the head alone
    glance.aux_logits(vectors, 8).mean(1)           # (B, C); trains the backbone

Shapes: B videos, T frames, N = B * T, D features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from harness.layers.backbones import build_backbone
from harness.layers.init import normal_linear


class ShiftedNet(nn.Module):
    """A network with temporal shift and a classifier of frames, averaged over time (V1-TSM).

    Args:
        backbone: Name of the network (harness.layers.backbones).
        num_classes: C.
        dropout: Probability before the head.

    Attributes:
        backbone: The network; `dim` and `stride` are its.
        head: Linear, N(0, .001).

    Source: adafocus.md 3.
    """

    def __init__(self, backbone: str, num_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.name = backbone
        self.backbone = build_backbone(backbone, shift=True)
        self.dropout = nn.Dropout(dropout)
        self.head = normal_linear(self.backbone.dim, num_classes)

    @property
    def dim(self) -> int:
        """D, channels of the feature map."""
        return self.backbone.dim

    @property
    def stride(self) -> int:
        """Input side divided by the feature map's side."""
        return self.backbone.stride

    def maps(self, x_N3HW: Tensor, segments: int) -> Tensor:
        """Feature maps (N, D, h, w) of normalised frames, `segments` of each clip side by side."""
        return self.backbone.features(x_N3HW, segments)

    def vectors(self, maps_NDHW: Tensor) -> Tensor:
        """Each frame's features (N, D): the map's mean over space, after dropout."""
        return self.dropout(maps_NDHW.mean((2, 3)))

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C), the mean of their frames'."""
        return self.head(vectors_ND).unflatten(0, (-1, segments)).mean(1)


class TwoHeadNet(ShiftedNet):
    """A shifted network with two heads: `head` predicts but trains nothing below it, `aux_head` trains the backbone.

    The authors' `new_fc` and `new_new_fc` of V2-TSM and Uni-AdaFocus-TSM.

    Source: adafocus.md 7 and 9.
    """

    def __init__(self, backbone: str, num_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__(backbone, num_classes, dropout=dropout)
        self.aux_head = normal_linear(self.backbone.dim, num_classes)

    def logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """The clips' logits (B, C); no gradient reaches `vectors_ND`."""
        return super().logits(vectors_ND.detach(), segments)

    def aux_logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """Each frame's logits (B, T, C) out of `aux_head`; their mean over T is the clip's."""
        return self.aux_head(vectors_ND).unflatten(0, (-1, segments))


def stacked(maps_NDHW: Tensor, segments: int) -> Tensor:
    """The maps of a clip's frames on top of each other, (B, T * D, h, w): what a policy sees that decides once."""
    return maps_NDHW.unflatten(0, (-1, segments)).flatten(1, 2)
