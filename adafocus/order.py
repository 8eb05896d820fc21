"""The order in which AdaFocus V2 processes a clip's frames, so that early exits have seen all of it roughly."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UsageError, unknown

ORDERS = ("temporal", "middle-first", "coarse-to-fine")

_COARSE_TO_FINE_8 = [4, 1, 6, 2, 0, 3, 5, 7]


def frame_order(order: str | Sequence[int], frames: int) -> list[int]:
    """Frame positions (0-based) in processing order, a permutation of range(frames).

    Args:
        order: `temporal`; `middle-first`, the paper's 7, 0, 15, 3, 11, ... for 16 frames: middle, first,
            last, then the middles of what lies between; `coarse-to-fine`, for 8 frames 4, 1, 6, 2, 0, 3, 5, 7
            (no border frame early), else as middle-first; or the permutation itself.
        frames: T.

    Raises:
        UsageError: An unknown name, or numbers that are no permutation.

    Source: docs/methods/adafocus-v2.md#modules; docs/embedded-sets.md#networks.
    """
    if not isinstance(order, str):
        if sorted(order) != list(range(frames)):
            raise UsageError(f"order {list(order)} is not a permutation of 0 .. {frames - 1}")
        return list(order)
    if order == "temporal":
        return list(range(frames))
    if order == "coarse-to-fine" and frames == 8:
        return list(_COARSE_TO_FINE_8)
    if order in ORDERS:
        return _middle_first(frames)
    raise unknown("frame order", order, ORDERS)


def _middle_first(frames: int) -> list[int]:
    last = frames - 1
    found = list(dict.fromkeys((last // 2, 0, last)))
    gaps = [(0, last // 2), (last // 2, last)]
    while gaps:
        middles = [((low + high) // 2, low, high) for low, high in gaps if high - low > 1]
        found += [middle for middle, _, _ in middles]
        gaps = [gap for middle, low, high in middles for gap in ((low, middle), (middle, high))]
    return found
