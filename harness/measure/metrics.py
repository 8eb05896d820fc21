"""Metrics: each one pure function of scores and targets, with its direction, unit and interval.

    scores = softmax(logits)                     # (N, C), once; mAP compares scores across videos
    METRICS["mAP"](scores, targets)              # percent
    interval("mAP", scores, targets)             # 95 % interval over videos
    evaluate(logits, targets, ["top1", "top5"])  # what an evaluation record holds

Targets are (N, L) integers, L labels per video padded with -1; class indices are fixed: a class without
a positive video keeps its column. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from harness.errors import BenchError, unknown
from harness.measure.statistics import PERCENT, mean_interval

BLOCKS = 200
"""Blocks of videos that the jackknife of a metric without a `linear` form leaves out in turn."""


@dataclass(frozen=True)
class Metric:
    """A named quality of a set of predictions; call it with (scores (N, C), targets (N, L))."""

    name: str
    title: str
    compute: Callable[[np.ndarray, np.ndarray], float]
    """Scores and targets to a value in `unit`; all videos count once."""
    linear: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """What each video contributes, (N,), in `unit`: their mean is the value, their spread its uncertainty.
    None: a jackknife over blocks of videos, which calls `compute` up to BLOCKS times."""
    unit: str = "%"
    higher_is_better: bool = True

    def __call__(self, scores: np.ndarray, targets: np.ndarray) -> float:
        return self.compute(*_checked(scores, targets))

    def contributions(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """What each video contributes to the value, (N,) in `unit`: top-k 0 or 100, mAP its linearisation.

        Without `linear` the videos of a block share their block's jackknife pseudo-value.
        """
        scores, targets = _checked(scores, targets)
        return self.linear(scores, targets) if self.linear is not None else _jackknife(self.compute, scores, targets)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    exponent = np.exp(shifted)
    return exponent / exponent.sum(axis=-1, keepdims=True)


def correct(scores: np.ndarray, targets: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether a label of the video is among its k best classes, (N,) bool; of equal scores the lower index wins."""
    best = scores.argmax(1)[:, None] if k == 1 else np.argsort(-scores, axis=1, kind="stable")[:, :k]
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


def _top(k: int) -> tuple[Callable[..., float], Callable[..., np.ndarray]]:
    """Accuracy of the k best classes, and whether each video is right."""

    def linear(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return PERCENT * correct(scores, targets, k)

    def compute(scores: np.ndarray, targets: np.ndarray) -> float:
        return float(linear(scores, targets).mean())

    return compute, linear


def _linear_map(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """mAP, and beside it how mAP changes with each video's weight: the infinitesimal jackknife, after one sort.

    With weights w, AP = sum_i h_i w_i P_i / T_i / sum_i h_i w_i over ranks i, h the hits, P and T the weights of hits
    and of all videos up to a rank. Its derivative by w_k at w = 1 is
    (h_k P_k / k + h_k U_k - W_k - AP h_k) / hits, U_k and W_k the sums of h_i / i and of h_i P_i / i^2 from k on.
    A class with few hits is given their n / (n - 1), as a sample variance is.
    """
    videos, classes = scores.shape
    positive = multi_hot(targets, classes)
    ranks = np.arange(1, videos + 1)
    influence, total = np.zeros(videos), 0.0
    for label in np.flatnonzero(positive.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        hits = positive[order, label].astype(np.float64)
        precision = np.cumsum(hits) / ranks
        count = hits.sum()
        average = float(precision @ hits) / count
        later = np.cumsum((hits / ranks)[::-1])[::-1]
        displaced = np.cumsum((hits * precision / ranks)[::-1])[::-1]
        few = np.sqrt(count / max(count - 1, 1))
        influence[order] += few * (hits * (precision + later - average) - displaced) / count
        total += average
    return PERCENT * (total + videos * influence) / classes


def _jackknife(
    compute: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Pseudo-values (N,): blocks of neighbouring videos are left out in turn; their mean is moved to the value."""
    value = compute(scores, targets)
    if len(scores) < 2:
        return np.full(len(scores), value)
    blocks = np.array_split(np.arange(len(scores)), min(BLOCKS, len(scores)))
    left = [compute(np.delete(scores, rows, axis=0), np.delete(targets, rows, axis=0)) for rows in blocks]
    pseudo = [value + (len(scores) - len(rows)) / len(rows) * (value - v) for rows, v in zip(blocks, left, strict=True)]
    # Videos of one block move together: spread so that the mean of N values is as uncertain as that of the blocks.
    sizes = np.asarray([len(rows) for rows in blocks])
    spread = np.repeat((np.asarray(pseudo) - np.mean(pseudo)) * np.sqrt(sizes), sizes)
    return value + spread - spread.mean()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "Top-1 accuracy", *_top(1)),
        Metric("top5", "Top-5 accuracy", *_top(5)),
        Metric("mAP", "mAP", _mean_average_precision, _linear_map),
        Metric(
            "mAP@first-label",
            "mAP of the first label",
            lambda scores, targets: _mean_average_precision(scores, targets[:, :1]),
            lambda scores, targets: _linear_map(scores, targets[:, :1]),
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


def evaluate(logits: np.ndarray, targets: np.ndarray, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Metrics of unnormalised logits (N, C) with 95 % intervals, as in POINT_SCHEMA: name -> value, low, high."""
    scores = softmax(logits)
    result = {}
    for name in names:
        low, high = interval(name, scores, targets)
        result[name] = {"value": metric(name)(scores, targets), "low": low, "high": high}
    return result


def interval(name: str | Metric, scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """95 % interval over videos (docs/measurement.md#intervals); the spread over training seeds is not in it."""
    chosen = metric(name) if isinstance(name, str) else name
    return mean_interval(chosen.contributions(scores, targets))


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
