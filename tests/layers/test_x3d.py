"""Networks over time: multiply-accumulates in closed form, SlowFast's names, clips that stay apart."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.errors import CheckpointError, UsageError
from harness.layers.backbones import build_backbone, imagenet_state
from harness.layers.x3d import X3D, from_slowfast, slowfast_head
from harness.measure.counter import MacMeter
from harness.store.artifacts import read_weights

HEAD = 432 * 2048 + 2048 * 400


def slowfast_names(net: X3D) -> dict[str, Tensor]:
    """The state dict of `net` under SlowFast's names."""
    blocks = {"conv1": "branch2.a", "conv2": "branch2.b", "conv3": "branch2.c", "downsample": "branch1"}
    fixed = {"conv1_s.conv": "s1.pathway0_stem.conv_xy", "conv1_t.conv": "s1.pathway0_stem.conv"}
    fixed |= {"conv1_t.bn": "s1.pathway0_stem.bn", "conv5.conv": "head.conv_5", "conv5.bn": "head.conv_5_bn"}
    state = {}
    for key, value in net.state_dict().items():
        module, _, leaf = key.removeprefix("net.").rpartition(".")
        if module in fixed:
            state[f"{fixed[module]}.{leaf}"] = value
            continue
        layer, number, part, kind = module.split(".")
        inner = f"branch2.se.{kind}" if part == "se_module" else blocks[part] + ("_bn" if kind == "bn" else "")
        state[f"s{int(layer[-1]) + 1}.pathway0_res{number}.{inner}.{leaf}"] = value
    return state


@pytest.mark.parametrize(
    ("name", "frames", "side", "macs"), [("x3d_s", 16, 160, 2_415_437_312), ("x3d_l", 32, 128, 5_984_488_160)]
)
def test_published_macs(name: str, frames: int, side: int, macs: int) -> None:
    """docs/measurement.md#gflops, where the classifier is counted once per clip."""
    with torch.device("meta"), torch.no_grad(), MacMeter() as meter:
        maps = build_backbone(name).eval().features(torch.empty(frames, 3, side, side), frames)
    assert meter.total == macs - HEAD
    assert maps.shape == (frames, 432, side // 32, side // 32)


@pytest.mark.parametrize(("name", "side", "extra"), [("restiny3d", 32, 4_800), ("mbtiny3d", 16, 2_688)])
def test_small_networks_cost_three_macs_per_mixed_value(name: str, side: int, extra: int) -> None:
    """restiny mixes 16, 24 and 48 channels on maps of 8, 4 and 2; mbtiny 24 and 32 on 4x4."""
    totals = []
    for which in (name, name.removesuffix("3d")):
        with torch.device("meta"), torch.no_grad(), MacMeter() as meter:
            build_backbone(which).eval().features(torch.empty(8, 3, side, side), 8)
        totals.append(meter.total / 8)
    assert totals[0] - totals[1] == extra


@pytest.mark.parametrize("name", ["x3d_s", "mbtiny3d", "restiny3d"])
def test_frames_of_a_clip_mix_and_clips_do_not(name: str) -> None:
    net = build_backbone(name).eval()
    frames = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        both = net(frames, segments=4)
        alone = torch.cat([net(frames[:4], segments=4), net(frames[4:], segments=4)])
        torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both, net(frames), rtol=1e-2, atol=0)


def test_order_of_frames_matters() -> None:
    net = build_backbone("restiny3d").eval()
    frames = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(net(frames, segments=4), net(frames.flip(0), segments=4).flip(0), atol=1e-3)


def test_a_copy_stands_alone() -> None:
    net = build_backbone("mbtiny3d").eval()
    twin = copy.deepcopy(net)
    frames = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = net(frames, segments=4)
        twin(frames, segments=2)
        for parameter in twin.parameters():
            parameter.zero_()
        torch.testing.assert_close(net.trunk(frames).mean((2, 3)), expected)


def test_slowfast_files(tmp_path: Path) -> None:
    """A file as SlowFast writes it fills the backbone and gives the classifier."""
    net = X3D(2.2)
    theirs = slowfast_names(net)
    assert {from_slowfast(key) for key in theirs} == set(net.state_dict())
    theirs |= {
        "head.lin_5.weight": torch.randn(2048, 432, 1, 1, 1),
        "head.projection.weight": torch.randn(400, 2048),
        "head.projection.bias": torch.randn(400),
    }
    path = tmp_path / "x3d_s.pyth"
    torch.save({"epoch": 1, "model_state": theirs, "cfg": "text"}, path)
    state = imagenet_state("x3d_s", read_weights(path))
    build_backbone("x3d_s").load_state_dict(state)
    assert torch.equal(state["net.layer2.0.downsample.conv.weight"], theirs["s3.pathway0_res0.branch1.weight"])
    head = imagenet_state("x3d_s-head", read_weights(path))
    assert {name: tuple(value.shape) for name, value in head.items()} == {
        "0.weight": (2048, 432), "3.weight": (400, 2048), "3.bias": (400,),
    }  # fmt: skip


def test_unfit_files_are_refused() -> None:
    theirs = slowfast_names(X3D(2.2))
    with pytest.raises(CheckpointError, match=r"x3d_l do not fit.*x3d_l.pyth"):
        imagenet_state("x3d_l", theirs)
    with pytest.raises(CheckpointError, match="no X3D classifier"):
        slowfast_head(theirs)
    with pytest.raises(UsageError, match="takes no temporal shift"):
        build_backbone("x3d_s", shift=True)
