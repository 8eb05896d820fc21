"""What the benchmark times as the authors' way computes what ours does; nothing is timed here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.measure.gate import decide
from tests.benchmarks import authors_way
from tests.benchmarks.authors_way import (
    AUTHORS_WAY,
    Comparison,
    Setup,
    against_authors,
    built,
    exit_videos,
    in_turns,
    inputs,
    leaving_early,
    on_cuda,
)


@pytest.mark.parametrize("method", AUTHORS_WAY)
def test_the_authors_way_gives_our_logits(method: str) -> None:
    model = built(method, "cpu", "tiny")
    clips = inputs(model, 3, "cpu")
    with torch.inference_mode():
        theirs, ours = AUTHORS_WAY[method](model, clips), model.infer(clips, trace=Trace(3))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0 and not torch.equal(ours[0], ours[1])


def test_both_sides_run_equally_often_and_take_turns_to_begin() -> None:
    calls: list[str] = []
    sides = [lambda clips, name=name: calls.append(name) or clips["x"] for name in "ab"]
    batch = {"x": torch.zeros(1)}
    slow, fast = in_turns(*sides, [batch, batch], rounds=3, device="cpu")
    assert len(slow) == len(fast) == 3
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa" + "aabb"  # the first round is the warm-up


def test_the_ratio_says_what_is_faster() -> None:
    slow, fast = (2.0, 2.1, 1.9, 2.0, 2.05), (1.0, 1.1, 0.9, 1.0, 1.05)
    found = Comparison("m", "full -> early", 1, "cpu", slow, fast, decide(fast, slow), macs_saved=0.5)
    assert found.speedup.ratio == pytest.approx(2)
    assert found.time_saved == pytest.approx(0.5)
    assert "2.00x" in found.line() and "0.500 / 0.500 = 1.00" in found.line()
    assert authors_way.THREADS == 2
    with pytest.raises(UsageError, match="adafocus-v1"):
        against_authors("tsn", 1)


def test_exits_are_timed_with_whole_batches() -> None:
    assert [exit_videos(batch) for batch in (1, 4, 8, 12)] == [8, 8, 8, 12]
    for batch in (0, 3, 6):
        with pytest.raises(UsageError, match=f"batch {batch}"):
            leaving_early("adafocus-v2", batch, setup=Setup(size="tiny"))
    assert on_cuda("cuda:0") and on_cuda("cuda") and not on_cuda("cpu")


@pytest.mark.parametrize("batch", [2, 6])
def test_macs_saved_are_those_of_the_full_forward(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    costs, full = authors_way._count("adafocus-v2", "tiny", 4)
    assert len(costs) == 2 and costs[-1] == full, "stopping at the last exit runs its head only"
    monkeypatch.setattr(authors_way, "EXIT_INPUTS", 4)
    monkeypatch.setattr(authors_way, "exit_costs", lambda *_: (costs, full))
    seen: list[int] = []

    def once(_, early, batches, *__):
        seen.extend(len(clips["frames"]) for clips in batches)
        for clips in batches:
            early(clips)
        return (2.0,) * 5, (1.0,) * 5

    monkeypatch.setattr(authors_way, "in_turns", once)
    found = leaving_early("adafocus-v2", batch, exit_every=4, setup=Setup(size="tiny"))
    assert seen == ([2, 2] if batch == 2 else [6])
    shares = [1 - np.mean(np.r_[np.full(k, costs[0]), np.full(sum(seen) - k, costs[1])]) / full
              for k in range(sum(seen) + 1)]  # fmt: skip
    assert found.macs_saved is not None and min(abs(found.macs_saved - share) for share in shares) < 1e-12
    assert found.macs_saved > 0.4


def test_a_stream_takes_the_exits_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same videos, thresholds and weights: what is saved in MACs is equal, rebatched or not."""
    costs, full = authors_way._count("adafocus-v2", "tiny", 2)
    monkeypatch.setattr(authors_way, "EXIT_INPUTS", 8)
    monkeypatch.setattr(authors_way, "STREAM_BATCHES", 4)
    monkeypatch.setattr(authors_way, "exit_costs", lambda *_: (costs, full))

    def once(slow, early, batches, *__):
        for clips in batches:
            slow(clips), early(clips)
        return (2.0,) * 5, (1.0,) * 5

    monkeypatch.setattr(authors_way, "in_turns", once)
    loop, stream = (
        leaving_early("adafocus-v2", 2, exit_every=2, stream=stream, setup=Setup(size="tiny"))
        for stream in (False, True)
    )
    assert stream.what.endswith("stream") and loop.macs_saved == pytest.approx(stream.macs_saved)
    assert 0 < stream.macs_saved < 1
