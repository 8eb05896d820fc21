"""Proximal policy optimisation for decisions taken frame by frame: returns, losses, a recurrent actor-critic.

    policy = ActorCritic(encoder, code=1024, hidden=1024, outputs=49)
    out_BTA, value_BT, _ = policy(maps_BTDHW)
    acts = Categorical(logits=out_BTA)
    actions_BT = acts.sample()
    returns_TB = normalised(discounted_returns(rewards_TB, gamma=0.7))
    losses = ppo_losses(acts.log_prob(actions_BT), acts.log_prob(actions_BT).detach(), value_BT, returns_BT,
                        acts.entropy())

Shapes: B videos, T steps, A outputs of the actor; other leading shapes are welcome wherever it says (...).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.layers.precision import no_autocast


def discounted_returns(rewards_TB: Tensor, gamma: float) -> Tensor:
    """R_t = r_t + gamma * R_(t+1), along the first axis; same shape (T, ...)."""
    returns = torch.zeros_like(rewards_TB)
    ahead = torch.zeros_like(rewards_TB[0])
    for step in reversed(range(len(rewards_TB))):
        ahead = rewards_TB[step] + gamma * ahead
        returns[step] = ahead
    return returns


def normalised(returns: Tensor, *, eps: float = 1e-5) -> Tensor:
    """(R - mean) / (std + eps) over all values, with the unbiased standard deviation; 0 where there is only one.

    Any shape. Source: AdaFocus V1, GFNet (docs/methods/adafocus-v1.md#training).
    """
    if returns.numel() < 2:
        return torch.zeros_like(returns)
    return (returns - returns.mean()) / (returns.std() + eps)


def ppo_losses(
    log_probs: Tensor,
    acting_log_probs: Tensor,
    values: Tensor,
    returns: Tensor,
    entropies: Tensor,
    *,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
) -> dict[str, Tensor]:
    """The three terms of PPO's loss, each a mean, weighted and ready to be summed.

    The advantage is the return minus the critic's value, through which the actor sends no gradient to the
    critic. Where a batch gets one update, the acting policy is the trained one and `acting_log_probs` its own
    log-probabilities, detached: then the ratio is 1 and only its gradient matters.

    Args:
        log_probs: Of the actions taken, under the policy that is trained (...).
        acting_log_probs: Of the same actions when they were drawn (...).
        values: The critic's (...).
        returns: What it is to predict (...), normalised or not.
        entropies: Of the policy that is trained (...).
        clip: The ratio counts within 1 - clip .. 1 + clip.
        value_weight: Of the critic's mean squared error.
        entropy_weight: Of the bonus.

    Source: Schulman et al. 2017, equations 7 and 9; constants of AdaFocus V1 and GFNet
    (docs/methods/adafocus-v1.md#training).
    """
    ratio = (log_probs - acting_log_probs.detach()).exp()
    advantage = returns - values.detach()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return {
        "loss_policy": -surrogate.mean(),
        "loss_value": value_weight * (values - returns).square().mean(),
        "loss_entropy": -entropy_weight * entropies.mean(),
    }


class ActorCritic(nn.Module):
    """A code per step, a GRU over steps, and two linear layers: what to do, and how well it will go.

    Args:
        encoder: From one step's input (N, ...) to its code (N, code).
        code: Length of the code.
        hidden: Width of the GRU.
        outputs: A, outputs of the actor: logits of a choice, or parameters of a density.

    Source: AdaFocus V1; docs/methods/adafocus-v1.md#modules, #on-tsm.
    """

    def __init__(self, encoder: nn.Module, code: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.gru = nn.GRU(code, hidden, batch_first=True)
        self.actor = nn.Linear(hidden, outputs)
        self.critic = nn.Linear(hidden, 1)

    def forward(self, inputs_BT: Tensor, state_BH: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The actor's outputs (B, T, A), values (B, T), and the GRU's state after the last step (B, H).

        `inputs_BT` is (B, T, ...). Runs in the weights' precision, also inside autocast: a choice must not
        depend on it.
        """
        out_BTH, state_BH = self._roll(inputs_BT, state_BH)
        with no_autocast(out_BTH):
            return self.actor(out_BTH), self.critic(out_BTH)[..., 0], state_BH

    def act(self, inputs_BT: Tensor, state_BH: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, without the critic, which only training needs."""
        out_BTH, state_BH = self._roll(inputs_BT, state_BH)
        with no_autocast(out_BTH):
            return self.actor(out_BTH), state_BH

    def _roll(self, inputs_BT: Tensor, state_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        with no_autocast(inputs_BT):
            inputs = inputs_BT.to(self.actor.weight.dtype)
            codes_BTE = self.encoder(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
            out_BTH, state_1BH = self.gru(codes_BTE, None if state_BH is None else state_BH[None])
            return out_BTH, state_1BH[0]
