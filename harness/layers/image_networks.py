"""torchvision's networks for images, and the other names that their weights are published under."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torchvision
from torch import Tensor, nn

from harness.layers.backbone import Backbone

Value = TypeVar("Value")


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


def mobilenet_from_flat(state: Mapping[str, Value]) -> dict[str, Value]:
    """Torchvision's names for a MobileNetV2 whose inverted residuals are flat Sequentials.

    That is the layout of the TSM authors and of the AdaFocus checkpoints, also with temporal shift
    (`.net` in the name). A state dict in torchvision's own layout passes unchanged.

    Source: docs/methods/building-blocks.md#backbones.
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
