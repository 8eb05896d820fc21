"""The networks of the AdaFocus family on TSM: shapes, means over frames, and what each head trains."""

from __future__ import annotations

import pytest
import torch

from adafocus.clip_nets import ShiftedNet, TwoHeadNet


def frames(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_shapes() -> None:
    net = TwoHeadNet("mbtiny", 5)
    maps = net.maps(frames(), 3)
    assert maps.shape == (6, net.dim, 16 // net.stride, 16 // net.stride)
    vectors = net.vectors(maps)
    assert vectors.shape == (6, net.dim)
    assert net.logits(vectors, 3).shape == (2, 5)
    assert net.aux_logits(vectors, 3).shape == (2, 3, 5)


def test_logits_are_the_mean_over_frames() -> None:
    net = TwoHeadNet("mbtiny", 4).eval()
    vectors = net.vectors(net.maps(frames(), 3))
    expected = torch.stack([net.head(vectors[:3].mean(0)), net.head(vectors[3:].mean(0))])
    torch.testing.assert_close(net.logits(vectors, 3), expected)
    expected = net.aux_head(vectors[3:].mean(0))
    torch.testing.assert_close(net.aux_logits(vectors, 3).mean(1)[1], expected)


def test_frames_of_a_clip_meet_and_clips_do_not() -> None:
    net = TwoHeadNet("mbtiny", 4).eval()
    clip = frames()
    other = clip.clone()
    other[4] += 1
    changed = (net.maps(clip, 3) - net.maps(other, 3)).abs().flatten(1).amax(1) > 0
    assert changed.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(("output", "trained"), [("logits", {"head"}), ("aux_logits", {"aux_head", "backbone"})])
def test_what_each_head_trains(output: str, trained: set[str]) -> None:
    net = TwoHeadNet("mbtiny", 4)
    vectors = net.vectors(net.maps(frames(), 3))
    getattr(net, output)(vectors, 3).square().sum().backward()
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None} == trained


def test_the_single_head_trains_all() -> None:
    net = ShiftedNet("mbtiny", 4)
    net.logits(net.vectors(net.maps(frames(), 3)), 3).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert 0 < net.head.weight.std() < 0.002
