"""Methods that hide work, each caught by the evaluation that everybody's figures come from; an honest one passes."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torchvision.ops import deform_conv2d

from harness.contract.declarations import EMPTY, ClipRequest, OperatingPoint
from harness.contract.trace import Trace
from harness.errors import BenchError
from harness.measure import evaluation
from harness.measure.audit import HOST_VALUES, products
from harness.measure.counter import MacMeter, declare
from harness.measure.evaluation import Evaluator, PointResult
from harness.plan.protocol import Protocol

from mmaction.structures import ActionDataSample

VIDEOS, FRAMES, WIDTH = 11, 3, 12
SPECIAL = 4
"""The one video on which some methods do more; neither first, middle nor last."""


class Honest(nn.Module):
    """A linear layer on every frame; where a frame is bright, a second one."""

    exits = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.full((1,), 100.0))
        self.look, self.dear = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)
        self.norm, self.words = nn.LayerNorm(5), nn.Embedding(256, 5)
        self.table = torch.randn(WIDTH, 5)

    def operating_points(self, budgets=()):
        return [OperatingPoint("full"), OperatingPoint("one", {"frames": 1}, knob="frames", value=1.0)]

    def clip_requests(self, point=EMPTY):
        return (ClipRequest(point.get("frames", FRAMES)),)

    def infer(self, clips, point=EMPTY, *, trace, generator=None):
        x = (clips["frames"].flatten(2) - self.mean) / 255
        with trace.work("look", "", (WIDTH,), x.shape[0] * x.shape[1]):
            logits = self.look(x).mean(1)
        bright = (x[:, 0, 0] > 0).nonzero()[:, 0]
        with trace.work("dear", "", (WIDTH,), len(bright), videos=bright.numpy()):
            logits[bright] += self.dear(x[bright, 0])
        return self.more(x, logits, trace)

    def more(self, x, logits, trace):
        return logits


class Videos:
    """In place of an opened data set."""

    splits = {"test": [SimpleNamespace(labels=(0,), id=str(i)) for i in range(VIDEOS)]}


class Dataset:
    """In place of `ClipDataset`: noise, and one video with a bright corner."""

    def __init__(self, videos, split, requests, **_):
        self.frames = requests[0].frames

    def __len__(self):
        return VIDEOS

    def __getitem__(self, index):
        if index >= VIDEOS:
            raise IndexError
        rng = np.random.default_rng(index)
        clip = torch.from_numpy(rng.integers(0, 256, (FRAMES, 3, 2, 2), dtype=np.uint8))[: self.frames]
        clip[0, 0, 0, 1] = 255 if index == SPECIAL else 0
        return {"inputs": {"frames": clip}, "data_samples": ActionDataSample().set_gt_label(0)}


def special(x):
    """Whether the video with the bright corner is in the batch (and the evaluation's centring undone)."""
    return bool((x[:, 0, 1] > 0.6).any())


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch):
    monkeypatch.setattr(evaluation, "ClipDataset", Dataset)


def evaluated(model, **protocol) -> tuple[list[PointResult], dict]:
    evaluator = Evaluator(model, Videos(), Protocol(eval_batch=4, **protocol))
    results = [evaluator.run(point, "test") for point in evaluator.points()]
    return results, evaluator.cost_table(results)[1]


def cheating(more: Callable) -> nn.Module:
    return type("Cheat", (Honest,), {"more": more})()


def refused(model, match: str) -> None:
    with pytest.raises(BenchError, match=match):
        evaluated(model)


def test_honest_method_passes_and_every_video_was_counted():
    results, check = evaluated(Honest())
    assert check["videos"] == 2 * VIDEOS and check["max_relative_difference"] < 1e-12
    assert check["repeated"]["videos"] >= 2 * (4 + 3) and check["declared"] == []
    assert 0 < check["host_values"] < 3
    first = [video["inputs"]["frames"][0, 0, 0, 0] for video in Dataset(None, "test", (ClipRequest(1),))]
    bright = [int(pixel) > 100 for pixel in first]
    table = results[0].audit.table
    expected = [WIDTH * 5 * (FRAMES + b) for b in bright]
    assert (table.gflops(results[0].trace) * 1e9).tolist() == pytest.approx(expected)


def test_accuracy_is_of_the_run_that_was_counted():
    """A method that tells less well when it is watched is recorded as such."""

    class Watched(Honest):
        def more(self, x, logits, trace):
            return torch.zeros_like(logits) if _get_current_dispatch_mode() is not None else logits

    evaluator = Evaluator(Watched(), Videos(), Protocol(eval_batch=4))
    with pytest.raises(BenchError, match="other logits"):
        evaluator.run(OperatingPoint("full"), "test")


def test_trace_does_not_tell_who_watches():
    plain, watched = Trace(1), Trace(1, meter=MacMeter(), observe=lambda key: threading.Lock())
    public = {name for name in dir(plain) if not name.startswith("_")}
    assert all(getattr(plain, n) == getattr(watched, n) for n in public if not callable(getattr(plain, n)))


# -- methods that hide work ----------------------------------------------------------------------


def training_only(self, x, logits, trace):
    with trace.work("aux", "", (WIDTH,), len(x), training_only=True):
        return logits + self.dear(x[:, 0])


def on_one_video(self, x, logits, trace):
    return logits + x[:, 0] @ self.table if special(x) else logits


def parameters_outside(self, x, logits, trace):
    return self.norm(logits)


def lookup_outside(self, x, logits, trace):
    return logits + self.words((x[:, 0, 0] * 255 + 100).long())


def parameter_outside(self, x, logits, trace):
    return logits * self.dear.bias


def rows_not_told(self, x, logits, trace):
    with trace.work("look", "", (WIDTH,), 0, videos=[]):
        return logits + self.dear(x[:, 0])


def fewer_rows_told(self, x, logits, trace):
    with trace.work("dear", "", (WIDTH,), len(x)):
        return logits + self.dear(x).mean(1)


def nested(self, x, logits, trace):
    with trace.work("outer", "", (WIDTH,), len(x)), trace.work("inner", "", (WIDTH,), len(x)):
        return logits + self.dear(x[:, 0])


def swallowed(self, x, logits, trace):
    try:
        return self.norm(logits)
    except BenchError:
        return logits


def new_thread(self, x, logits, trace):
    found = []
    thread = threading.Thread(target=lambda: found.append(x[:, 0] @ self.table))
    thread.start()
    thread.join()
    return logits + found[0]


def process(self, x, logits, trace):
    subprocess.run(["true"], check=True)
    return logits


def numpy_product(self, x, logits, trace):
    activations = np.asarray(x.repeat(1, 1 + HOST_VALUES // x[0].numel(), 1))
    return logits + torch.from_numpy((activations @ np.ones((WIDTH, 5), np.float32)).mean(1))


def listed(self, x, logits, trace):
    return logits + sum(map(sum, x[:, 0].repeat(1, 1 + HOST_VALUES // WIDTH).tolist()))


def transformed(self, x, logits, trace):
    with trace.work("more", "", (WIDTH,), len(x)):
        return logits + torch.fft.rfft(x[:, 0]).real[:, :5]


def to_a_foreign_kernel(self, x, logits, trace):
    x.repeat(1, 1 + HOST_VALUES // x[0].numel(), 1).data_ptr()
    return logits


def custom_operator(self, x, logits, trace):
    with trace.work("custom", "", (WIDTH,), len(x)):
        return logits + torch.ops.audit_tests.secret(x[:, 0], self.table)


def no_modes(self, x, logits, trace):
    with trace.work("more", "", (WIDTH,), len(x)), _disable_current_modes():
        return logits + x[:, 0] @ self.table


def only_uncounted(self, x, logits, trace):
    if _get_current_dispatch_mode() is None:
        with trace.work("more", "", (WIDTH,), len(x)):
            x[:, 0] @ self.table
    return logits


def only_without_details(self, x, logits, trace):
    return logits if trace.details else logits + 1


def accounted_away(self, x, logits, trace):
    trace.accounted["saved"] = np.full(trace.videos, 1e6)
    return logits


CHEATS = [
    (training_only, "training-only"),
    (on_one_video, r"mm|matmul .*outside components"),
    (parameters_outside, "LayerNorm outside"),
    (lookup_outside, "Embedding outside"),
    (parameter_outside, "mul on the parameter dear.bias outside"),
    (rows_not_told, "its components tell of"),
    (fewer_rows_told, r"a row of dear"),
    (nested, "does not call another"),
    (swallowed, "LayerNorm outside"),
    (new_thread, "starts a thread"),
    (process, "starts a process"),
    (numpy_product, "values per video out of torch"),
    (listed, "values per video out of torch"),
    (to_a_foreign_kernel, "values per video out of torch"),
    (custom_operator, "audit_tests::secret, whose cost is unknown; .*declare gives custom operators a formula"),
    (transformed, "aten::_fft_r2c, whose cost is unknown; torch's own operators take no formula from a method"),
    (no_modes, "without a meter, or in another thread"),
    (only_uncounted, "without a meter, or in another thread"),
    (only_without_details, "other logits"),
    (accounted_away, "accounted"),
]


@pytest.mark.filterwarnings("ignore:no formula")
@pytest.mark.parametrize(("more", "match"), CHEATS, ids=lambda value: getattr(value, "__name__", ""))
def test_hidden_work_is_refused(more, match):
    refused(cheating(more), match)


class Pooled(Honest):
    """Its own thread, which was there before anybody looked."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.product, self.asked, self.done = product, queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while (x := self.asked.get()) is not None:
            try:
                self.done.put(self.dear(x) if self.product == "module" else x @ self.table)
            except BenchError:
                self.done.put(torch.zeros(len(x), 5))

    def more(self, x, logits, trace):
        with trace.work("more", "", (WIDTH,), len(x)):
            self.asked.put(x[:, 0].clone())
            return logits + self.done.get(timeout=10).detach()


@pytest.mark.parametrize(("product", "match"), [("module", "Linear in another thread"), ("function", "another thread")])
def test_a_pool_of_threads_is_seen(product, match):
    model = Pooled(product)
    try:
        refused(model, match)
    finally:
        model.asked.put(None)


# -- what is allowed -----------------------------------------------------------------------------


@torch.library.custom_op("audit_tests::secret", mutates_args=())
def secret(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Products that no formula of torch's knows."""
    return x @ table


@torch.library.custom_op("audit_tests::told", mutates_args=())
def told(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The same, declared: a launcher that compiles its kernel in a process and gives it the address of the data."""
    subprocess.run(["true"], check=True)
    x.repeat(1 + HOST_VALUES // x[0].numel(), 1).data_ptr()
    return x @ table


def test_declared_operator_is_counted_and_named():
    declare("audit_tests::told", lambda args, kwargs, out: args[0].numel() * args[1].shape[1])

    class Declared(Honest):
        def more(self, x, logits, trace):
            with trace.work("custom", "", (WIDTH,), len(x)):
                return logits + torch.ops.audit_tests.told(x[:, 0], self.table)

    results, check = evaluated(Declared())
    assert check["declared"] == ["audit_tests::told"] and check["host_values"] < 3
    assert results[0].audit.table.components(results[0].trace)["custom"].tolist() == [WIDTH * 5 / 1e9] * VIDEOS


@pytest.mark.parametrize("name", ["aten::mm", "torchvision::nms", "mm"])
def test_torchs_own_operators_cannot_be_declared(name):
    with pytest.raises(BenchError, match="library of their own"):
        declare(name, lambda args, kwargs, out: 0.0)


def test_an_operator_has_one_formula():
    declare("audit_tests::once", len)
    declare("audit_tests::once", len)
    with pytest.raises(BenchError, match="another formula"):
        declare("audit_tests::once", sum)


def test_drawn_decisions_are_repeated_alike():
    class Drawn(Honest):
        def infer(self, clips, point=EMPTY, *, trace, generator=None):
            logits = super().infer(clips, point, trace=trace)
            return logits + torch.rand(logits.shape, generator=generator)

    results, _ = evaluated(Drawn(), test_randomness="sampled", test_seed=3)
    again, _ = evaluated(Drawn(), test_randomness="sampled", test_seed=3)
    assert np.array_equal(results[0].logits, again[0].logits)


def test_nothing_stays_behind():
    """Doors of tensors, hooks and audit events are as before, after a success and after a refusal."""
    before = {name: vars(torch.Tensor).get(name) for name in ("numpy", "tolist", "data_ptr", "__dlpack__")}
    evaluated(Honest())
    refused(cheating(parameters_outside), "LayerNorm")
    assert {name: vars(torch.Tensor).get(name) for name in before} == before
    assert nn.LayerNorm(2)(torch.zeros(1, 2)).detach().numpy().shape == (1, 2)
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()


def test_without_the_audit_nothing_is_counted():
    evaluator = Evaluator(cheating(parameters_outside), Videos(), Protocol(eval_batch=4), counted=False)
    result = evaluator.run(OperatingPoint("full"), "test")
    assert result.logits.shape == (VIDEOS, 5) and result.audit.videos == 0


def test_profiler_sees_what_the_meter_counts():
    """Layers of every kind, forward in inference mode: both witnesses agree."""
    torch.manual_seed(0)
    conv, lstm, gru = nn.Conv2d(3, 4, 3, groups=1), nn.LSTM(4, 6), nn.GRU(4, 6, batch_first=True)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x, steps, tokens = torch.randn(2, 3, 8, 8), torch.randn(5, 2, 4), torch.randn(2, 5, 8)

    def work():
        with torch.inference_mode():
            conv(x), lstm(steps), gru(steps), attention(tokens, tokens, tokens)
            nn.functional.scaled_dot_product_attention(*3 * [tokens[:, None]])
            torch.einsum("bij,bkj->bik", tokens, tokens), tokens @ tokens[0, 0], nn.Linear(8, 3)(tokens)

    with MacMeter() as meter:
        work()
    assert products(work) == meter.products and meter.total > 0


STEPS, RNN = torch.randn(4, 3, 5), 3 * (5 * 6 + 6 * 6)
"""Four sequences of up to 3 steps; MACs of all 3 steps with one gate of 6."""


def packed(layer, lengths):
    return lambda: layer(pack_padded_sequence(STEPS, lengths, batch_first=True))


def shaped(*shape):
    return torch.randn(shape)


OWN_KERNELS = {
    "affine_grid": (lambda: F.affine_grid(shaped(2, 2, 3), (2, 3, 4, 5), align_corners=False), 2 * 20 * 2 * 3),
    "affine_grid_3d": (lambda: F.affine_grid(shaped(2, 3, 4), (2, 3, 4, 5, 6), align_corners=False), 2 * 120 * 3 * 4),
    "packed_lstm": (packed(nn.LSTM(5, 6), [3, 3, 2, 1]), 4 * 9 * 66),
    "packed_lstm_of_equal_lengths": (packed(nn.LSTM(5, 6, bidirectional=True), [3, 3, 3, 3]), 2 * 4 * 4 * RNN),
    "packed_gru": (packed(nn.GRU(5, 6), [3, 3, 3, 3]), 3 * 4 * RNN),
    "rnn": (lambda: nn.RNN(5, 6, batch_first=True)(STEPS), 4 * RNN),
    "lstm_projected": (lambda: nn.LSTM(5, 6, proj_size=2, batch_first=True)(STEPS), 12 * (24 * 5 + 24 * 2 + 2 * 6)),
    "bilinear": (lambda: nn.Bilinear(5, 7, 3)(shaped(4, 5), shaped(4, 7)), 4 * 3 * (5 * 7 + 7)),
    "cdist": (lambda: torch.cdist(shaped(2, 9, 8), shaped(2, 4, 8)), 2 * 9 * 4 * 8),
    "cdist_many": (lambda: torch.cdist(shaped(2, 30, 8), shaped(2, 4, 8)), 2 * 30 * 4 * (8 + 2)),
    "cdist_p1": (lambda: torch.cdist(shaped(30, 8), shaped(4, 8), p=1.0), 30 * 4 * 8),
    "deform_conv2d": (
        lambda: deform_conv2d(shaped(2, 4, 9, 9), shaped(2, 18, 7, 7), shaped(6, 2, 3, 3)), 2 * 49 * 6 * 2 * 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN_KERNELS)
def test_operators_that_torch_runs_as_other_products_where_nobody_watches(name):
    work, macs = OWN_KERNELS[name]
    with torch.inference_mode():
        with MacMeter() as meter:
            work()
        assert (meter.total, dict(meter.unsupported)) == (macs, {})
        assert products(work) == meter.products
