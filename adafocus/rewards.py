"""What AdaFocus V1's policies are rewarded for, judged by its recurrent classifier; no gradients are meant to pass.

Shapes: B videos, T frames, D features, H hidden units of the classifier.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import UsageError, unknown
from harness.layers.precision import at_least_float32
from harness.layers.recurrent import RecurrentClassifier

Reward = Literal["random", "prev", "conf", "padding"]


def patch_rewards(
    reward: str,
    classifier: RecurrentClassifier,
    glance_BTD: Tensor,
    focus_BTD: Tensor,
    random_BTD: Tensor | None,
    target_B: Tensor,
) -> Tensor:
    """What each patch of a trajectory is worth (B, T); p is the probability of the true class after it.

    The classifier's state is carried along the trajectory; an alternative starts from the same state.

    Args:
        reward: `random`: p minus what a random patch would have given; `padding`: p minus what zero features
            would have given; `prev`: p minus p after the frame before (0 at the first); `conf`: p.
        classifier: In eval mode.
        glance_BTD: Features of the whole frames.
        focus_BTD: Features of the patches.
        random_BTD: Features of random patches; only `random` reads them.
        target_B: True classes.

    Raises:
        UsageError: `reward` is unknown, or `random` got no features.

    Source: AdaFocus V1 (`random`), its code (`prev`, `conf`); docs/methods/adafocus-v1.md#training.
    """
    states_BTH = classifier.roll(torch.cat((glance_BTD, focus_BTD), dim=2))
    p_BT = _truth(classifier, states_BTH, target_B)
    if reward == "conf":
        return p_BT
    if reward == "prev":
        return p_BT - F.pad(p_BT, (1, 0))[:, :-1]
    if reward == "random" and random_BTD is None:
        raise UsageError("reward 'random' needs the features of random patches")
    other_BTD = {"random": random_BTD, "padding": torch.zeros_like(focus_BTD)}.get(reward)
    if other_BTD is None:
        raise unknown("reward", reward, get_args(Reward))
    return p_BT - _would_be(classifier, glance_BTD, other_BTD, classifier.before(states_BTH), target_B)


def keep_rewards(
    classifier: RecurrentClassifier,
    glance_BTD: Tensor,
    focus_BTD: Tensor,
    keep_BT: Tensor,
    cost: float,
    target_B: Tensor,
) -> Tensor:
    """What keeping a patch is worth (B, T): what it adds to the true class's probability, minus `cost`; 0 if skipped.

    The classifier's state is carried along the decisions `keep_BT`, a skipped patch being zero features.

    Source: a reconstruction of V1+ (docs/methods/adafocus-v1.md#v1-plus).
    """
    before_BTH = classifier.before(classifier.roll(torch.cat((glance_BTD, focus_BTD * keep_BT[..., None]), dim=2)))
    seen_BT = _would_be(classifier, glance_BTD, focus_BTD, before_BTH, target_B)
    unseen_BT = _would_be(classifier, glance_BTD, torch.zeros_like(focus_BTD), before_BTH, target_B)
    return keep_BT * (seen_BT - unseen_BT - cost)


def _would_be(
    classifier: RecurrentClassifier, glance_BTD: Tensor, focus_BTD: Tensor, before_BTH: Tensor, target_B: Tensor
) -> Tensor:
    """Probability of the true class (B, T) if these features came after the states `before_BTH`."""
    features_N1D = torch.cat((glance_BTD, focus_BTD), dim=2).flatten(0, 1)[:, None]
    states_N1H = classifier.roll(features_N1D, before_BTH.flatten(0, 1))
    return _truth(classifier, states_N1H[:, 0].unflatten(0, glance_BTD.shape[:2]), target_B)


def _truth(classifier: RecurrentClassifier, states_BTH: Tensor, target_B: Tensor) -> Tensor:
    """Probability of the true class at each step (B, T)."""
    scores_BTC = at_least_float32(classifier.classify(states_BTH)).softmax(-1)
    return scores_BTC.gather(2, target_B[:, None, None].expand(-1, states_BTH.shape[1], 1))[..., 0]
