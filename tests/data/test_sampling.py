"""Frame sampling against closed forms and the published rules, written here 1-based as their authors do."""

from __future__ import annotations

import numpy as np
import pytest

from harness.contract.declarations import ClipRequest
from harness.data.sampling import sample, segments, subset, uniform
from harness.errors import DataError, UsageError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_segments_at_test_time() -> None:
    assert segments(24, 8, None).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert segments(10, 4, None).tolist() == [1, 3, 6, 8]  # tick 2.5: 1.25, 3.75, 6.25, 8.75
    for n in range(9, 200):
        tick = n / 8
        published = [int(tick / 2.0 + tick * x) + 1 for x in range(8)]
        assert (segments(n, 8, None) + 1).tolist() == published


def test_segments_of_short_videos() -> None:
    for draw in (None, rng()):
        assert segments(3, 5, draw).tolist() == [0, 1, 2, 2, 2]
        assert segments(3, 5, draw, short="first").tolist() == [0, 0, 0, 0, 0]
        assert segments(1, 2, draw).tolist() == [0, 0]
    assert segments(5, 5, None).tolist() == [0, 1, 2, 3, 4]


def test_segments_in_training_draw_one_of_each() -> None:
    draws = np.stack([segments(29, 8, rng(s)) for s in range(300)])  # 29 // 8 = 3: the last five never come
    assert (draws // 3 == np.arange(8)).all()
    assert draws.max() == 23 and set(np.unique(draws)) == set(range(24))


def test_uniform() -> None:
    assert uniform(24, 8, None).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert uniform(3, 6, None).tolist() == [0, 0, 1, 1, 2, 2]
    draws = np.stack([uniform(29, 8, rng(s)) for s in range(300)])
    assert draws.min() == 0 and draws.max() == 28
    low = np.floor(np.arange(8) / 8 * 29)
    assert (draws >= low).all() and (draws <= np.ceil((np.arange(8) + 1) / 8 * 29)).all()


def test_subset_and_positions() -> None:
    requests = [ClipRequest(12, "candidates", "uniform"),
                ClipRequest(4, "glance", "subset", subset_of="candidates", group=3)]
    indices, positions = sample(requests, 24, None)
    assert positions == {"glance": pytest.approx([1, 4, 7, 10])}
    assert indices["glance"].tolist() == indices["candidates"][[1, 4, 7, 10]].tolist()
    drawn = np.stack([subset(4, 3, rng(s)) for s in range(100)])
    assert (drawn // 3 == np.arange(4)).all() and len(np.unique(drawn)) == 12


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(UsageError, match="must come before"):
        sample([ClipRequest(4, "glance", "subset", subset_of="candidates", group=3)], 24, None)
    with pytest.raises(DataError, match="without frames"):
        sample([ClipRequest(4)], 0, None)


def test_two_lists_are_drawn_independently() -> None:
    requests = [ClipRequest(8, "glance"), ClipRequest(8, "focus")]
    indices, _ = sample(requests, 240, rng())
    assert (indices["glance"] != indices["focus"]).any()
