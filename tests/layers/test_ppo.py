"""PPO: returns, advantages and gradients against cases computed by hand; a bandit with a known optimum."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from harness.layers.ppo import ActorCritic, discounted_returns, normalised, ppo_losses


def test_returns_by_hand() -> None:
    """gamma 1/2: R_2 = 4, R_1 = 2 + 4/2 = 4, R_0 = 1 + 4/2 = 3; the second video by the same rule."""
    rewards = torch.tensor([[1.0, 0.0], [2.0, -8.0], [4.0, 16.0]])
    assert discounted_returns(rewards, 0.5).tolist() == [[3.0, 0.0], [4.0, 0.0], [4.0, 16.0]]
    assert torch.equal(discounted_returns(rewards, 0.0), rewards)


def test_normalisation_by_hand() -> None:
    """1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9, divided by 3."""
    returns = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    std = (14 / 3) ** 0.5
    expected = torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / (std + 1e-5)
    torch.testing.assert_close(normalised(returns), expected)
    assert normalised(torch.tensor([7.0])).tolist() == [0.0]


def test_losses_by_hand() -> None:
    """Advantages 3, -3, 1, -1 (value 1 each) and ratios 1.5, 1.5, 0.5, 0.5: the clip takes whatever promises less."""
    acting = torch.zeros(4)
    log_probs = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    values = torch.ones(4, requires_grad=True)
    returns = torch.tensor([4.0, -2.0, 2.0, 0.0])
    entropies = torch.full((4,), 2.0)
    losses = ppo_losses(log_probs, acting, values, returns, entropies, clip=0.2)
    surrogate = [1.2 * 3, 1.5 * -3, 0.5 * 1, 0.8 * -1]
    assert losses["loss_policy"].item() == pytest.approx(-sum(surrogate) / 4)
    assert losses["loss_value"].item() == pytest.approx(0.5 * (9 + 9 + 1 + 1) / 4)
    assert losses["loss_entropy"].item() == pytest.approx(-0.02)
    losses["loss_policy"].backward()
    assert values.grad is None
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 4.5, -0.5, 0.0]) / 4)


def test_a_first_update_is_the_policy_gradient() -> None:
    """While the acting policy is the trained one: d loss / d logits = -A (one-hot - p), averaged."""
    logits = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    acts = Categorical(logits=logits)
    taken = torch.tensor([1])
    log_probs = acts.log_prob(taken)
    losses = ppo_losses(log_probs, log_probs, torch.zeros(1), torch.tensor([2.0]), acts.entropy())
    losses["loss_policy"].backward()
    torch.testing.assert_close(logits.grad, -2.0 * (torch.tensor([[0.0, 1.0, 0.0]]) - logits.detach().softmax(-1)))


def test_actor_critic_goes_on_where_it_stopped() -> None:
    torch.manual_seed(0)
    policy = ActorCritic(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), 6, 5, 4)
    inputs = torch.randn(2, 7, 3, 2, 2)
    out, value, state = policy(inputs)
    assert out.shape == (2, 7, 4) and value.shape == (2, 7) and state.shape == (2, 5)
    first, middle = policy.act(inputs[:, :3])
    later, last = policy.act(inputs[:, 3:], middle)
    torch.testing.assert_close(torch.cat((first, later), dim=1), out)
    torch.testing.assert_close(last, state)


def test_solves_a_contextual_bandit() -> None:
    """One arm of five pays in each of eight contexts; 200 updates must find all of them.

    The context is shown at the first step only and the arm pulled at the second, so the GRU has to remember.
    """
    torch.manual_seed(0)
    contexts, arms, batch = 8, 5, 64
    best = torch.arange(contexts) * 3 % arms
    policy = ActorCritic(nn.Linear(contexts, 16), 16, 16, arms)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)

    def shown(context: torch.Tensor) -> torch.Tensor:
        inputs = torch.zeros(len(context), 2, contexts)
        inputs[torch.arange(len(context)), 0, context] = 1
        return inputs

    for _ in range(200):
        context = torch.randint(contexts, (batch,))
        out, values, _ = policy(shown(context))
        acts = Categorical(logits=out)
        arm = acts.sample()
        rewards = torch.stack((torch.zeros(batch), (arm[:, 1] == best[context]).float()))
        returns = normalised(discounted_returns(rewards, 0.7)).T
        log_probs = acts.log_prob(arm)
        losses = ppo_losses(log_probs, log_probs, values, returns, acts.entropy())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    out, _ = policy.act(shown(torch.arange(contexts)))
    assert torch.equal(out[:, 1].argmax(-1), best)
