"""Gumbel decisions: distribution, one-hot values, gradient, seeding; resize and initialisers beside them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.layers.backbones import build_backbone
from harness.layers.gumbel import decide, gumbel_noise, straight_through_gumbel
from harness.layers.init import normal_linear, tsn_groups
from harness.layers.resize import resize

LOGITS = torch.tensor([0.6, 0.3, 0.1]).log()


def test_samples_follow_softmax_at_any_temperature() -> None:
    """5 standard errors of 20000 draws are below 0.018."""
    torch.manual_seed(0)
    for tau in (0.1, 5.0):
        samples = straight_through_gumbel(LOGITS.expand(20_000, 3), tau)
        torch.testing.assert_close(samples.mean(0), LOGITS.exp(), atol=0.018, rtol=0)
    drawn = decide(LOGITS.expand(20_000, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.bincount(minlength=3) / 20_000, LOGITS.exp(), atol=0.018, rtol=0)


def test_noise_has_gumbel_moments() -> None:
    """Mean is Euler's constant, variance pi^2 / 6."""
    noise = gumbel_noise(torch.empty(100_000), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.06)


def test_one_hot_forward_soft_backward() -> None:
    logits = LOGITS.repeat(16, 1).requires_grad_()
    sample = straight_through_gumbel(logits, tau=1.0)
    torch.testing.assert_close(sample.max(1).values, torch.ones(16))
    torch.testing.assert_close(sample.sum(1), torch.ones(16))
    (gradient,) = torch.autograd.grad((sample * torch.tensor([1.0, 2.0, 4.0])).sum(), logits)
    assert (gradient.abs().sum(1) > 0).all()
    torch.testing.assert_close(gradient.sum(1), torch.zeros(16))  # softmax does not see a common offset


def test_decisions() -> None:
    assert decide(LOGITS).item() == 0
    first, again = (decide(LOGITS.expand(50, 3), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and len(first.unique()) > 1


def test_resize() -> None:
    frames = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(frames, 4) is frames
    assert resize(frames, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize(frames, 2, "nearest").flatten().tolist() == [0, 2, 8, 10]
    assert resize(torch.zeros(2, 3, 64, 64), 48).shape == (2, 3, 48, 48)


def test_groups_of_the_tsn_family() -> None:
    """Linear x5, its bias x10 without decay, no decay on batch norms, everything else by default."""
    net = nn.ModuleDict({"backbone": build_backbone("mbtiny"), "fc": normal_linear(64, 3)})
    linear, biases, norms = tsn_groups(net)
    assert (linear.modules, linear.lr_mult, linear.decay_mult) == (("fc.weight",), 5.0, 1.0)
    assert (biases.modules, biases.lr_mult, biases.decay_mult) == (("fc.bias",), 10.0, 0.0)
    assert norms.decay_mult == 0 and norms.lr_mult == 1 and "backbone.stem.1" in norms.modules
    assert len(norms.modules) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert net["fc"].bias.abs().max() == 0 and 0 < net["fc"].weight.std() < 0.002
