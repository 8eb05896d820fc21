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
from typing import Any

import torch
import torchvision
from torch import Tensor

from harness.errors import CheckpointError, UsageError, unknown
from harness.layers.backbone import Backbone
from harness.layers.image_networks import MobileNetV2, ResNet, mobilenet_from_flat
from harness.layers.tiny_networks import MBTiny, ResTiny

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


OVER_TIME: Mapping[str, Callable[..., Backbone]] = {
    "x3d_s": _over_time("x3d_s", "X3D", 2.2),
    "x3d_l": _over_time("x3d_l", "X3D", 5.0),
    "mbtiny3d": _over_time("mbtiny3d", "MBTiny3D"),
    "restiny3d": _over_time("restiny3d", "ResTiny3D"),
}
"""Those that convolve over time."""
BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "restiny": ResTiny,
    "mbtiny": MBTiny,
    "mobilenet_v2": MobileNetV2,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    **OVER_TIME,
}
