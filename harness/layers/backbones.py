"""The networks that methods are built of, behind one face: feature map, pooled vector, width, stride.

    net = build_backbone("resnet50")
    net(frames)            # (N, 2048), global average
    net.features(frames)   # (N, 2048, h, w), sides divided by net.stride

`restiny` and `mbtiny` are made for two CPU cores and the embedded sets; the others are torchvision's. Those
that convolve over time too stand in `harness.layers.x3d`.
None has a classifier: heads belong to the method. Weights come from the harness (`InitFrom`), which
reads files named in `IMAGENET_FILES` through `imagenet_state`; nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor, nn

from harness.errors import CheckpointError, UsageError, unknown
from harness.layers.temporal_shift import TemporalShift

Value = TypeVar("Value")

IMAGENET_FILES: Mapping[str, tuple[str, ...]] = {
    "resnet18": ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"),
    "resnet34": ("resnet34-b627a593.pth", "resnet34-333f7ec4.pth"),
    "resnet50": ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth", "resnet50-11ad3fa6.pth"),
    "resnet50@96": ("Initialization_model_prime_resnet50_patch_size_96.pth",),
    "mobilenet_v2": ("mobilenet_v2-b0353104.pth", "mobilenetv2_1.0-f2a8633.pth.tar", "mobilenet_v2-7ebf99e0.pth"),
    "mobilenet_v2@tsm": ("mobilenetv2_1.0-f2a8633.pth.tar", "mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth"),
    "x3d_s": ("x3d_s.pyth",),
    "x3d_l": ("x3d_l.pyth",),
    "x3d_s-head": ("x3d_s.pyth",),
    "x3d_l-head": ("x3d_l.pyth",),
}
"""Names looked for in `--weights-dir`, in this order: the weights the papers start from come first. X3D's are
trained on Kinetics-400; `-head` is its classifier, for methods that start from that too. `mobilenet_v2@tsm` is
for methods whose authors start from the TSM authors' file."""

TINY = ("restiny", "mbtiny")
"""Backbones whose pre-training is the stills of an embedded set."""


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


def build_backbone(name: str, *, shift: bool = False) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: One of `BACKBONES`.
        shift: With temporal shift (TSM); the parameter names stay the same.

    Raises:
        UsageError: The name is unknown.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return BACKBONES[name](shift=shift)


def published(name: str, version: str) -> str:
    """`NAME@VERSION` where `IMAGENET_FILES` has such weights of a backbone, else NAME."""
    return f"{name}@{version}" if f"{name}@{version}" in IMAGENET_FILES else name


def imagenet_state(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's own state dict out of a published checkpoint, without its classifier.

    Args:
        name: A key of `IMAGENET_FILES`.
        checkpoint: Content of one of those files (torchvision's names; for MobileNetV2 also the flat
            names of the TSM authors' file, bare or under `state_dict`; for X3D SlowFast's, bare or under
            `model_state`).

    Raises:
        CheckpointError: Tensors are missing, left over or of another shape.
    """
    state = dict(checkpoint.get("state_dict", checkpoint.get("model_state", checkpoint)))
    state = {k.removeprefix("module."): v for k, v in state.items()}
    if name.startswith("x3d"):
        from harness.layers.x3d import from_slowfast, slowfast_head

        if name.endswith("-head"):
            return slowfast_head(state)
        state = {ours: v for k, v in state.items() if (ours := from_slowfast(k)) is not None}
    if name.partition("@")[0] == "mobilenet_v2":
        state = {re.sub(r"^features\.", "blocks.", k): v for k, v in mobilenet_from_flat(state).items()}
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    with torch.device("meta"):
        expected = build_backbone(name.partition("@")[0]).state_dict()
    for key in expected.keys() - state.keys():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.long)
    odd = sorted(expected.keys() ^ state.keys())
    odd += [k for k in sorted(expected.keys() & state.keys()) if expected[k].shape != state[k].shape]
    if odd:
        raise CheckpointError(
            f"the weights for {name} do not fit: {len(odd)} tensors are missing, unknown or of another shape "
            f"({', '.join(odd[:5])} ...); expected one of {', '.join(IMAGENET_FILES[name])}"
        )
    return state


def mobilenet_from_flat(state: Mapping[str, Value]) -> dict[str, Value]:
    """Torchvision's names for a MobileNetV2 whose inverted residuals are flat Sequentials (adafocus.md 1.1).

    That is the layout of the TSM authors and of the AdaFocus checkpoints, also with temporal shift
    (`.net` in the name). A state dict in torchvision's own layout passes unchanged.
    """
    if not any(re.match(r"features\.\d+\.conv\.[67]\.", key) for key in state):
        return dict(state)
    return {_nested_name(key): value for key, value in state.items()}


_FLAT = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}


def _nested_name(key: str) -> str:
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)(?:\.net)?\.(.+)", key)
    if match is None:
        return key
    block, index, leaf = match.groups()
    place = (_FLAT_FIRST if block == "1" else _FLAT).get(index)
    return key if place is None else f"features.{block}.conv.{place}.{leaf}"


def conv_bn(cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm and, with `act`, ReLU; 'same' padding."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU(inplace=True)] if act else []))


class ResTiny(Backbone):
    """A residual network of 173 k parameters: 8.50 MMAC at 64 px, 2.13 at 32 px.

    It shrinks by averaging only: strided convolutions would make the gradient through a differentiable
    crop noise (synthetic.md 5.5).
    """

    dim = 96
    stride = 16

    def __init__(self, *, shift: bool = False) -> None:
        super().__init__(shift=shift)
        self.stem = nn.Sequential(conv_bn(3, 8, 3), nn.AvgPool2d(2), conv_bn(8, 16, 3))
        blocks = [_PooledResidual(cin, cout) for cin, cout in ((16, 24), (24, 48), (48, 96))]
        self.blocks = nn.Sequential(*blocks)
        for block in blocks:
            self._attach(block.conv1)

    def trunk(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class _PooledResidual(nn.Module):
    """Average pooling by 2, then two 3x3 convolutions beside a 1x1 shortcut."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(cin, cout, 3)
        self.conv2 = conv_bn(cout, cout, 3, act=False)
        self.shortcut = conv_bn(cin, cout, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 2)
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class MBTiny(Backbone):
    """Inverted residuals in 24 k parameters: 0.47 MMAC at 16 px, where its map is 4x4.

    The stride of 4 matters: from a 2x2 map a spatial policy is hardly learnt (synthetic.md 5.4).
    """

    dim = 64
    stride = 4

    def __init__(self, *, shift: bool = False) -> None:
        super().__init__(shift=shift)
        plan = ((12, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 1), (32, 32, 1))
        blocks = [_InvertedResidual(cin, cout, stride) for cin, cout, stride in plan]
        self.stem = conv_bn(3, 12, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(32, self.dim, 1)
        for block in blocks:
            if block.residual:
                self._attach(block.expand)

    def trunk(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.stem(x)))


class _InvertedResidual(nn.Module):
    """1x1 expansion by 3, 3x3 depthwise, linear 1x1 projection; a residual where the shapes agree."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        wide = 3 * cin
        self.residual = stride == 1 and cin == cout
        self.expand = conv_bn(cin, wide, 1)
        self.depthwise = conv_bn(wide, wide, 3, stride=stride, groups=wide)
        self.project = conv_bn(wide, cout, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class ResNet(Backbone):
    """torchvision's ResNet under torchvision's parameter names (v1.5: a bottleneck strides in its 3x3)."""

    stride = 32

    def __init__(self, build: Callable[[], nn.Module], *, shift: bool = False) -> None:
        super().__init__(shift=shift)
        net: Any = build()
        self.dim = int(net.fc.in_features)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                self._attach(block.conv1)

    def trunk(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2 1.0; its `features.k` are `blocks.k` here."""

    dim = 1280
    stride = 32

    def __init__(self, *, shift: bool = False) -> None:
        super().__init__(shift=shift)
        self.blocks = torchvision.models.mobilenet_v2(weights=None).features
        for block in self.blocks:
            if getattr(block, "use_res_connect", False) and len(block.conv) == 4:
                self._attach(block.conv[0])

    def trunk(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def _resnet(name: str) -> Callable[..., Backbone]:
    return lambda *, shift=False: ResNet(lambda: getattr(torchvision.models, name)(weights=None), shift=shift)


def _over_time(name: str, cls: str, *args: Any) -> Callable[..., Backbone]:
    """A network of `harness.layers.x3d`, imported when it is built (mmaction2 takes seconds)."""

    def build(*, shift: bool = False) -> Backbone:
        if shift:
            raise UsageError(f"{name} convolves over time already; it takes no temporal shift")
        from harness.layers import x3d

        backbone: Backbone = getattr(x3d, cls)(*args)
        return backbone

    return build


BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "restiny": ResTiny,
    "mbtiny": MBTiny,
    "mobilenet_v2": MobileNetV2,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "x3d_s": _over_time("x3d_s", "X3D", 2.2),
    "x3d_l": _over_time("x3d_l", "X3D", 5.0),
    "mbtiny3d": _over_time("mbtiny3d", "MBTiny3D"),
    "restiny3d": _over_time("restiny3d", "ResTiny3D"),
}
