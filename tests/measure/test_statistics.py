"""Inference by simulation: how often equal methods are called different, how often a difference is found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.measure.statistics import difference, holm, mean_interval, pooled_interval, wilson

NOMINAL, ALLOWED = 0.05, 0.06
CELLS = [(seeds, videos, share) for seeds in (2, 3, 5) for videos in (50, 200, 500) for share in (70, 90, 98)]
NOISE = (0.0, 1.0, 3.0)
"""Standard deviation over training seeds, in points of accuracy."""


def outcomes(rng, seeds, videos, accuracy, noise, runs=1):
    """Right (100) or wrong (0), (runs, seeds, videos), of two methods whose accuracies are `accuracy`.

    A video is right where a normal variable passes a threshold: difficulty shared by both methods, what is hard for
    one of them, what one training made of it, and that training's luck.
    """
    common = 0.65 * rng.standard_normal((runs, 1, videos), dtype=np.float32)
    found = []
    for share in accuracy:
        threshold = stats.norm.ppf(share / 100)
        luck = noise / 100 / stats.norm.pdf(threshold)
        latent = common + 0.53 * rng.standard_normal((runs, 1, videos), dtype=np.float32)
        latent = latent + 0.545 * rng.standard_normal((runs, seeds, videos), dtype=np.float32)
        latent += luck * rng.standard_normal((runs, seeds, 1), dtype=np.float32)
        found.append(100.0 * (latent + threshold * np.sqrt(1 + luck**2) > 0))
    return found


def called_different(rng, seeds, videos, accuracy, noise, runs):
    """Share of simulated pairs of methods with p < 5 %."""
    a, b = outcomes(rng, seeds, videos, accuracy, noise, runs)
    return np.mean([difference([x], [y]).p < NOMINAL for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("noise", NOISE)
def test_equal_methods_are_seldom_called_different(noise):
    rng = np.random.default_rng(int(noise))
    rates = {cell: called_different(rng, *cell[:2], (cell[2],) * 2, noise, runs=600) for cell in CELLS}
    assert 0.005 < np.mean(list(rates.values())) < NOMINAL, "never to reject would be no test"
    slack = 3 * np.sqrt(ALLOWED * (1 - ALLOWED) / 600)  # the simulation's own error in one cell
    assert max(rates.values()) < ALLOWED + slack, rates


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_pairing_over_videos_alone_calls_training_noise_a_difference(noise):
    rng = np.random.default_rng(3)
    a, b = outcomes(rng, 1, 1000, (90, 90), noise, 300)
    single = [difference([x], [y]) for x, y in zip(a, b, strict=True)]
    assert not any(found.covers_training for found in single)
    assert np.mean([found.p < NOMINAL for found in single]) > 0.15


def test_a_difference_of_three_points_is_found():
    rng = np.random.default_rng(4)
    power = {seeds: called_different(rng, seeds, 1000, (93, 90), 0.5, runs=150) for seeds in (2, 3, 5)}
    assert power[3] > 0.75 and power[5] > 0.95
    assert power[2] < power[3] < power[5]


def test_interval_covers_the_true_difference():
    rng = np.random.default_rng(5)
    a, b = outcomes(rng, 3, 300, (90, 84), 1.0, 600)
    found = [difference([x], [y]) for x, y in zip(a, b, strict=True)]
    assert 0.94 < np.mean([f.low <= 6 <= f.high for f in found]) <= 1.0


def test_without_seed_noise_it_is_the_paired_test_over_videos():
    a = 100.0 * (np.random.default_rng(0).random((1, 2000)) < 0.8)
    b = 100.0 * (np.random.default_rng(1).random((1, 2000)) < 0.75)
    expected = stats.ttest_rel(a[0], b[0])
    found = difference([a], [b])
    assert found.p == pytest.approx(expected.pvalue, rel=0.05)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=0.02)
    assert (found.seeds, found.videos, found.covers_training) == ((1, 1), 2000, False)


def test_with_little_else_it_is_welch_over_seeds():
    rng = np.random.default_rng(2)
    a, b = (np.repeat(rng.normal(mean, 5, (4, 1)), 5000, axis=1) for mean in (80, 70))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    found = difference([a], [b])
    assert found.p == pytest.approx(expected.pvalue, rel=0.01)
    assert found.df == pytest.approx(expected.df, rel=0.01)


def test_exchanging_the_methods_changes_the_sign_only():
    (a,), (b,) = outcomes(np.random.default_rng(6), 3, 100, (80, 70), 1.0)
    one, other = difference([a], [b]), difference([b], [a])
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-other.value, -other.high, -other.low, other.p))
    assert difference([a], [a]).p == 1.0


def test_folds_are_strata_and_replace_seeds_where_there_is_one():
    rng = np.random.default_rng(7)
    folds = [outcomes(rng, 1, 40, (85, 85), 4.0) for _ in range(5)]
    a, b = [x[0] for x, _ in folds], [y[0] for _, y in folds]
    found = difference(a, b)
    means = [float((x - y).mean()) for x, y in zip(a, b, strict=True)]
    assert found.covers_training and found.df == 4 and found.folds == 5 and found.videos == 200
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert not difference(a[:2], b[:2]).covers_training


def scored(right, videos):
    """One network's scores (1, videos) of a fold in which it gets `right` videos right."""
    return np.repeat([[100.0, 0.0]], [right, videos - right], axis=1)


@pytest.mark.parametrize("seeds", [(1, 1), (2, 1)])
def test_folds_that_agree_by_luck_are_no_certainty(seeds):
    a, b = ([np.repeat(scored(right, 10), n, axis=0)] * 3 for right, n in zip((9, 8), seeds, strict=True))
    found = difference(a, b)
    assert found.value == pytest.approx(10) and found.df == 2
    assert found.p > 0.2 and found.low < 0 < found.high
    pooled = [scored(27, 30)[0]] * 3
    low, high = pooled_interval(pooled)
    assert (low, high) == mean_interval(np.concatenate(pooled)) and low < 83 and high > 94


def test_noise_between_folds_is_seldom_called_a_difference():
    rng = np.random.default_rng(8)
    folds = [outcomes(rng, 1, 60, (85, 85), 3.0, 800) for _ in range(5)]
    rejected = [difference([x[i] for x, _ in folds], [y[i] for _, y in folds]).p < NOMINAL for i in range(800)]
    assert 0.005 < np.mean(rejected) <= ALLOWED


def test_wilson_is_scipys_and_covers_at_sixteen_videos():
    for right, n in ((0, 5), (15, 16), (45, 50), (50, 50)):
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    shares = np.linspace(0.5, 0.98, 25)
    weights = stats.binom.pmf(np.arange(17)[:, None], 16, shares)
    ends = np.array([wilson(k, 16) for k in range(17)])
    covered = (weights * ((ends[:, :1] <= shares) & (shares <= ends[:, 1:]))).sum(axis=0)
    assert covered.mean() > 0.94 and covered.min() > 0.85


def test_mean_interval_of_graded_scores_stays_within_percent():
    scores = np.array([100.0] * 30 + [60.0] * 2)
    low, high = mean_interval(scores)
    assert 90 < low < scores.mean() < high < 100


def test_pooled_interval_counts_folds_not_videos():
    rng = np.random.default_rng(9)
    folds = [100.0 * (rng.random(200) < share) for share in (0.7, 0.8, 0.9, 0.75, 0.85)]
    pooled, alone = pooled_interval(folds), mean_interval(np.concatenate(folds))
    assert pooled[1] - pooled[0] > 1.5 * (alone[1] - alone[0])
    assert pooled_interval(folds[:2]) == mean_interval(np.concatenate(folds[:2]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]
