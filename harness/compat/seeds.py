"""Randomness that a resumed training repeats."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Reseeds Python, numpy and torch at each epoch's start from (seed, stage, epoch, rank).

    The Runner does not restore random state on resume; with this hook, training resumed at an epoch's
    end goes on as the undisturbed run would (dropout, Gumbel noise, the loader's worker seeds).

    Args:
        seed: The run's seed.
        stage: Name of the training stage, so that stages draw different numbers.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int, stage: str = "") -> None:
        self.seed = seed
        self.stage = stage

    def before_train_epoch(self, runner: Runner) -> None:
        """Reseed all generators."""
        value = epoch_seed(self.seed, self.stage, runner.epoch, get_dist_info()[0])
        random.seed(value)
        np.random.seed(value % 2**32)
        torch.manual_seed(value)


def epoch_seed(seed: int, stage: str, epoch: int, rank: int = 0) -> int:
    """A 63-bit seed that depends on all four; neighbouring values give unrelated streams."""
    text = f"{seed}|{stage}|{epoch}|{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
