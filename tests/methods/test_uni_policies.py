"""Uni-AdaFocus's policies and the losses they learn from: closed forms, routing, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adafocus import uni_policies
from adafocus.uni_policies import (
    InterpolationHead,
    SpatialPolicy,
    TemporalPolicy,
    monte_carlo_logits,
    per_candidate,
    size_prior,
)
from harness.layers.crop import box_stretch


def maps(batch: int = 2, frames: int = 8) -> Tensor:
    return torch.randn(batch, frames, 6, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kernel", "boxes"), [(1, 8), (8, 1)])
def test_boxes_per_frame_or_per_video(kernel: int, boxes: int) -> None:
    actions = SpatialPolicy(6, 4, 5, kernel)(maps())
    assert actions.shape == (2, boxes, 4)
    assert 0 < actions.min() < actions.max() < 1


def test_centred_policies_start_in_the_middle() -> None:
    actions = SpatialPolicy(6, 4, 5, centred=True, outputs=2).eval()(maps())
    torch.testing.assert_close(actions, torch.full((2, 8, 2), 0.5), atol=0.01, rtol=0)
    weights = TemporalPolicy(6, 5, centred=True).eval()(maps().mean((3, 4)))
    torch.testing.assert_close(weights, torch.full((2, 8), 1 / 8), atol=0.01, rtol=0)


def test_policies_keep_their_precision_in_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert SpatialPolicy(6, 4, 5)(maps()).dtype == torch.float32
        assert TemporalPolicy(6, 5)(maps().mean((3, 4)).bfloat16()).dtype == torch.float32


def test_weights_see_their_neighbours_only() -> None:
    """Two 3-wide convolutions: what a frame is worth, before the softmax, rests on the two to either side."""
    policy, x = TemporalPolicy(6, 5).eval(), maps().mean((3, 4))
    seen: list[Tensor] = []
    policy.Tconv.register_forward_hook(lambda _module, _inputs, out: seen.append(out[:, 0, :, 0]))
    changed = x.clone()
    changed[:, 4] += 1
    before, after = policy(x), policy(changed)
    torch.testing.assert_close(before, seen[0].softmax(1))
    apart = (seen[1] - seen[0]).abs().amax(0)
    assert torch.equal(apart[[0, 1, 7]], torch.zeros(3))
    assert (apart[2:7] > 1e-5).all(), apart
    assert (after - before).abs().min() > 0, "the softmax shares the change out among all"


def test_actions_are_interpolated() -> None:
    """With three candidates per glance frame the middle one has the glance frame's own box."""
    actions = torch.rand(2, 8, 4)
    spread = per_candidate(actions, 24)
    torch.testing.assert_close(spread[:, 1::3], actions)
    torch.testing.assert_close(spread[:, 2], actions[:, 0] * 2 / 3 + actions[:, 1] / 3)


def test_size_prior() -> None:
    assert size_prior(torch.tensor([[[0.3, 0.9, 1.0, 0.5]]])).item() == pytest.approx(0.125)


def test_first_frame_is_the_weighted_mean() -> None:
    logits, weights = torch.randn(3, 6, 4), torch.rand(3, 6).softmax(1)
    expected = (weights[..., None] * logits).sum(1)
    torch.testing.assert_close(monte_carlo_logits(logits, weights, 1, draws=2), expected)


def test_equal_weights_give_the_mean() -> None:
    """Each frame is equally likely to be gone, so the expectation stays the mean."""
    logits = torch.randn(2, 6, 4)
    found = monte_carlo_logits(
        logits, torch.full((2, 6), 1 / 6), 2, draws=20000, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found, logits.mean(1), atol=0.02, rtol=0)


def test_second_frame_by_hand() -> None:
    """Weights 1/2, 1/4, 1/4: after frame 0 is gone (1/2) the others have 1/2 each; after one of them, 2/3 and 1/3."""
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    found = monte_carlo_logits(torch.eye(3)[None], weights, 2, draws=40000, generator=torch.Generator().manual_seed(0))
    second = torch.tensor([2 / 4 * 2 / 3, 1 / 2 * 1 / 2 + 1 / 4 * 1 / 3, 1 / 2 * 1 / 2 + 1 / 4 * 1 / 3])
    torch.testing.assert_close(found[0], (weights[0] + second) / 2, atol=0.01, rtol=0)


def test_weights_learn_which_frame_tells() -> None:
    """Raising the weight of a frame whose logits are right lowers the loss; the denominator has no gradient."""
    logits = torch.zeros(1, 4, 3)
    logits[0, 2, 1] = 5.0
    weights = torch.full((1, 4), 0.25, requires_grad=True)
    found = monte_carlo_logits(logits, weights, 1)
    torch.nn.functional.cross_entropy(found, torch.tensor([1])).backward()
    assert weights.grad is not None
    assert weights.grad[0, 2] < 0
    assert torch.equal(weights.grad[0, [0, 1, 3]], torch.zeros(3))


def test_a_certain_frame_does_not_break_it() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    found = monte_carlo_logits(torch.randn(1, 3, 4), weights, 2)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(weights.grad).all()


def test_every_term_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the frames that are gone at i = 2 need not hold the one that was gone at i = 1."""
    drawn: list[tuple[int, ...]] = []
    noise = uni_policies.gumbel_noise

    def spy(like: Tensor, *rest: object) -> Tensor:
        drawn.append(tuple(like.shape))
        return noise(like, *rest)

    monkeypatch.setattr(uni_policies, "gumbel_noise", spy)
    monte_carlo_logits(torch.randn(2, 6, 4), torch.full((2, 6), 1 / 6), 4, draws=16)
    assert drawn == [(16, 2, 6)] * 3


def test_given_frames_are_taken_out() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    gone = [torch.tensor([[[0]], [[1]]]), torch.tensor([[[0, 2]], [[1, 2]]])]  # two draws of one and of two frames
    found = monte_carlo_logits(torch.eye(3)[None], weights, 3, draws=2, gone=gone)
    one = (torch.tensor([0.0, 0.6, 0.4]) + torch.tensor([5 / 7, 0.0, 2 / 7])) / 2
    two = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(found[0], (weights[0] + one + two) / 3)


def test_interpolation_head_trains_boxes_only() -> None:
    head = InterpolationHead(6, 5, 2, box_stretch(32, 27, 64))
    x, actions = maps().requires_grad_(), torch.rand(2, 8, 4, requires_grad=True)
    head(x, actions).square().sum().backward()
    assert x.grad is None
    assert actions.grad is not None
    assert (actions.grad.abs().sum((0, 1)) > 0).all()


def test_one_box_for_all_frames() -> None:
    head = InterpolationHead(6, 5, 2, box_stretch(32, 27, 64))
    box = torch.rand(2, 1, 4)
    torch.testing.assert_close(head(maps(), box), head(maps(), box.expand(2, 8, 4)))
