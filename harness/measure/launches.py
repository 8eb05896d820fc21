"""Several launches of one timing as one record, and what their samples say. No torch.

Fresh processes differ: where memory lies, which kernels were chosen, what the machine did at that minute. So one
timing is several launches (harness.work.timing_session), and an interval covers them: the median of each launch is
one observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.errors import BenchError
from harness.measure.machine import busy_reasons
from harness.measure.statistics import log_mean_interval

DIFFERING = 0.1
"""Largest share of the timed videos whose outputs may differ from the evaluation's; one video always may."""
PER_LAUNCH = ("warmup", "prepare_s", "unprepared", "others", "gpu_others", "slowed", "clocks")
FULLY_COMPILED = 0.9
"""Share of the multiply-accumulates from which on a model is called compiled."""


def merged(launches: Sequence[Mapping[str, Any]], beside: str | None = None) -> dict[str, Any]:
    """The fields of a record that follow from its launches; out of memory in one of them is out of memory."""
    first, last = launches[0], launches[-1]
    whole = [launch for launch in launches if launch["status"] == "ok"]
    ok = len(whole) == len(launches)
    timed = whole if ok else []
    outputs = [launch["outputs"] for launch in timed if launch["outputs"] is not None]
    streams = [launch["stream"] for launch in timed if launch.get("stream")]
    return {
        "status": "ok" if ok else "out of memory",
        "wall_s": _joined(timed, "wall_s"),
        "device_s": None if first["device_s"] is None else _joined(timed, "device_s"),
        "videos": _joined(timed, "videos"),
        "gflops": _joined(timed, "gflops"),
        "phases_s": {**first["phases_s"], **_mean_phases(timed)} if ok else {},
        "frames_decoded": first.get("frames_decoded", 0.0),
        "eager_clips": _eager_clips(first, timed),
        "peak_memory_bytes": first["peak_memory_bytes"] if ok else None,
        "warmup": sum(launch["warmup"] for launch in timed),
        "compiled_share": first["compiled_share"],
        "forms": last["forms"],
        "launches": [
            {"forwards": len(launch["wall_s"]), **{name: launch[name] for name in PER_LAUNCH}}
            for launch in timed
        ],
        "disturbed": disturbances(timed, beside),
        "stream": _streams(streams) if streams else None,
        "outputs": max(outputs, key=lambda o: (o["differing"], o["largest"]), default=None),
        "threads": first["threads"],
        "device": {**first["device"], "clocks": {**first["clocks"], "after": last["clocks"]["after"]}},
        "dataset": first["dataset"],
        "sources": {name: value for launch in launches for name, value in launch["sources"].items()},
        "made_with": first["made_with"],
    }


def disturbances(launches: Sequence[Mapping[str, Any]], beside: str | None = None) -> list[str]:
    """What disturbed a timing, in words; empty where nothing is known to have done so."""
    others, gpu_others = (
        max((launch[name] for launch in launches if launch[name] is not None), default=None)
        for name in ("others", "gpu_others")
    )
    cores = min((launch["clocks"]["before"]["affinity"] for launch in launches), default=1)
    threads = min((launch["threads"] for launch in launches), default=1)
    slowed = [reason for launch in launches for reason in launch["slowed"]]
    busy = busy_reasons(others, gpu_others, cores=cores, threads=threads)
    return [*busy, *dict.fromkeys(slowed), *([f"beside {beside}"] if beside else [])]


def check_outputs(what: str, outputs: Sequence[Mapping[str, Any] | None]) -> None:
    """Raise BenchError where timed forwards differ from the evaluation on more videos than rounding explains.

    `outputs` are those of `harness.measure.timing.compared`; None where there is nothing to compare with.
    """
    for found in outputs:
        if found is not None and found["differing"] > max(1, DIFFERING * found["videos"]):
            raise BenchError(
                f"{what}: timed forwards said something else than the evaluation on "
                f"{found['differing']} of {found['videos']} videos ({found['exits']} left at another exit, logits "
                f"differ by up to {found['largest']:.3g}); a method must do the same work when it is timed"
            )


def by_launch(result: Mapping[str, Any], *, eager: bool = False) -> list[np.ndarray]:
    """Seconds of the timed forwards of each launch; one launch where the record does not tell them apart.

    `eager` are those beside lazy clips (mode `file`).
    """
    return _split(result, (result["eager_clips"] if eager else result)["wall_s"])


def median_interval(launches: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """95 % t interval of a launch's median, on the log scale, from the medians of all launches; None from one launch,
    which says nothing about another.
    """
    return log_mean_interval([float(np.median(part)) for part in launches]) if len(launches) > 1 else None


def summary(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Median per batch (of a stream: of a video's own time) with its interval over launches, p90, p95, p99 (ms) and
    videos per second; of a stream also those of the plain loop, their ratio with its interval, and the mean fill.

    None: not timed, or for an interval one launch only.
    """
    names = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "median_low_ms", "median_high_ms", "videos_per_s")
    launches = by_launch(result)
    if not launches:
        return dict.fromkeys(names)
    wall, stream = np.concatenate(launches), result.get("stream")
    timed = launches if stream is None else own_times(result)
    quantiles = [float(q) for q in np.quantile(np.concatenate(timed), (0.5, 0.9, 0.95, 0.99))]
    times = [*quantiles, *(median_interval(timed) or (None, None))]
    values = [*(None if t is None else 1e3 * t for t in times), float(sum(result["videos"]) / wall.sum())]
    found = dict(zip(names, values, strict=True))
    if stream is None:
        return found
    low, high = log_mean_interval(ratios) if len(ratios := stream_ratios(result)) > 1 else (None, None)
    plain_per_s = float(sum(result["videos"]) / sum(stream["plain_s"]))
    return found | {
        "plain_videos_per_s": plain_per_s,
        "stream_ratio": float(sum(stream["plain_s"]) / wall.sum()),
        "stream_ratio_low": low,
        "stream_ratio_high": high,
        "mean_fill": mean_fill(stream["batches"], result["batch"]),
    }


def own_times(result: Mapping[str, Any]) -> list[np.ndarray]:
    """Seconds that each video of a stream took, of each launch."""
    return _split(result, result["stream"]["own_s"], result["videos"])


def stream_ratios(result: Mapping[str, Any]) -> list[float]:
    """Throughput of the stream over that of the plain loop in each launch."""
    plain = _split(result, result["stream"]["plain_s"])
    return [float(slow.sum() / fast.sum()) for slow, fast in zip(plain, by_launch(result), strict=True)]


def mean_fill(batches: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Mean share of a full batch that was run, over all segments of a stream."""
    sizes = [(int(size), times) for part in batches for size, times in part["sizes"].items()]
    return sum(size * times for size, times in sizes) / (batch * sum(times for _, times in sizes))


def laziness(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What lazy clips save in records of mode `file`: frames decoded per video, lazily and eagerly, and the time from
    file to logits over that with eager clips, with its 95 % interval over launches.

    None: not timed, or for the interval one launch only.
    """
    names = ("frames_decoded", "eager_frames_decoded", "eager_median_ms", "lazy_over_eager", "lazy_low", "lazy_high")
    lazy, eager = ([part for result in results for part in by_launch(result, eager=way)] for way in (False, True))
    if not lazy:
        return dict.fromkeys(names)
    ratios = [float(np.median(a) / np.median(b)) for a, b in zip(lazy, eager, strict=True)]
    frames = (np.mean([r["frames_decoded"] for r in way]) for way in (results, [r["eager_clips"] for r in results]))
    interval = log_mean_interval(ratios) if len(ratios) > 1 else (None, None)
    eager_ms = 1e3 * float(np.median(np.concatenate(eager)))
    ratio = float(np.exp(np.mean(np.log(ratios))))
    return dict(zip(names, (*map(float, frames), eager_ms, ratio, *interval), strict=True))


def engine_label(engine: str, share: float | None) -> str:
    """How much of a model ran compiled, in words; empty where it was not to be."""
    if engine == "eager":
        return ""
    if share is not None and share >= FULLY_COMPILED:
        return "compiled"
    return f"partly compiled ({'unknown share' if share is None else f'{share:.0%}'})"


def _split(
    result: Mapping[str, Any], values: Sequence[float], each: Sequence[int] | None = None
) -> list[np.ndarray]:
    """The values of each launch; `each`: how many a timed forward has (else one)."""
    forwards = np.cumsum([launch["forwards"] for launch in result.get("launches") or ()])[:-1]
    ends = forwards if each is None else np.cumsum([0, *each])[forwards]
    return [part for part in np.split(np.asarray(values, dtype=float), ends) if part.size]


def _streams(launches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Streams of several launches as one."""
    sizes: dict[int, dict[str, int]] = {}
    for part in (part for launch in launches for part in launch["batches"]):
        own = sizes.setdefault(part["exit"], {})
        for size, times in part["sizes"].items():
            own[str(size)] = own.get(str(size), 0) + times
    return {
        "max_wait_s": launches[0]["max_wait_s"],
        "own_s": _joined(launches, "own_s"),
        "plain_s": _joined(launches, "plain_s"),
        "batches": [{"exit": exit, "sizes": own} for exit, own in sorted(sizes.items())],
    }


def _joined(launches: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [value for launch in launches for value in launch[name]]


def _eager_clips(first: Mapping[str, Any], launches: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What clips took that were decoded whole; None where lazy ones were not timed."""
    if first.get("eager_clips") is None:
        return None
    wall = [value for launch in launches for value in launch["eager_clips"]["wall_s"]]
    return {"wall_s": wall, "frames_decoded": first["eager_clips"]["frames_decoded"]}


def _mean_phases(launches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds per video, over all launches, of the phases that every one of them measured."""
    counts = [sum(launch["videos"]) for launch in launches]
    return {
        name: sum(launch["phases_s"][name] * n for launch, n in zip(launches, counts, strict=True)) / sum(counts)
        for name in launches[0]["phases_s"]
        if all(name in launch["phases_s"] for launch in launches)
    }
