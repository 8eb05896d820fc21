"""Networks that convolve over time too, behind the face of the 2-D ones: the frames of a clip lie side by side.

    net = build_backbone("x3d_s")
    net.features(frames, segments=16)   # (B * 16, 432, h, w); temporal stride 1, so a map per frame

X3D-S and X3D-L are mmaction2's under SlowFast's widths and depths; `mbtiny3d` and `restiny3d` are the small
2-D networks with a temporal convolution in front of every residual block. Without `segments` each frame is
a clip of its own, which is how stills pre-train them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import harness.compat.imports  # noqa: F401  (before mmaction)
from harness.errors import CheckpointError
from harness.layers.backbone import Backbone
from harness.layers.tiny_networks import MBTiny, ResTiny

from mmaction.models.backbones.x3d import X3D as Trunk
from mmaction.models.backbones.x3d import BlockX3D


class Backbone3D(Backbone):
    """A network over clips that gives a feature map per frame.

    Its layers see `segments` frames at once, in `trunk` too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.segments = 1

    def features(self, x: Tensor, segments: int | None = None) -> Tensor:
        """Feature maps (N, D, h, w) of normalised frames (N, 3, H, W), N = clips x `segments`."""
        self.segments = segments or 1
        return self.trunk(x)


class X3D(Backbone3D):
    """X3D: depthwise 3x3x3 bottlenecks with squeeze-and-excitation on every second block, up to `conv_5`.

    Args:
        depth: Factor on the number of blocks, 1, 2, 5, 3 per stage: 2.2 for X3D-S, 5 for X3D-L.

    Source: X3D (CVPR 2020), SlowFast's code; docs/methods/building-blocks.md#backbones.
    """

    dim = 432
    stride = 32

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.net = Trunk(gamma_w=1.0, gamma_b=2.25, gamma_d=depth)

    def trunk(self, x: Tensor) -> Tensor:
        x_B3THW = x.unflatten(0, (-1, self.segments)).transpose(1, 2)
        return self.net(x_B3THW).transpose(1, 2).flatten(0, 1)

    def blocks(self) -> list[Any]:
        """The residual blocks, mmaction2's `BlockX3D`."""
        return [module for module in self.net.modules() if isinstance(module, BlockX3D)]


class TimeMixer(nn.Module):
    """A depthwise convolution over three frames, put in front of an existing convolution by a hook.

    It starts as the identity with small weights on the neighbours. With one frame per clip it scales.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        nn.init.normal_(self.conv.weight, std=0.1)
        self.conv.weight.data[:, :, 1] += 1.0
        self.segments = 1

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The mixed frames, same shape."""
        x_BCTHW = x_NCHW.unflatten(0, (-1, self.segments)).transpose(1, 2)
        return self.conv(x_BCTHW).transpose(1, 2).flatten(0, 1)

    def hook(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook that mixes what a module gets as input."""
        return (self(args[0]), *args[1:])


class _Mixed(Backbone3D):
    """Makes a 2-D network 3-D where a temporal shift would be attached."""

    def __init__(self) -> None:
        self._places: list[Any] = []
        super().__init__()
        self.mixers: Any = nn.ModuleList(TimeMixer(convolution[0].in_channels) for convolution in self._places)
        for mixer, convolution in zip(self.mixers, self._places, strict=True):
            convolution.register_forward_pre_hook(mixer.hook)
        del self._places

    def features(self, x: Tensor, segments: int | None = None) -> Tensor:
        """See `Backbone3D.features`."""
        for mixer in self.mixers:
            mixer.segments = segments or 1
        return super().features(x, segments)

    def _attach(self, convolution: nn.Module) -> None:
        self._places.append(convolution)


class ResTiny3D(_Mixed, ResTiny):
    """ResTiny with three temporal convolutions."""


class MBTiny3D(_Mixed, MBTiny):
    """MBTiny with two temporal convolutions."""


_STEM = {"conv_xy": "conv1_s.conv", "conv": "conv1_t.conv", "bn": "conv1_t.bn"}
_HEAD = {"conv_5": "conv5.conv", "conv_5_bn": "conv5.bn"}
_BRANCH = {"a": "conv1.conv", "a_bn": "conv1.bn", "b": "conv2.conv", "b_bn": "conv2.bn", "c": "conv3.conv"}
_BRANCH |= {"c_bn": "conv3.bn", "se.fc1": "se_module.fc1", "se.fc2": "se_module.fc2"}


def from_slowfast(key: str) -> str | None:
    """Our name in `X3D` for a tensor of SlowFast's X3D; None for its classifier and for what is not X3D's."""
    module, _, leaf = key.rpartition(".")
    if stem := re.fullmatch(r"s1\.pathway0_stem\.(\w+)", module):
        return f"net.{_STEM[stem[1]]}.{leaf}"
    if block := re.fullmatch(r"s(\d)\.pathway0_res(\d+)\.(.+)", module):
        place = f"net.layer{int(block[1]) - 1}.{block[2]}"
        shortcut = {"branch1": "downsample.conv", "branch1_bn": "downsample.bn"}
        part = shortcut.get(block[3]) or _BRANCH.get(block[3].removeprefix("branch2."))
        return f"{place}.{part}.{leaf}" if part else None
    part = _HEAD.get(module.removeprefix("head."))
    return f"net.{part}.{leaf}" if part else None


def slowfast_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SlowFast's classifier `lin_5`, ReLU, dropout, `projection` as an nn.Sequential's state dict.

    Raises:
        CheckpointError: `state` does not hold it.
    """
    theirs = ("head.lin_5.weight", "head.projection.weight", "head.projection.bias")
    missing = [key for key in theirs if key not in state]
    if missing:
        raise CheckpointError(f"the weights hold no X3D classifier: {', '.join(missing)} missing")
    hidden, weight, bias = (state[key] for key in theirs)
    return {"0.weight": hidden.flatten(1), "3.weight": weight, "3.bias": bias}
