"""Metrics: each one pure function of scores and targets, with its direction, unit and interval.

    scores = softmax(logits)                     # (N, C), once; mAP compares scores across videos
    METRICS["mAP"](scores, targets)              # percent
    bootstrap("mAP", scores, targets)            # 95 % interval over videos
    evaluate(logits, targets, ["top1", "top5"])  # what an evaluation record holds

Targets are (N, L) integers, L labels per video padded with -1; class indices are fixed: a class without
a positive video keeps its column. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from harness.errors import BenchError, unknown

RESAMPLES = 1000
CHUNK = 250
"""Bootstrap resamples held in memory at a time."""


@dataclass(frozen=True)
class Metric:
    """A named quality of a set of predictions; call it with (scores (N, C), targets (N, L))."""

    name: str
    title: str
    compute: Callable[[np.ndarray, np.ndarray], float]
    """Scores and targets to a value in `unit`; all videos count once."""
    weighted: Callable[[np.ndarray, np.ndarray, Iterable[np.ndarray]], Iterator[np.ndarray]] | None = None
    """The same for resampled videos: blocks of counts (N, R), how often each video was drawn, to values (R,).
    None: `compute` is called on every resample, which is slow where it is not cheap."""
    unit: str = "%"
    higher_is_better: bool = True

    def __call__(self, scores: np.ndarray, targets: np.ndarray) -> float:
        return self.compute(*_checked(scores, targets))


@dataclass(frozen=True)
class Difference:
    """B minus A on the same videos."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided: for top-k McNemar's exact test, else the bootstrap's share on the other side of zero."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    exponent = np.exp(shifted)
    return exponent / exponent.sum(axis=-1, keepdims=True)


def correct(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether a label of the video is among its k best classes, (N,) bool; of equal scores the lower index wins."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ((best[:, :, None] == targets[:, None, :]) & (targets[:, None, :] >= 0)).any(axis=(1, 2))


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of every class, (C,) in [0, 1]; 0 for a class without positives.

    The papers' definition (AR-Net's `cal_map`, docs/measurement.md#map): videos sorted by score, equal scores in
    the order of the list, mean over the positives of the precision at their rank, no interpolation.
    """
    positive = multi_hot(targets, scores.shape[1])
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(positive, order, axis=0)
    ranks = np.arange(1, len(scores) + 1)[:, None]
    precision = np.cumsum(hits, axis=0) / ranks
    return (precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1)


def multi_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """Targets (N, L) padded with -1 as (N, C) bool."""
    hot = np.zeros((len(targets), classes), dtype=bool)
    rows, columns = np.nonzero(targets >= 0)
    hot[rows, targets[rows, columns]] = True
    return hot


def classes_without_positives(targets: np.ndarray, classes: int) -> list[int]:
    """Classes no video has: each lowers mAP by 1/C, so a report must name them."""
    return np.flatnonzero(~multi_hot(targets, classes).any(axis=0)).tolist()


def _mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    return 100.0 * float(average_precisions(scores, targets).mean())


def _top(k: int) -> tuple[Callable[..., float], Callable[..., Iterator[np.ndarray]]]:
    """Accuracy of the k best classes, over videos and over resamples."""

    def compute(scores: np.ndarray, targets: np.ndarray) -> float:
        return 100.0 * float(correct(scores, targets, k).mean())

    def weighted(scores: np.ndarray, targets: np.ndarray, draws: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        right = correct(scores, targets, k).astype(np.float64)
        for counts in draws:
            yield 100.0 * (right @ counts) / counts.sum(axis=0)

    return compute, weighted


def _weighted_map(scores: np.ndarray, targets: np.ndarray, draws: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """mAP of resamples without sorting again: a video drawn w times holds w neighbouring ranks.

    With T videos and P positives ranked before it, its w copies add sum_k (P+k)/(T+k)
    = w + (P-T) (H(T+w) - H(T)), H the harmonic numbers. A class whose positives were all left out of
    a resample is left out of that resample's mean (counting it as 0 would bias the interval downwards).
    """
    videos, classes = scores.shape
    positive = multi_hot(targets, classes)
    present = np.flatnonzero(positive.any(axis=0))
    order = np.argsort(-scores[:, present], axis=0, kind="stable")
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, videos + 1))])
    for counts in draws:
        total = np.zeros(counts.shape[1])
        seen = np.zeros(counts.shape[1])
        for column, label in enumerate(present):
            ranked = order[:, column]
            at = np.flatnonzero(positive[ranked, label])
            copies = counts[ranked[at]].astype(np.int64)
            blocks = np.add.reduceat(counts[ranked[: at[-1] + 1]], np.r_[0, at], axis=0, dtype=np.int64)
            if at[0] == 0:
                blocks[0] = 0
            before = np.cumsum(blocks[:-1], axis=0)
            positives_before = np.cumsum(copies, axis=0) - copies
            gained = copies + (positives_before - before) * (harmonic[before + copies] - harmonic[before])
            drawn = copies.sum(axis=0)
            total += gained.sum(axis=0) / np.maximum(drawn, 1)
            seen += drawn > 0
        yield 100.0 * total / np.maximum(seen, 1) * len(present) / classes


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "Top-1 accuracy", *_top(1)),
        Metric("top5", "Top-5 accuracy", *_top(5)),
        Metric("mAP", "mAP", _mean_average_precision, _weighted_map),
        Metric(
            "mAP@first-label",
            "mAP of the first label",
            lambda scores, targets: _mean_average_precision(scores, targets[:, :1]),
            lambda scores, targets, draws: _weighted_map(scores, targets[:, :1], draws),
        ),
    )
}


def metric(name: str) -> Metric:
    """The metric called `name`; UsageError with a suggestion where there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def reported(main: str, classes: int) -> list[str]:
    """What a record holds besides a dataset's main metric, which comes first."""
    others = ["mAP@first-label", "top1"] if main == "mAP" else ["top5"] if classes > 5 else []
    return [metric(main).name, *others]


def evaluate(
    logits: np.ndarray, targets: np.ndarray, names: Iterable[str], *, n: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Metrics of unnormalised logits (N, C) with 95 % intervals, as in POINT_SCHEMA: name -> value, low, high."""
    scores = softmax(logits)
    result = {}
    for name in names:
        low, high = bootstrap(name, scores, targets, n=n, seed=seed)
        result[name] = {"value": metric(name)(scores, targets), "low": low, "high": high}
    return result


def bootstrap(
    name: str | Metric, scores: np.ndarray, targets: np.ndarray, *, n: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over videos; the spread over training seeds is another matter and not in it.

    Percentiles of the resampled values, moved so that their mean is the metric's value: repeated videos
    help each other's average precision, which would shift mAP's interval up (by 5 points where a class
    has four positives). For top-k the shift is nothing but resampling noise.
    """
    chosen = metric(name) if isinstance(name, str) else name
    scores, targets = _checked(scores, targets)
    values = _resampled(chosen, scores, targets, n=n, seed=seed)
    low, high = _interval(values, chosen.compute(scores, targets))
    return max(low, 0.0), min(high, 100.0)


def paired_difference(
    name: str,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    targets: np.ndarray,
    *,
    n: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """B minus A over the same videos in the same order: both are resampled together.

    Args:
        name: A metric of METRICS.
        scores_a: (N, C) scores of A.
        scores_b: (N, C) scores of B, row by row the same videos.
        targets: (N, L).
        n: Bootstrap resamples.
        seed: Of the resampling.
    """
    chosen = metric(name)
    scores_a, targets = _checked(scores_a, targets)
    scores_b, _ = _checked(scores_b, targets)
    resampled = [_resampled(chosen, scores, targets, n=n, seed=seed) for scores in (scores_a, scores_b)]
    differences = resampled[1] - resampled[0]
    value = chosen.compute(scores_b, targets) - chosen.compute(scores_a, targets)
    low, high = _interval(differences, value)
    if name in ("top1", "top5"):
        k = int(name[3:])
        p = mcnemar(correct(scores_a, targets, k), correct(scores_b, targets, k))
    else:
        centred = differences - differences.mean() + value
        side = min(int((centred <= 0).sum()), int((centred >= 0).sum()))
        p = min(1.0, 2.0 * (side + 1) / (n + 1))
    return Difference(value, low, high, p)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided McNemar p: the videos only one of two gets right, against a fair coin."""
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    flips = only_a + only_b
    if only_a == only_b:
        return 1.0
    log_half = flips * math.log(2.0)
    log_all = math.lgamma(flips + 1)
    tail = sum(
        math.exp(log_all - math.lgamma(k + 1) - math.lgamma(flips - k + 1) - log_half)
        for k in range(min(only_a, only_b) + 1)
    )
    return min(1.0, 2.0 * tail)


def _interval(values: np.ndarray, centre: float) -> tuple[float, float]:
    """2.5 and 97.5 % quantiles of `values` moved so that their mean is `centre`."""
    low, high = np.quantile(values, [0.025, 0.975]) - values.mean() + centre
    return float(low), float(high)


def _resampled(chosen: Metric, scores: np.ndarray, targets: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """The metric of n resamples, (n,); the same draws for the same seed and number of videos."""
    draws = _draws(len(scores), n, seed)
    if chosen.weighted is not None:
        return np.concatenate(list(chosen.weighted(scores, targets, draws)))
    resamples = (np.repeat(np.arange(len(scores)), counts) for block in draws for counts in block.T)
    return np.asarray([chosen.compute(scores[rows], targets[rows]) for rows in resamples])


def _draws(videos: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (videos, up to CHUNK) of counts: how often each video was drawn in each resample."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        drawn = rng.integers(videos, size=(size, videos)) + np.arange(size)[:, None] * videos
        yield np.bincount(drawn.ravel(), minlength=size * videos).reshape(size, videos).T.astype(np.int32, order="C")


def _checked(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that fit together; BenchError says what does not."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or targets.ndim != 2 or len(scores) != len(targets) or not len(scores):
        raise BenchError(f"metrics take scores (N, C) and targets (N, L), N > 0; got {scores.shape}, {targets.shape}")
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        raise BenchError(
            f"scores of {len(rows)} of {len(scores)} videos are not finite (first: row {rows[0]}); "
            "the training has diverged: lower its learning rate"
        )
    if targets.max() >= scores.shape[1]:
        raise BenchError(f"target {targets.max()} but scores have {scores.shape[1]} classes; check the label list")
    return scores, targets
