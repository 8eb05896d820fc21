"""A stream says what the plain loop says, with fuller batches, in order, in bounded memory and time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.contract.trace import Trace
from harness.engine import stream as module
from harness.engine.stream import Rebatching, Result, whole_trace
from harness.errors import UsageError
from harness.measure.cost_table import CostTable
from tests.engine.toy import THRESHOLDS, Adder, videos

BATCH = 4


def plain(clips: Tensor, point: dict = THRESHOLDS, exits: int = 4) -> tuple[list[list[float]], list[int], np.ndarray]:
    """Logits, exits and GFLOPs of the loop over batches."""
    logits, left, cost = list[list[float]](), list[int](), list[np.ndarray]()
    recognizer = Adder(exits)
    for some in clips.split(BATCH):
        trace = Trace(len(some))
        with torch.inference_mode():
            logits += recognizer.infer({"frames": some}, point, trace=trace).tolist()
        left += [] if trace.exit_step is None else trace.exit_step.tolist()
        cost.append(gflops(trace))
    return logits, left, np.concatenate(cost)


def gflops(trace: Trace) -> np.ndarray:
    return CostTable(dict.fromkeys(trace.counts, 1e9)).gflops(trace)


def lists(clips: Tensor, size: int) -> Iterator[dict[str, Tensor]]:
    for some in clips.split(size):
        yield {"frames": some}


@pytest.mark.parametrize("size", [1, 3, BATCH, 11])
def test_results_exits_order_and_cost_are_those_of_the_plain_loop(size: int) -> None:
    clips = videos(37)
    stream = Rebatching(Adder(), THRESHOLDS, batch=BATCH)
    found = list(stream.results(lists(clips, size)))
    logits, exits, cost = plain(clips)
    assert len(set(exits)) == 3, "every exit is taken by somebody"
    assert [r.place for r in found] == list(range(37))
    assert torch.stack([r.logits for r in found]).tolist() == logits
    trace = whole_trace(found)
    assert trace.exit_step is not None and trace.exit_step.tolist() == exits
    assert gflops(trace).tolist() == cost.tolist()


def test_segments_without_an_exit_between_them_are_one_and_late_batches_are_full() -> None:
    recognizer, clips = Adder(), videos(64)
    stream = Rebatching(recognizer, THRESHOLDS, batch=BATCH)
    list(stream.results(lists(clips, 1)))
    assert stream.stops == [0, 2, 3]
    assert {(first, last) for first, last, _ in recognizer.calls} == {(0, 0), (1, 2), (3, 3)}
    _, exits, _ = plain(clips)
    for sizes, stop in zip(stream.executed, (0, 1, 3), strict=True):
        ran = sum(e >= stop for e in exits)
        assert sizes[BATCH] == ran // BATCH and sizes.total() == -(-ran // BATCH), "one batch of them is not full"


def test_the_deepest_full_batch_runs_first() -> None:
    recognizer = Adder()
    stay_once = torch.zeros(8, 4, 3, 2, 2, dtype=torch.uint8)
    list(Rebatching(recognizer, THRESHOLDS, batch=BATCH).results(lists(stay_once, 8)))
    assert recognizer.calls == [(0, 0, 4), (1, 2, 4), (3, 3, 4)] * 2


def test_what_is_left_at_the_end_runs_from_the_first_segment_to_the_last() -> None:
    recognizer, clips = Adder(), torch.zeros(6, 4, 3, 2, 2, dtype=torch.uint8)
    clips[[0, 1, 5], 0] = 9
    list(Rebatching(recognizer, THRESHOLDS, batch=BATCH).results(lists(clips, 1)))
    assert recognizer.calls == [(0, 0, 4), (0, 0, 2), (1, 2, 3), (3, 3, 3)]


def test_a_method_without_exits_runs_batch_by_batch() -> None:
    recognizer, clips = Adder(exits=0), videos(10)
    stream = Rebatching(recognizer, batch=BATCH)
    found = list(stream.results(lists(clips, 3)))
    assert [rows for *_, rows in recognizer.calls] == [4, 4, 2]
    assert torch.stack([r.logits for r in found]).tolist() == plain(clips, {}, 0)[0]
    assert {r.exit_step for r in found} == {None} and whole_trace(found).exit_step is None


def test_every_video_may_see_all_of_a_method_with_exits() -> None:
    found = list(Rebatching(Adder(), batch=BATCH).results(lists(videos(5), 5)))
    assert [r.exit_step for r in found] == [None] * 5


class Clock:
    """Goes on by one second per video that is taken in."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def ticking(self, clips: Tensor) -> Iterator[dict[str, Tensor]]:
        for some in clips.split(1):
            self.now += 1
            yield {"frames": some}


@pytest.mark.parametrize(("limit", "longest"), [(2.0, 4.0), (1e9, 40.0)])
def test_an_old_video_waits_no_longer_for_others(limit: float, longest: float) -> None:
    clips = torch.full((40, 4, 3, 2, 2), 9, dtype=torch.uint8)
    clips[8] = 0  # it stays where all others leave
    clock, recognizer = Clock(), Adder()
    stream = Rebatching(recognizer, THRESHOLDS, batch=BATCH, max_wait_s=limit, clock=clock)
    found = list(stream.results(clock.ticking(clips)))
    assert [r.exit_step for r in found] == [0] * 8 + [3] + [0] * 31
    assert max(r.seconds for r in found) <= longest
    assert found[8].seconds == (3.0 if limit == 2.0 else 31.0), "one full batch, or to the end of the stream"


def test_an_early_video_does_not_hold_back_results_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD", 2)
    clips = torch.full((40, 4, 3, 2, 2), 9, dtype=torch.uint8)
    clips[0] = 0
    taken = 0

    def source() -> Iterator[dict[str, Tensor]]:
        nonlocal taken
        for some in clips.split(1):
            taken += 1
            yield {"frames": some}

    results = Rebatching(Adder(), THRESHOLDS, batch=BATCH).results(source())
    assert next(results).exit_step == 3
    assert taken <= 4 * BATCH


def test_waiting_videos_hold_their_own_frames_only() -> None:
    """Of a batch in which one video stays, nothing else is kept."""
    alive: list[weakref.ref[Tensor]] = []

    def source() -> Iterator[dict[str, Tensor]]:
        for _ in range(8):
            clips = torch.full((BATCH, 4, 3, 2, 2), 9, dtype=torch.uint8)
            clips[0] = 0
            alive.append(weakref.ref(clips))
            yield {"frames": clips}
            del clips
            gc.collect()
            assert sum(ref() is not None for ref in alive[:-1]) == 0

    stream = Rebatching(Adder(), THRESHOLDS, batch=BATCH)
    for _ in stream.results(source()):
        waiting = [sum(len(videos) for _, videos in buffer.parts) for buffer in stream._buffers[1:]]
        assert max(waiting) <= BATCH


def test_what_the_source_raises_comes_through() -> None:
    def source() -> Iterator[dict[str, Tensor]]:
        yield {"frames": videos(BATCH)}
        raise OSError("clip-5.mp4 is broken")

    results = Rebatching(Adder(exits=0), batch=BATCH).results(source())
    assert [next(results).place for _ in range(BATCH)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="clip-5"):
        next(results)


def test_an_empty_stream_has_no_results() -> None:
    found: list[Result] = list(Rebatching(Adder(), THRESHOLDS, batch=BATCH).results([]))
    assert found == [] and whole_trace(found).videos == 0


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 2, "max_wait_s": -1.0}, {"batch": 2, "max_wait_s": np.nan}])
def test_less_than_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="1 video or more"):
        Rebatching(Adder(), **wrong)
