"""The 3-D networks of Uni-AdaFocus-X3D: backbone and two heads, with the face of the TSM variants' `TwoHeadNet`.

    glance = OverTimeNet("x3d_s", num_classes)
    maps = glance.maps(frames, segments=16)         # (B * 16, 432, 5, 5)
    vectors = glance.vectors(maps)                  # (B * 16, 432)
    glance.logits(vectors, 16)                      # (B, C); trains the head alone
    glance.aux_logits(vectors, 16).mean(1)          # (B, C); trains the backbone

Shapes: B videos, T frames, N = B * T, D features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from harness.layers.backbones import build_backbone


class OverTimeNet(nn.Module):
    """A network over clips with two heads: X3D's own on the clip's mean (`head`), and `aux_head` on single frames.

    `head` predicts but trains nothing below it; the backbone learns through `aux_head`.

    Args:
        backbone: Name of a network of harness.layers.x3d.
        num_classes: C.
        hidden: Width of the heads' hidden layer.
        dropout: Behind the hidden layer.

    Source: adafocus.md 10.
    """

    def __init__(self, backbone: str, num_classes: int, *, hidden: int = 2048, dropout: float = 0.5) -> None:
        super().__init__()
        self.name = backbone
        self.backbone = build_backbone(backbone)
        self.head = _head(self.backbone.dim, hidden, num_classes, dropout)
        self.aux_head = _head(self.backbone.dim, hidden, num_classes, dropout)

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
        """The clips' logits (B, C), of their mean vector; no gradient reaches `vectors_ND`."""
        return self.head(vectors_ND.detach().unflatten(0, (-1, segments)).mean(1))

    def aux_logits(self, vectors_ND: Tensor, segments: int) -> Tensor:
        """Each frame's logits (B, T, C) out of `aux_head`; their mean over T is the clip's."""
        return self.aux_head(vectors_ND).unflatten(0, (-1, segments))


def _head(dim: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
    )
