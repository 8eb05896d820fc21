"""Latency measuring against a clock of our own: nothing here depends on how fast this machine is."""

from __future__ import annotations

import gc
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.contract.declarations import EMPTY, ClipRequest
from harness.contract.recognizer import EfficientRecognizer
from harness.data.videos import open_dataset
from harness.errors import BenchError, UsageError
from harness.measure import latency
from harness.measure.latency import is_out_of_memory, phases, prepared, set_memory_format
from harness.measure.launches import summary
from harness.measure.views import Viewed, joined
from harness.store.records import LATENCY_SCHEMA

SETUP = ("device", "dtype", "engine", "memory_format")


def measure_latency(toy, batches, point=EMPTY, **options):
    """What one launch measures of a prepared recognizer."""
    setup = {name: options.pop(name) for name in SETUP if name in options}
    with prepared(toy, **setup) as device:
        return latency.measure_latency(toy, batches, point, device=device, **options)[0]


class Clock:
    """Stands in for `time.perf_counter`; only `infer` makes it go on."""

    now = 100.0

    def __call__(self):
        return self.now


class Toy(EfficientRecognizer):
    """Takes as many seconds as the first pixel of a clip says, and notes how it was called."""

    def __init__(self, clock=None):
        super().__init__(2, resolution=4, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.clock, self.calls, self.effect, self.draw = clock, [], lambda: None, lambda generator: None
        self.convolution, self.volume = nn.Conv2d(3, 4, 2), nn.Conv3d(3, 4, 2)

    def infer(self, clips, point=EMPTY, *, trace, generator=None):
        frames = clips["frames"]
        with trace.work("all", "", frames.shape[2:], len(frames) * frames.shape[1]):
            if self.clock:
                self.clock.now += float(frames.flatten()[0])
            self.effect()
        self.draw(generator)
        self.calls.append({
            "batch": len(frames), "point": dict(point), "train": self.training, "grad": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"), "gc": gc.isenabled(),
        })
        return torch.zeros(len(frames), 2)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.fixture
def toy(clock):
    return Toy(clock)


def clips(seconds, batch=1):
    frames = torch.zeros(batch, 2, 3, 4, 4, dtype=torch.uint8)
    frames[:, 0, 0, 0, 0] = seconds
    return {"frames": frames}


def test_samples_are_the_seconds_of_each_forward(toy):
    found = measure_latency(toy, [clips(1, 2), clips(3)], min_iterations=4, min_seconds=0, warmup=1)
    assert found["wall_s"] == [1, 3, 1, 3]
    assert found["videos"] == [2, 1, 2, 1]
    assert found["phases_s"] == {"transfer": 0, "model": pytest.approx(8 / 6)}
    assert (found["status"], found["device_s"]) == ("ok", None)


def test_a_sample_of_several_views_is_a_forward_of_each(toy):
    def rows(trace):
        (counts,) = trace.counts.values()
        return {"all": counts}

    batches = [joined([clips(seconds, 2) for seconds in (1, 2, 4)])]
    with prepared(toy):
        found, outputs = latency.measure_latency(Viewed(toy), batches, min_iterations=2, min_seconds=0, costs=rows)
    assert (found["wall_s"], found["videos"], found["gflops"]) == ([7, 7], [2, 2], [2 * 3 * 2] * 2)
    assert [o.logits.shape for o in outputs] == [(2, 2)]
    assert joined([clips(1)]).keys() == {"frames"}


def test_fields_are_those_of_the_schema(toy):
    found = measure_latency(toy, [clips(1)])
    of_launches = {"others", "slowed", "clocks", "prepare_s", "unprepared"}
    assert set(found) - of_launches <= set(LATENCY_SCHEMA)
    assert all(name in LATENCY_SCHEMA["launches"] for name in of_launches)
    assert set(latency.describe("cpu")) == {"name", "kind", "fingerprint", "driver"}


ROUNDS = [(1, 0, 2), (3, 0, 4), (1, 9, 6), (6, 9, 6), (5, 4.5, 6)]


@pytest.mark.parametrize(("iterations", "seconds", "forwards"), ROUNDS)
def test_whole_rounds_until_both_limits_are_reached(toy, iterations, seconds, forwards):
    found = measure_latency(toy, [clips(1), clips(3)], min_iterations=iterations, min_seconds=seconds, warmup=0)
    assert len(found["wall_s"]) == forwards


def test_every_batch_is_warmed_up(toy):
    batches = [clips(1, size) for size in (1, 2, 3)]
    assert measure_latency(toy, batches, min_iterations=1, min_seconds=0, warmup=2)["warmup"] == 3 + 2
    assert [c["batch"] for c in toy.calls[:5]] == [1, 2, 3, 1, 2]


def test_forwards_run_as_in_evaluation(toy):
    measure_latency(toy.train(), [clips(1)], {"frames": 2}, min_iterations=2, min_seconds=0, warmup=0)
    timed = toy.calls[1]  # after the warm-up that sees each batch once
    off = {"train": False, "grad": False, "autocast": False, "gc": False}
    assert timed == {"batch": 1, "point": {"frames": 2}, **off}
    assert gc.isenabled()


def test_bookkeeping_is_not_timed(toy):
    toy.kept = []
    record = latency.Trace.work

    def work(trace, *args, **kwargs):
        toy.kept.append(len(toy.calls))
        return record(trace, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency.Trace, "work", work)
        found = measure_latency(toy, [clips(1)], min_iterations=4, min_seconds=0, warmup=2, memory=False)
    assert toy.kept == [0], "only the forwards that forms are prepared by count their work"
    assert len(found["wall_s"]) == 4


def test_drawn_decisions_are_drawn_while_timed_too(toy):
    drawn = []
    toy.draw = lambda generator: drawn.append(None if generator is None else float(torch.rand(1, generator=generator)))
    measure_latency(toy, [clips(1)], min_iterations=2, min_seconds=0, warmup=1, test_seed=3, memory=False)
    expected = torch.Generator().manual_seed(3)
    assert drawn == [float(torch.rand(1, generator=expected)) for _ in range(4)]
    drawn.clear()
    measure_latency(toy, [clips(1)], min_iterations=1, min_seconds=0, warmup=1, memory=False)
    assert set(drawn) == {None}


@pytest.mark.parametrize("wrong", [{"min_seconds": -1}, {"min_iterations": 0}])
def test_less_than_nothing_is_refused(toy, wrong):
    with pytest.raises(UsageError, match="at least 0 s and 1 forward"):
        measure_latency(toy, [clips(1)], **wrong)


def test_last_outputs_of_each_batch_are_kept(toy):
    with prepared(toy):
        _, outputs = latency.measure_latency(toy, [clips(1, 2), clips(3)], min_iterations=4, min_seconds=0)
    assert [o.logits.shape for o in outputs] == [(2, 2), (1, 2)]
    assert all(o.exit_step is None for o in outputs)


def test_gflops_follow_the_trace(toy):
    def costs(trace):
        (rows,) = trace.counts.values()
        return {"all": rows * 0.5}

    found = measure_latency(toy, [clips(1, 3), clips(1)], min_iterations=2, min_seconds=0, costs=costs)
    assert found["gflops"] == [3.0, 1.0]


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_out_of_memory_is_a_result(toy, error):
    def effect():
        raise error

    toy.effect = effect
    found = measure_latency(toy, [clips(1)])
    assert (found["status"], found["wall_s"], found["peak_memory_bytes"]) == ("out of memory", [], None)
    assert set(summary(found).values()) == {None}


def test_other_errors_are_not_hidden(toy):
    def effect():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    toy.effect = effect
    with pytest.raises(RuntimeError, match="mat1"):
        measure_latency(toy, [clips(1)])
    assert not is_out_of_memory(ValueError("shape"))


def test_counting_and_timing_do_not_mix(toy):
    with FlopCounterMode(display=False), pytest.raises(BenchError, match="another process"):
        measure_latency(toy, [clips(1)])


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"memory_format": "nhwc"}])
def test_unknown_settings_are_refused(toy, wrong):
    with pytest.raises(UsageError, match="unknown .* known:"):
        measure_latency(toy, [clips(1)], **wrong)


def test_no_batches_are_refused(toy):
    with pytest.raises(UsageError, match="no batches"):
        measure_latency(toy, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_named(toy):
    with pytest.raises(UsageError, match="doctor"):
        measure_latency(toy, [clips(1)], device="cuda")


def test_peak_memory_counts_weights_batch_and_what_lives_together():
    toy = Toy()
    kib = 1024

    def effect():
        first = torch.empty(100 * kib, dtype=torch.uint8)
        del first
        second, third = torch.empty(60 * kib, dtype=torch.uint8), torch.empty(70 * kib, dtype=torch.uint8)
        del second, third

    toy.effect = effect
    batch = clips(0)
    held = [*toy.parameters(), *toy.buffers(), *batch.values()]
    fixed = sum(t.numel() * t.element_size() for t in held)
    peak = measure_latency(toy, [batch], min_iterations=1, min_seconds=0)["peak_memory_bytes"]
    assert 130 * kib <= peak - fixed <= 131 * kib


def test_forms_are_prepared_before_anything_is_timed(toy):
    with prepared(toy, engine="eager"):
        forms = toy.forms
        learning, inside = forms.learning, []
        toy.effect = lambda: inside.append(forms._noted is not None)
        forms.learning = lambda: (inside.append("learn"), learning())[1]
        found, _ = latency.measure_latency(toy, [clips(1), clips(2)], min_iterations=2, min_seconds=0, warmup=1)
    assert inside[:4] == ["learn", True, True, False]
    assert True not in inside[3:]
    assert found["unprepared"] == 0 and found["warmup"] == 3
    assert not toy.forms


def test_memory_format_of_2d_and_3d_weights():
    toy = Toy()
    toy.convolution.weight.data = torch.randn(4, 3, 2, 2)
    toy.volume.weight.data = torch.randn(4, 3, 2, 2, 2)
    set_memory_format(toy, "channels_last")
    assert toy.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert toy.volume.weight.is_contiguous(memory_format=torch.channels_last_3d)
    set_memory_format(toy, "contiguous")
    assert toy.convolution.weight.is_contiguous()
    assert toy.volume.weight.is_contiguous()


def test_phases_from_file_to_logits(tmp_path):
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", frames=12, first=number)
    rows = "".join(f"{n}.mp4,{n % 2},{'train' if n else 'test'}\n" for n in range(5))
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    videos = open_dataset(f"csv:{tmp_path / 'labels.csv'}", data_root=tmp_path, size="tiny")
    toy = Toy()
    requests = (ClipRequest(4), ClipRequest(2, name="again", sampler="subset", subset_of="frames", group=2))
    found = phases(toy, videos, "test", requests, {"frames": 4}, count=5)
    assert found["frames_decoded"] == 11  # frames 1, 4, 7 and 10 were asked for
    assert set(found["phases_s"]) == {"decode", "transform", "transfer", "model"}
    assert all(seconds >= 0 for seconds in found["phases_s"].values())
    assert [call["point"] for call in toy.calls] == [{"frames": 4}] * 2  # one video, once to warm up
    toy.calls.clear()
    assert phases(Viewed(toy), videos, "test", requests, {"frames": 4}, views="three-crop")["frames_decoded"] == 11
    assert len(toy.calls) == 2 * 3


def write_video(path, frames, first=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12))
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in range(first, first + frames):
            image = np.full((64, 64, 3), 10 * shade, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.slow
def test_agrees_with_torch_benchmark():
    from torch.utils.benchmark import Timer

    toy, matrix = Toy(), torch.randn(600, 600)
    toy.effect = lambda: matrix @ matrix
    ours = summary(measure_latency(toy, [clips(0)], min_seconds=0.5))["median_ms"] / 1e3
    theirs = Timer("matrix @ matrix", globals={"matrix": matrix}).blocked_autorange(min_run_time=0.5).median
    assert 1 / 3 < ours / theirs < 3


@pytest.mark.gpu
def test_device_events_lie_within_the_wall_clock():
    toy, matrix = Toy().cuda(), torch.randn(2000, 2000, device="cuda")
    toy.effect = lambda: matrix @ matrix
    found = measure_latency(toy, [clips(0)], device="cuda")
    assert len(found["device_s"]) == len(found["wall_s"])
    assert all(0 < device < wall for device, wall in zip(found["device_s"], found["wall_s"], strict=True))
    assert found["peak_memory_bytes"] >= 2 * matrix.numel() * 4
