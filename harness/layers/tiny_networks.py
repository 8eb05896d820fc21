"""The networks made for two CPU cores and the embedded sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.layers.backbone import Backbone


def conv_bn(cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm and, with `act`, ReLU; 'same' padding."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU(inplace=True)] if act else []))


class ResTiny(Backbone):
    """A residual network of 173 k parameters: 8.50 MMAC at 64 px, 2.13 at 32 px.

    It shrinks by averaging only: strided convolutions would make the gradient through a differentiable
    crop noise (docs/embedded-sets.md#what-failed).
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

    The stride of 4 matters: from a 2x2 map a spatial policy is hardly learnt (docs/embedded-sets.md#what-failed).
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
