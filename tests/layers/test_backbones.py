"""Backbones: multiply-accumulates and parameters in closed form, weights under several names."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

from harness.errors import CheckpointError, UsageError
from harness.layers.backbones import BACKBONES, IMAGENET_FILES, build_backbone, imagenet_state
from harness.layers.image_networks import mobilenet_from_flat
from harness.measure.counter import MacMeter


@pytest.mark.parametrize(
    ("name", "side", "macs"),
    [
        ("resnet50", 224, 4_087_136_256),
        ("resnet50", 160, 2_085_273_600),
        ("resnet50", 128, 1_334_575_104),
        ("resnet50", 96, 750_698_496),
        ("mobilenet_v2", 224, 299_494_272),
        ("restiny", 64, 8_503_296),
        ("restiny", 32, 2_125_824),
        ("mbtiny", 16, 465_920),
    ],
)
def test_macs(name: str, side: int, macs: int) -> None:
    """The published counts (docs/measurement.md#gflops) and those of docs/embedded-sets.md#networks."""
    with torch.device("meta"), torch.no_grad(), MacMeter() as meter:
        build_backbone(name).eval()(torch.empty(1, 3, side, side))
    assert meter.total == macs


def test_restiny_macs_by_hand() -> None:
    """Convolutions at 64 px: stem, then blocks at 16, 8 and 4 px, each two 3x3 and a 1x1 shortcut."""
    stem = 3 * 9 * 8 * 64**2 + 8 * 9 * 16 * 32**2
    blocks = sum(
        (9 * cin * cout + 9 * cout * cout + cin * cout) * side**2
        for cin, cout, side in ((16, 24, 16), (24, 48, 8), (48, 96, 4))
    )
    with torch.no_grad(), MacMeter() as meter:
        build_backbone("restiny").eval()(torch.zeros(1, 3, 64, 64))
    assert meter.total == stem + blocks


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet50", 23_508_032), ("mobilenet_v2", 2_223_872), ("restiny", 172_728), ("mbtiny", 23_552)],
)
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_backbone(name).parameters()) == parameters


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_map_and_vector(name: str) -> None:
    net = build_backbone(name).eval()
    frames = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, vector = net.features(frames), net(frames)
    assert features.shape == (2, net.dim, 64 // net.stride, 64 // net.stride)
    torch.testing.assert_close(vector, features.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "places"),
    [("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("mobilenet_v2", 10), ("restiny", 3), ("mbtiny", 2)],
)
def test_shifted_places(name: str, places: int) -> None:
    """As many as in the TSM authors' networks (docs/methods/tsn-tsm.md#tsm); parameters keep their names."""
    with torch.device("meta"):
        shifted, plain = build_backbone(name, shift=True), build_backbone(name)
    assert shifted.shift is not None and shifted.shift.places == places
    assert list(shifted.state_dict()) == list(plain.state_dict())


def test_shifted_clips_are_separate() -> None:
    """Two clips side by side give what each gives alone; with one frame per clip TSM is the plain network's input
    with the shifted channels gone, so frames of one clip must matter to each other.
    """
    net = build_backbone("restiny", shift=True).eval()
    frames = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        both = net(frames, segments=3)
        torch.testing.assert_close(both, torch.cat([net(frames[:3], segments=3), net(frames[3:], segments=3)]))
        assert not torch.allclose(both, net(frames, segments=1))
    with pytest.raises(UsageError, match="frames per clip"):
        net(frames)
    with pytest.raises(UsageError, match="not clips of 4"):
        net(frames, segments=4)


def test_a_copy_has_its_own_shift() -> None:
    net = build_backbone("restiny", shift=True).eval()
    twin = copy.deepcopy(net)
    frames = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = net(frames, segments=2)
        twin(frames, segments=4)
        torch.testing.assert_close(net.trunk(frames).mean((2, 3)), expected)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'resnet50'"):
        build_backbone("resnet5")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_imagenet_state_of_torchvision(name: str) -> None:
    """torchvision's own checkpoint gives torchvision's features."""
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = build_backbone(name).eval()
    ours.load_state_dict(imagenet_state(name, theirs.state_dict()))
    frames = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if name == "resnet18":
            theirs.fc = torch.nn.Identity()
            expected = theirs(frames)
        else:
            expected = theirs.features(frames).mean((2, 3))
        torch.testing.assert_close(ours(frames), expected)


def test_flat_mobilenet_names() -> None:
    """The TSM authors' flat names, also with the shift's `.net`, come back to torchvision's."""
    state = torchvision.models.mobilenet_v2(weights=None).state_dict()
    nested = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
    first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
    flat = {}
    for key, value in state.items():
        parts = key.split(".")
        if len(parts) > 3 and parts[2] == "conv":
            inner, leaf = ".".join(parts[3:-1]), parts[-1]
            index = (first if parts[1] == "1" else nested)[inner]
            net = ".net" if parts[1] in ("3", "5") and index == "0" else ""
            key = f"features.{parts[1]}.conv.{index}{net}.{leaf}"
        flat[key] = value
    assert mobilenet_from_flat(flat).keys() == state.keys()
    assert mobilenet_from_flat(state) == state
    loaded = imagenet_state("mobilenet_v2", {"state_dict": {f"module.{k}": v for k, v in flat.items()}})
    assert torch.equal(loaded["blocks.2.conv.2.weight"], state["features.2.conv.2.weight"])


def test_unfit_weights_are_refused() -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"layer1.0.conv1.weight.*" + IMAGENET_FILES["resnet18"][0]):
        imagenet_state("resnet18", state)
