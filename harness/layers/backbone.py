"""The face that all backbones have: feature map, pooled vector, width, stride."""

from __future__ import annotations

from torch import Tensor, nn

from harness.errors import UsageError
from harness.layers.temporal_shift import TemporalShift


class Backbone(nn.Module):
    """A 2D network without classifier.

    Args:
        shift: Put a temporal shift in front of the first convolution of every residual block.

    Attributes:
        dim: D, channels of the feature map and length of the pooled vector.
        stride: Input side divided by feature map side (rounded up where it does not divide).
        shift: The temporal shift, or None.
    """

    dim: int
    stride: int

    def __init__(self, *, shift: bool = False) -> None:
        super().__init__()
        self.shift = TemporalShift() if shift else None

    def features(self, x: Tensor, segments: int | None = None) -> Tensor:
        """Feature map (N, D, h, w) of normalised frames (N, 3, H, W).

        Args:
            segments: Frames per clip; needed by, and only used in, a network with temporal shift.
        """
        if self.shift is not None:
            if segments is None:
                raise UsageError(f"{type(self).__name__} with temporal shift must be told the frames per clip")
            self.shift.segments = segments
        return self.trunk(x)

    def forward(self, x: Tensor, segments: int | None = None) -> Tensor:
        """Pooled vector (N, D): the feature map's mean over space."""
        return self.features(x, segments).mean((2, 3))

    def trunk(self, x: Tensor) -> Tensor:
        """The layers themselves, (N, 3, H, W) to (N, D, h, w)."""
        raise NotImplementedError

    def _attach(self, convolution: nn.Module) -> None:
        if self.shift is not None:
            self.shift.attach(convolution)
