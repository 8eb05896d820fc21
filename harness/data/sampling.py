"""Which frames of a video a clip request sees; indices are 0-based.

Sources: TSN-style integer segments, docs/data.md#frames; real-valued segments of Uni-AdaFocus and the
all-first rule of V1-TSM for short videos, docs/data.md#frames (both 1-based there).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.contract.declarations import ClipRequest
from harness.errors import DataError, UsageError


def sample(
    requests: Sequence[ClipRequest], frames: int, rng: np.random.Generator | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Frame indices of every request for a video of `frames` frames.

    Args:
        requests: A `subset` comes after the request it draws from.
        frames: N >= 1.
        rng: The training draw; None for the test rule.

    Returns:
        Indices {name: (T,)} into the video, and positions {name: (T,)} of each `subset` within the
        request it draws from.
    """
    if frames < 1:
        raise DataError("a video without frames cannot be sampled; run `bench.py data check`")
    indices: dict[str, np.ndarray] = {}
    positions: dict[str, np.ndarray] = {}
    for request in requests:
        if request.sampler == "subset":
            parent = indices.get(request.subset_of or "")
            if parent is None or len(parent) != request.frames * request.group:
                raise UsageError(f"clip request {request.name!r}: {request.subset_of!r} must come before it and "
                                 f"hold {request.frames} x {request.group} frames")
            positions[request.name] = subset(request.frames, request.group, rng)
            indices[request.name] = parent[positions[request.name]]
        elif request.sampler == "uniform":
            indices[request.name] = uniform(frames, request.frames, rng)
        else:
            indices[request.name] = segments(frames, request.frames, rng, short=request.short)
    return indices, positions


def segments(n: int, t: int, rng: np.random.Generator | None, *, short: str = "repeat-last") -> np.ndarray:
    """T of N frames from T integer segments (TSN): one random frame each in training, the middle at test.

    In training segments have n // t frames, so the last n mod t frames are never drawn; at test
    index k is int(tick / 2 + tick * k), tick = n / t. With n < t (at test n <= t) all frames are
    taken and the last is repeated, or with `short='first'` every index is the first frame.
    """
    steps = np.arange(t)
    if rng is not None and n >= t:
        return steps * (n // t) + rng.integers(n // t, size=t)
    if rng is None and n > t:
        tick = n / t
        return np.floor(tick / 2 + tick * steps).astype(np.int64)
    return np.minimum(steps, n - 1) if short == "repeat-last" else np.zeros(t, dtype=np.int64)


def uniform(n: int, t: int, rng: np.random.Generator | None) -> np.ndarray:
    """T of N frames from T real-valued segments (Uni-AdaFocus): floor((k + u) / t * n), u = 1/2 at test."""
    offsets = 0.5 if rng is None else rng.random(t)
    return np.minimum(np.floor((np.arange(t) + offsets) / t * n), n - 1).astype(np.int64)


def subset(t: int, group: int, rng: np.random.Generator | None) -> np.ndarray:
    """Positions of one frame out of each of T runs of `group`: random in training, `group // 2` at test."""
    offsets = group // 2 if rng is None else rng.integers(group, size=t)
    return np.arange(t) * group + offsets
