"""Is evaluation here faster than the way the authors evaluate, and does leaving early save time, not only MACs?

    OMP_NUM_THREADS=2 python -m tests.benchmarks.authors_way [--engine compiled] [--methods adafocus-v1] [--batches 1,8]

AdaFocus's released scripts run AdaFocus V1's focus network frame by frame, and of V2 and Uni-AdaFocus all
exits and the heads that only training needs, eagerly, in float32 and contiguous memory. That is re-created here on
the very modules of our recognizer, so weights, inputs and logits are equal; what differs is the order and amount of
work, and how it is executed. Both sides are timed in one process, in turns, so that what the machine does falls on
both. Full size, random weights: time does not depend on what they say, except for exits, whose thresholds are
therefore calibrated on the inputs themselves to half the MACs.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus.policy import cell_places
from adafocus.uni_policies import per_candidate
from harness.authors.parity import video
from harness.contract.declarations import EMPTY, ENGINES
from harness.contract.recognizer import Clips
from harness.contract.trace import Trace
from harness.engine.forms import Forms
from harness.engine.memory_format import set_memory_format
from harness.engine.precision import DTYPES
from harness.engine.stream import Rebatching
from harness.errors import UsageError
from harness.layers.crop import crop, deformable_crop, hard_crop
from harness.layers.frame_sampling import sample_frames
from harness.measure.cost_table import metered
from harness.measure.gate import Verdict, decide
from harness.measure.latency import Unrecorded, learn, prepared
from harness.measure.machine import machine, machine_lock
from harness.plan.building import build_recognizer, full_settings

THREADS, ROUNDS, WARMUP = 2, 7, 1
EXIT_ROUNDS = 5
BATCHES = (1, 8)
MEMORY_FORMAT = "channels_last"
HALF = 0.5
"""Share of the full MACs that exits are calibrated to."""
ROUNDING = 1e-5
"""Thresholds are lowered by this share: they are scores of the timed videos themselves, which another batching of
the same work moves by a rounding error."""
EXIT_INPUTS = 8
"""Videos that they are calibrated on and timed with, or one batch where that is more."""

STREAM_BATCHES = 4
"""Batches of videos in a stream."""

Forward = Callable[[Clips], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Two ways to the same logits, timed in turns."""

    method: str
    what: str
    """`authors` against ours, or `full` against leaving early."""
    batch: int
    device: str
    slow_s: tuple[float, ...]
    """Seconds of each round of the authors' way, or of the full forward."""
    fast_s: tuple[float, ...]
    speedup: Verdict
    """Of the ratio slow / fast; `broken` says that ours is significantly and by more than 10 % faster."""
    macs_saved: float | None = None
    """Exits only: share of the full forward's MACs that were not executed."""

    @property
    def time_saved(self) -> float:
        """Share of the time."""
        return 1 - 1 / self.speedup.ratio

    def line(self) -> str:
        """For the terminal."""
        s = self.speedup
        text = f"{self.method:13} {self.what:27} batch {self.batch}: {s.ratio:.2f}x [{s.low:.2f}, {s.high:.2f}]"
        text += f"  {np.median(self.slow_s):.3f} s -> {np.median(self.fast_s):.3f} s"
        if self.macs_saved is None:
            return text
        return f"{text}; time saved / MACs saved: {self.time_saved:.3f} / {self.macs_saved:.3f} = " + (
            f"{self.time_saved / self.macs_saved:.2f}"
        )


def frame_by_frame(model: Any, clips: Clips) -> Tensor:
    """AdaFocus V1 as released: glance at all frames, then policy, patch, focus network and classifier per frame.

    Source: docs/methods/adafocus-v1.md#modules, #patch-selection.
    """
    x_BT3HW = model.normalise(clips["frames"])
    whole_N3HW = model.shrink(x_BT3HW.flatten(0, 1))
    maps_BTDHW = model.glance.features(whole_N3HW).unflatten(0, x_BT3HW.shape[:2])
    acting, remembered = None, None
    logits = x_BT3HW.new_zeros(0)
    for frame, maps in zip(x_BT3HW.unbind(1), maps_BTDHW.unbind(1), strict=True):
        scores_B1A, acting = model.policy.act(maps[:, None], acting)
        place = cell_places(scores_B1A[:, 0].argmax(-1), model.grid)
        seen = model.focus(hard_crop(frame, place, model.patch_size))
        state_B1H = model.classifier.roll(torch.cat((maps.mean((2, 3)), seen), dim=1)[:, None], remembered)
        remembered = state_B1H[:, -1]
        logits = model.classifier.classify(remembered)
    return logits


def all_exits_v2(model: Any, clips: Clips) -> Tensor:
    """AdaFocus V2 as released: both auxiliary heads, and the classifier's heads of all steps.

    Source: docs/methods/adafocus-v2.md#modules, docs/measurement.md#gflops.
    """
    x_BT3HW = model.normalise(clips["frames"])[:, model.order]
    x_N3HW = x_BT3HW.flatten(0, 1)
    maps = model.glance.features(model.shrink(x_N3HW))
    glance_ND = maps.mean((2, 3))
    model.glance_head(glance_ND)
    actions_BT2, _ = model.policy(maps.unflatten(0, x_BT3HW.shape[:2]))
    focus_ND = model.focus(crop(x_N3HW, actions_BT2.flatten(0, 1), model.patch_size))
    model.focus_head(focus_ND)
    both_BTD = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, x_BT3HW.shape[:2])
    return model.classifier(both_BTD)[:, -1]


def all_exits_uni(model: Any, clips: Clips) -> Tensor:
    """Uni-AdaFocus as released: the spatial policy twice, its auxiliary head, and the heads of all 32 steps.

    Source: docs/methods/uni-adafocus.md#modules, #spatial-policy, docs/measurement.md#gflops.
    """
    whole_N3HW = model.shrink(model.normalise(clips["glance"].flatten(0, 1)))
    maps_BTDHW = model.glance.features(whole_N3HW).unflatten(0, clips["glance"].shape[:2])
    vectors_BTD = maps_BTDHW.mean((3, 4))
    model.glance_head(vectors_BTD)
    model.spatial_head(maps_BTDHW, model.spatial_policy(maps_BTDHW))
    peaks_BTH = model.glance_classifier.accumulate(vectors_BTD)
    model.glance_classifier.classify(peaks_BTH)
    rows = torch.arange(len(maps_BTDHW), device=maps_BTDHW.device)[:, None]
    indices_BN = sample_frames(model.temporal_policy(vectors_BTD), model.frames, model.candidates)[:, model.order]
    actions_BN4 = per_candidate(model.spatial_policy(maps_BTDHW), model.candidates)[rows, indices_BN]
    x_N3HW = model.normalise(clips["candidates"][rows, indices_BN]).flatten(0, 1)
    focus_ND = model.focus(deformable_crop(x_N3HW, actions_BN4.flatten(0, 1), model.patch_size, model.stretch))
    model.focus_head(focus_ND)
    seen_BNH = model.classifier.accumulate(focus_ND.unflatten(0, indices_BN.shape))
    return model.classifier.classify(seen_BNH, context_BE=peaks_BTH[:, -1])[:, -1]


AUTHORS_WAY: dict[str, Callable[[Any, Clips], Tensor]] = {
    "adafocus-v1": frame_by_frame,
    "adafocus-v2": all_exits_v2,
    "uni-adafocus": all_exits_uni,
}
EXITING = ("adafocus-v2", "uni-adafocus")
BESIDE_TSN = ("ar-net", "random-patch")


@dataclass(frozen=True)
class Setup:
    """How ours runs; the authors' way is eager, in float32 and contiguous, as they run it."""

    engine: str = "eager"
    dtype: str = "float32"
    device: str = "cpu"
    size: str = "paper"
    table: Path | None = None
    """Folder of measured row times."""


def against_authors(method: str, batch: int, *, setup: Setup = Setup(), rounds: int = ROUNDS) -> Comparison:
    """Time the authors' way and `infer` on the same batch; their logits must agree.

    Raises:
        UsageError: No authors' way is known for `method`.
    """
    if method not in AUTHORS_WAY:
        raise UsageError(f"no authors' way is re-created for {method}; known: {', '.join(AUTHORS_WAY)}")
    as_they_run_it, model = (built(method, setup.device, setup.size) for _ in range(2))
    set_memory_format(as_they_run_it, "contiguous")
    clips = inputs(model, batch, setup.device)

    def theirs(clips: Clips) -> Tensor:
        return AUTHORS_WAY[method](as_they_run_it, clips)

    with evaluating(setup.device), ready(model, [clips], setup) as ours:
        allowed = 1e-3 if setup.dtype == "float32" else 5e-2  # of the largest logit
        expected = theirs(clips)
        torch.testing.assert_close(expected, ours(clips), rtol=0, atol=allowed * max(1.0, float(expected.abs().max())))
        slow, fast = in_turns(theirs, ours, [clips], rounds, setup.device)
    return Comparison(method, "authors' way -> ours", batch, setup.device, slow, fast, _ratio(fast, slow))


def leaving_early(
    method: str,
    batch: int,
    *,
    exit_every: int = 1,
    stream: bool = False,
    setup: Setup = Setup(),
    rounds: int = EXIT_ROUNDS,
) -> Comparison:
    """Time the full forward and one with exits calibrated to half its MACs, on the same videos.

    Args:
        stream: Videos that stay are rebatched (harness.engine.stream), so that late segments run full, too.

    Raises:
        UsageError: The videos cannot be split into batches of this size.
    """
    videos = STREAM_BATCHES * batch if stream else exit_videos(batch)
    model = built(method, setup.device, setup.size, exit_every=exit_every)
    whole = inputs(model, videos, setup.device)
    batches = [{n: c[i : i + batch] for n, c in whole.items()} for i in range(0, videos, batch)]
    with evaluating(setup.device):
        scores = torch.cat([model.infer_exits(b, trace=_trace(b)) for b in batches]).float().cpu().numpy()
    costs, full_cost = exit_costs(method, setup.size, exit_every)
    point = model.calibrate(scores, costs, HALF * full_cost / costs[-1])
    thresholds = np.asarray(point["thresholds"])
    point["thresholds"] = (thresholds - ROUNDING * np.abs(thresholds)).tolist()
    left: list[float] = []

    with evaluating(setup.device), ready(model, batches, setup) as full, ready(model, batches, setup, point) as ours:

        def early(clips: Clips) -> Tensor:
            logits, trace = ours(clips), ours.trace
            left.extend(costs[trace.exit_step])
            return logits

        def full_loop(clips: Clips) -> Tensor:
            return torch.cat([full(part) for part in batches])

        def rebatched(clips: Clips) -> Tensor:
            results = list(Rebatching(model, point, batch=batch, trace=Unrecorded).results(batches))
            left.extend(costs[[result.exit_step for result in results]])
            return torch.stack([result.logits for result in results])

        if stream:
            slow, fast = in_turns(full_loop, rebatched, batches[:1], rounds, setup.device)
        else:
            slow, fast = in_turns(full, early, batches, rounds, setup.device)
    what = f"full -> exits every {exit_every} frame{'s' * (exit_every > 1)}" + ", stream" * stream
    found = Comparison(method, what, batch, setup.device, slow, fast, _ratio(fast, slow))
    return replace(found, macs_saved=1 - float(np.mean(left)) / full_cost)


def beside_tsn(method: str, batch: int, *, setup: Setup = Setup(), rounds: int = EXIT_ROUNDS) -> Comparison:
    """Time TSN and a method that looks at as many frames, on the same videos."""
    videos = exit_videos(batch)
    model = built(method, setup.device, setup.size)
    whole = inputs(model, videos, setup.device)
    tsn = built("tsn", setup.device, setup.size, frames=deciding(model, whole).frames)
    batches = [{n: c[i : i + batch] for n, c in whole.items()} for i in range(0, videos, batch)]
    with evaluating(setup.device), ready(tsn, batches, setup) as slow_one, ready(model, batches, setup) as fast_one:
        slow, fast = in_turns(slow_one, fast_one, batches, rounds, setup.device)
    macs, tsn_macs = counted(method, setup.size, videos)
    found = Comparison(method, f"tsn -> {method}", batch, setup.device, slow, fast, _ratio(fast, slow))
    return replace(found, macs_saved=1 - macs / tsn_macs)


class Ready:
    """`infer` at one point; keeps the trace of its last forward."""

    def __init__(self, model: Any, point: Mapping[str, Any]) -> None:
        self.model, self.point, self.trace = model, point, Trace(0)

    def __call__(self, clips: Clips) -> Tensor:
        self.trace = _trace(clips)
        return self.model.infer(clips, self.point, trace=self.trace)


@contextmanager
def ready(model: Any, batches: Sequence[Clips], setup: Setup, point: Mapping[str, Any] = EMPTY) -> Iterator[Ready]:
    """The model as it is to be timed, its forms prepared by these batches."""
    if isinstance(model.forms, Forms):  # of another point
        learn(model, batches, point)
        yield Ready(model, point)
        return
    how = {"device": setup.device, "dtype": setup.dtype, "engine": setup.engine, "table": setup.table}
    with prepared(model, memory_format=MEMORY_FORMAT, **how):
        learn(model, batches, point)
        yield Ready(model, point)


def deciding(model: Any, clips: Clips) -> Any:
    """AR-Net with a policy that takes all its actions, where drawn weights take one for all frames.

    Action logits are spread out and centred on these videos, so that their means favour none.
    """
    if hasattr(model, "skip_lengths"):
        generator = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(model.policy.action.weight, std=8.0, generator=generator)
        seen: list[Tensor] = []
        hook = model.policy.action.register_forward_hook(lambda _, __, logits: seen.append(logits))
        with torch.no_grad():
            model.infer(clips, trace=_trace(clips))
            model.policy.action.bias.sub_(torch.cat([logits.flatten(0, -2) for logits in seen]).mean(0))
        hook.remove()
    return model


def exit_videos(batch: int) -> int:
    """Videos that exits are timed with; raises UsageError where they cannot be split into batches of this size."""
    videos = max(EXIT_INPUTS, batch)
    if batch < 1 or videos % batch:
        raise UsageError(f"batch {batch}: exits are timed with {videos} videos, which such batches do not divide")
    return videos


def in_turns(
    one: Forward, other: Forward, batches: Sequence[Clips], rounds: int, device: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds per round over all batches of each side; who begins changes from round to round."""
    sides: tuple[tuple[Forward, list[float]], ...] = ((one, []), (other, []))
    for number in range(WARMUP + rounds):
        for forward, seconds in sides if number % 2 else sides[::-1]:
            spent = sum(_seconds(forward, clips, device) for clips in batches)
            if number >= WARMUP:
                seconds.append(spent)
    return tuple(sides[0][1]), tuple(sides[1][1])


def built(method: str, device: str, size: str = "paper", **changes: Any) -> Any:
    """The recognizer with drawn weights, ready to evaluate."""
    resolution = 224 if size == "paper" else 64
    settings = full_settings(method, size, resolution, changes)
    model = build_recognizer(method, {**settings, "num_classes": 200, "resolution": resolution}).to(device).eval()
    set_memory_format(model, MEMORY_FORMAT)
    return model


def inputs(model: Any, videos: int, device: str) -> dict[str, Tensor]:
    """Smooth random videos for every clip request, uint8; each video its own, the same at every call."""
    clips: dict[str, Tensor] = {}
    for request in model.clip_requests():
        if request.subset_of is not None:
            clips[request.name] = clips[request.subset_of][:, request.group // 2 :: request.group]
            continue
        shape = (request.frames, 3, model.resolution, model.resolution)
        noise = np.stack([video(seed, shape) for seed in range(videos)])
        clips[request.name] = torch.from_numpy((50 * noise + 120).clip(0, 255).astype(np.uint8)).to(device)
    return clips


@contextmanager
def evaluating(device: str) -> Iterator[None]:
    """Inference mode with this benchmark's threads and without garbage collection."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def _seconds(forward: Forward, clips: Clips, device: str) -> float:
    began = time.perf_counter()
    forward(clips)
    if on_cuda(device):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def on_cuda(device: str) -> bool:
    """Whether work on `device`, such as cuda:0, has to be waited for."""
    return torch.device(device).type == "cuda"


def _trace(clips: Clips) -> Trace:
    return Trace(len(next(iter(clips.values()))))


def _ratio(fast: Sequence[float], slow: Sequence[float]) -> Verdict:
    return decide(fast, slow)


@cache
def exit_costs(method: str, size: str, exit_every: int) -> tuple[np.ndarray, float]:
    """MACs of one video that stops at each exit (K,), and of one without exits.

    Counted in another process, as counting slows what follows.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_count, method, size, exit_every).result()


def counted(method: str, size: str, videos: int) -> tuple[float, float]:
    """MACs of all videos, of `method` and of TSN on as many frames; counted in another process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_count_all, method, size, videos).result()


def _count_all(method: str, size: str, videos: int) -> tuple[float, float]:
    model = built(method, "cpu", size)
    clips = inputs(model, videos, "cpu")
    tsn = built("tsn", "cpu", size, frames=deciding(model, clips).frames)
    each = [{name: clip[i : i + 1] for name, clip in clips.items()} for i in range(videos)]
    return sum(metered(model, one)[1] for one in each), videos * metered(tsn, each[0])[1]


def _count(method: str, size: str, exit_every: int) -> tuple[np.ndarray, float]:
    model = built(method, "cpu", size, exit_every=exit_every)
    clips = inputs(model, 1, "cpu")
    costs = np.asarray([metered(model, clips, model.exit_settings(k))[1] for k in range(model.exits)])
    return costs, metered(model, clips)[1]


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(AUTHORS_WAY))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, of exits {EXIT_ROUNDS}, when left out")
    parser.add_argument("--exit-every", default="1,4", help="frames between exits; empty: no exits are timed")
    parser.add_argument("--streams", default="", help="batch sizes at which exits are timed as streams, too")
    parser.add_argument("--beside-tsn", default=",".join(BESIDE_TSN), help="methods timed against TSN; empty: none")
    parser.add_argument("--engine", default="eager", choices=ENGINES)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--table", type=Path, help="folder of measured row times, kept from run to run")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    methods, batches = [m for m in asked.methods.split(",") if m], [int(b) for b in asked.batches.split(",") if b]
    every = [int(e) for e in asked.exit_every.split(",") if e]
    if every:
        for batch in batches:
            exit_videos(batch)  # refused now, not after half an hour
    setup = Setup(asked.engine, asked.dtype, asked.device, table=asked.table)
    common = {"setup": setup} | ({"rounds": asked.rounds} if asked.rounds else {})
    jobs: list[tuple[Callable[..., Comparison], dict[str, Any]]] = [
        (against_authors, {"method": m, "batch": b}) for m in methods for b in batches
    ]
    jobs += [
        (leaving_early, {"method": m, "batch": b, "exit_every": e})
        for m in methods if m in EXITING for e in every for b in batches
    ]  # fmt: skip
    jobs += [
        (leaving_early, {"method": m, "batch": int(b), "exit_every": e, "stream": True})
        for m in methods if m in EXITING for e in every for b in asked.streams.split(",") if b
    ]  # fmt: skip
    jobs += [(beside_tsn, {"method": m, "batch": b}) for m in asked.beside_tsn.split(",") if m for b in batches]
    name, precision = machine().cpu, asked.dtype
    if on_cuda(asked.device):
        name = torch.cuda.get_device_name(asked.device)
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        precision += " (TF32 {} in convolutions, {} in products)".format(*("on" if t else "off" for t in tf32))
    print(
        f"{name}, {THREADS} threads, torch {torch.__version__}; ours {asked.engine}, {precision}, {MEMORY_FORMAT}; "
        "the authors' way eager, float32, contiguous",
        file=sys.stderr,
    )
    found = []
    with machine_lock("tests/benchmarks/authors_way"):
        for work, arguments in jobs:
            found.append(work(**arguments, **common))
            print(found[-1].line(), file=sys.stderr if asked.json else sys.stdout, flush=True)
            torch.compiler.reset()
    if asked.json:
        print(json.dumps([asdict(c) for c in found], indent=1))


if __name__ == "__main__":
    main()
