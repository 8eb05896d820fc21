"""Batch norms that leave their usual ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside `module` use the batch's own statistics, and their running ones stay as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(part.training, part.track_running_stats) for part in norms]
    for part in norms:
        part.training, part.track_running_stats = True, False
    try:
        yield
    finally:
        for part, (training, tracking) in zip(norms, before, strict=True):
            part.training, part.track_running_stats = training, tracking
