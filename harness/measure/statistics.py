"""Inference about networks and methods: intervals, the difference of two methods, Holm's correction. No torch.

    wilson(45, 50)                          # share of videos a network gets right, with its 95 % interval
    difference([a], [b])                    # A minus B; a, b (seeds, videos) scores of the same videos
    holm([0.01, 0.04])                      # p-values corrected for their number

Every metric is a mean over videos of what each contributes (`harness.measure.metrics.Metric.contributions`), so one
model serves all of them. Model, alternatives and simulated false alarms: docs/measurement.md#two-methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

LEVEL = 0.95
SIGNIFICANT = 1 - LEVEL
FEWEST_VIDEOS = 20
"""Below, an interval over videos spans 40 points or more around 50 %, and says nothing worth printing."""
FEWEST_FOLDS = 3
"""Below, the spread between folds has no degrees of freedom worth the name."""
PERCENT = 100.0


@dataclass(frozen=True)
class Effect:
    """A minus B, in the unit of the scores."""

    value: float
    low: float
    high: float
    """Interval at the level that was asked for."""
    p: float
    """Two-sided, not corrected."""
    df: float
    """Degrees of freedom of the t distribution (Satterthwaite)."""
    seeds: tuple[int, int]
    """Training seeds of A and B; the fewest of any fold."""
    videos: int
    folds: int
    covers_training: bool
    """Whether interval and p cover the chance of training; else they speak of the networks at hand only."""

    def better(self, alpha: float) -> bool:
        """Whether A is shown to be better, one-sided."""
        return self.value > 0 and self.p / 2 <= alpha


def wilson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share, in [0, 1] (Wilson 1927): covers as it says also at small n and near 0 and 1."""
    z = float(ndtri((1 + level) / 2))
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(contributions: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of what videos contribute, (N,) in percent, over videos.

    Wilson's where a video is either right (100) or wrong (0), else Student's t on the scale of log odds, on which
    a value near 100 is not as far from 100 as from 90.
    """
    n, mean = len(contributions), float(contributions.mean())
    if np.isin(contributions, (0.0, PERCENT)).all():
        low, high = wilson(mean / PERCENT * n, n, level)
        return PERCENT * low, PERCENT * high
    if n < 2 or not 0 < mean < PERCENT:
        return 0.0, PERCENT
    return _within_percent(mean, _quantile(level, n - 1) * float(contributions.std(ddof=1)) / np.sqrt(n))


def pooled_interval(folds: Sequence[np.ndarray], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean over all videos of several folds, each (V,) in percent, each tested by networks of its own.

    The folds are the units: videos of one fold share the luck of its networks. Folds that lie close together by luck
    do not make it narrower than the interval over videos, which is the answer below FEWEST_FOLDS.
    """
    everything = np.concatenate(folds)
    over_videos = mean_interval(everything, level)
    mean = float(everything.mean())
    if len(folds) < FEWEST_FOLDS or not 0 < mean < PERCENT:
        return over_videos
    variance = _between([f.mean() for f in folds], [len(f) / len(everything) for f in folds])
    over_folds = _within_percent(mean, _quantile(level, len(folds) - 1) * np.sqrt(variance))
    return min(over_videos[0], over_folds[0]), max(over_videos[1], over_folds[1])


def log_mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of the geometric mean of two and more positive values."""
    logs = np.log(values)
    half = _quantile(level, len(logs) - 1) * float(logs.std(ddof=1)) / np.sqrt(len(logs))
    low, high = np.exp(logs.mean() + np.asarray([-half, half]))
    return float(low), float(high)


def difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray], level: float = LEVEL) -> Effect:
    """A minus B in a mixed model: videos, shared by both, crossed with the training seeds of each.

    A score is a method's mean, plus a deviation of the training (random, per seed), of the video (random, per
    method) and of both together. The variance of the difference follows from the mean squares of that model, its
    degrees of freedom from Satterthwaite's approximation; seeds of A and B are not pairs. Folds are strata; where they
    have one seed each, FEWEST_FOLDS of them and more replace the seeds: the variance is then that between folds, but
    never less than that over their videos.

    Args:
        a: Of every fold (one, where there are none) the scores (S, V) in percent of method A.
        b: The same of B: other seeds, their number may differ; the same videos in the same order.
        level: Of the interval.
    """
    parts = [_crossed(x, y) for x, y in zip(a, b, strict=True)]
    videos = sum(x.shape[1] for x in a)
    weights = np.asarray([x.shape[1] / videos for x in a])
    values, variances, spreads, of_videos = (np.asarray(column) for column in zip(*parts, strict=True))
    value = float(weights @ values)
    seeds = (min(len(x) for x in a), min(len(y) for y in b))
    if min(seeds) < 2 and len(a) >= FEWEST_FOLDS:
        variance = max(_between(values, weights), float(weights**2 @ of_videos))
        df = len(a) - 1.0
    else:
        variance = float(weights**2 @ variances)
        df = max(1.0, variance**2 / float(weights**4 @ spreads))
    error = np.sqrt(variance)
    half = _quantile(level, df) * error
    p = float(2 * stdtr(df, -abs(value) / error))
    covers = min(seeds) >= 2 or len(a) >= FEWEST_FOLDS
    return Effect(value, value - half, value + half, p, df, seeds, videos, len(a), covers)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family of tests, in the order given (Holm 1979)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _crossed(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float, float]:
    """A minus B of one fold, the variance of that, the sum of its terms' squares over their degrees of freedom, and
    the variance over videos alone.
    """
    videos = a.shape[1]
    paired = a.mean(axis=0) - b.mean(axis=0)
    value = float(paired.mean())
    # Half a video that only A gets right and half a one that only B does (Agresti and Min 2005): few videos on which
    # two networks differ would otherwise pass for certainty.
    squares = float(((paired - value) ** 2).sum()) + PERCENT**2
    of_videos = squares / (videos + 1) / (videos + 2)
    variance, spread = of_videos, of_videos**2 / (videos + 1)
    if min(len(a), len(b)) > 1:
        for scores in (a, b):
            of_seeds, residual = _mean_squares(scores)
            variance += (of_seeds - residual) / scores.size
            # The mean square of seeds holds the residual: an estimate below it is too small by luck.
            spread += (max(of_seeds, residual) / scores.size) ** 2 / (len(scores) - 1)
    # Differences of mean squares may fall to zero and below.
    return value, max(variance, of_videos / 4), spread, of_videos


def _mean_squares(scores: np.ndarray) -> tuple[float, float]:
    """Mean squares of seeds and of the residual, of scores (S, V)."""
    seeds, videos = scores.shape
    by_seed, by_video, mean = scores.mean(axis=1), scores.mean(axis=0), scores.mean()
    of_seeds = videos * float(((by_seed - mean) ** 2).sum())
    residual = float(((scores - mean) ** 2).sum()) - of_seeds - seeds * float(((by_video - mean) ** 2).sum())
    return of_seeds / (seeds - 1), max(residual, 0.0) / ((seeds - 1) * max(videos - 1, 1))


def _between(values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray) -> float:
    """Variance of a weighted mean of folds, from how far they lie apart."""
    values, weights = np.asarray(values), np.asarray(weights)
    apart = float((weights**2 * (values - weights @ values) ** 2).sum())
    return apart * len(values) / (len(values) - 1)


def _within_percent(mean: float, half: float) -> tuple[float, float]:
    """Ends of mean +- half, taken on the scale of log odds (delta method)."""
    share = mean / PERCENT
    reach = half / PERCENT / (share * (1 - share))
    low, high = expit(logit(share) + np.asarray([-reach, reach]))
    return PERCENT * float(low), PERCENT * float(high)


def _quantile(level: float, df: float) -> float:
    """Two-sided quantile of Student's t."""
    return float(stdtrit(df, (1 + level) / 2))
