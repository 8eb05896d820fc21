"""Metrics against closed forms, scikit-learn and brute-force resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from harness.errors import BenchError, UsageError
from harness.measure import metrics


def problem(videos=60, classes=7, seed=0):
    """Random scores without ties and one or two labels per video."""
    rng = np.random.default_rng(seed)
    scores = metrics.softmax(rng.normal(size=(videos, classes)) * 2)
    targets = np.full((videos, 2), -1)
    targets[:, 0] = rng.integers(classes, size=videos)
    second = rng.integers(classes, size=videos)
    two = (rng.random(videos) < 0.3) & (second != targets[:, 0])
    targets[two, 1] = second[two]
    return scores, targets


def test_softmax_sums_to_one_and_survives_large_logits():
    scores = metrics.softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]]))
    np.testing.assert_allclose(scores, [[0.5, 0.5], [0.25, 0.75]])


def test_top1_and_top5_by_hand():
    scores = np.array([[6, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]], dtype=float)
    targets = np.array([[0, -1], [2, -1], [6, 1]])
    assert metrics.METRICS["top1"](scores, targets) == pytest.approx(100 / 3)
    assert metrics.METRICS["top5"](scores, targets) == pytest.approx(100.0)


def test_equal_scores_go_to_the_lower_class():
    scores = np.zeros((4, 3))
    assert metrics.METRICS["top1"](scores, np.array([[0], [1], [2], [0]])) == 50.0


def test_padding_is_never_a_label():
    assert not metrics.correct(np.array([[1.0, 0.0]]), np.array([[-1, -1]]), k=2).any()


def test_map_equals_scikit_learn_without_ties():
    scores, targets = problem(videos=200)
    hot = metrics.multi_hot(targets, scores.shape[1])
    expected = 100 * average_precision_score(hot, scores, average="macro")
    assert metrics.METRICS["mAP"](scores, targets) == pytest.approx(expected, abs=1e-9)


def test_map_by_hand_with_ties_in_list_order():
    scores = np.array([[0.9], [0.5], [0.5], [0.1]])
    hot_second = np.array([[-1], [0], [-1], [0]])
    hot_third = np.array([[-1], [-1], [0], [0]])
    assert metrics.average_precisions(scores, hot_second)[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.average_precisions(scores, hot_third)[0] == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_class_without_positives_keeps_its_column_and_counts_as_zero():
    scores = np.eye(3)[[0, 2]]
    targets = np.array([[0], [2]])
    assert metrics.METRICS["mAP"](scores, targets) == pytest.approx(100 * 2 / 3)
    assert metrics.classes_without_positives(targets, 3) == [1]


def test_first_label_ignores_the_others():
    scores, targets = problem()
    alone = metrics.METRICS["mAP"](scores, targets[:, :1])
    assert metrics.METRICS["mAP@first-label"](scores, targets) == alone
    assert metrics.METRICS["mAP"](scores, targets) != pytest.approx(alone)


@pytest.mark.parametrize("name", ["top1", "top5", "mAP", "mAP@first-label"])
def test_resampled_metric_equals_the_metric_of_the_repeated_videos(name):
    scores, targets = problem(videos=300)
    counts = next(metrics._draws(len(scores), 20, seed=3))
    fast = next(metrics.METRICS[name].weighted(scores, targets, [counts]))
    slow = [
        metrics.METRICS[name](scores[rows], targets[rows])
        for rows in (np.repeat(np.arange(len(scores)), column) for column in counts.T)
    ]
    np.testing.assert_allclose(fast, slow, atol=1e-9)


def test_resample_without_a_class_leaves_that_class_out():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    targets = np.array([[0], [0], [1]])
    counts = np.array([[1], [2], [0]], dtype=np.int32)
    assert next(metrics.METRICS["mAP"].weighted(scores, targets, [counts]))[0] == pytest.approx(100.0)


def test_draws_are_whole_and_differ_between_blocks():
    blocks = list(metrics._draws(40, metrics.CHUNK + 10, seed=0))
    assert [block.shape[1] for block in blocks] == [metrics.CHUNK, 10]
    assert all((block.sum(axis=0) == 40).all() for block in blocks)
    assert not (blocks[0][:, :10] == blocks[1]).all()


def test_bootstrap_of_accuracy_is_near_the_binomial_interval():
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.8
    scores = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    low, high = metrics.bootstrap("top1", scores, np.zeros((1000, 1), dtype=int))
    width = 2 * 1.96 * 100 * np.sqrt(right.mean() * (1 - right.mean()) / 1000)
    assert low < 100 * right.mean() < high
    assert high - low == pytest.approx(width, rel=0.12)


def test_bootstrap_is_deterministic_and_depends_on_its_seed():
    scores, targets = problem()
    assert metrics.bootstrap("mAP", scores, targets) == metrics.bootstrap("mAP", scores, targets)
    assert metrics.bootstrap("mAP", scores, targets) != metrics.bootstrap("mAP", scores, targets, seed=1)


def test_interval_of_map_is_not_pulled_up_by_repeated_videos():
    scores, targets = problem(videos=60, classes=20)
    value = metrics.METRICS["mAP"](scores, targets)
    low, high = metrics.bootstrap("mAP", scores, targets)
    assert low < value < high
    assert (low + high) / 2 == pytest.approx(value, abs=2.0)


def test_evaluate_gives_the_record_form():
    scores, targets = problem()
    result = metrics.evaluate(np.log(scores), targets, metrics.reported("mAP", 7))
    assert list(result) == ["mAP", "mAP@first-label", "top1"]
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in result.values())


def test_reported_leaves_out_a_top5_that_says_nothing():
    assert metrics.reported("top1", 5) == ["top1"]
    assert metrics.reported("top1", 10) == ["top1", "top5"]


def test_mcnemar_is_the_exact_binomial_test():
    a = np.array([1] * 12 + [0] * 3 + [1] * 40, dtype=bool)
    b = np.array([0] * 12 + [1] * 3 + [1] * 40, dtype=bool)
    assert metrics.mcnemar(a, b) == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert metrics.mcnemar(a, a) == 1.0
    many = np.arange(20_000) % 2 == 0
    assert metrics.mcnemar(many, np.zeros_like(many)) == 0.0


def test_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(1)
    right_a = rng.random(500) < 0.5
    right_b = right_a | (rng.random(500) < 0.04)
    targets = np.zeros((500, 1), dtype=int)
    scores_a, scores_b = (np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]]) for right in (right_a, right_b))
    found = metrics.paired_difference("top1", scores_a, scores_b, targets)
    assert found.value == pytest.approx(100 * (right_b.mean() - right_a.mean()))
    assert 0 < found.low <= found.value <= found.high
    assert found.p < 0.05
    assert metrics.bootstrap("top1", scores_a, targets)[1] > metrics.bootstrap("top1", scores_b, targets)[0]


def test_paired_difference_of_map_is_signed_and_null_for_itself():
    scores, targets = problem(videos=200)
    better = scores + 0.2 * metrics.multi_hot(targets, scores.shape[1])
    gain = metrics.paired_difference("mAP", scores, better, targets, n=200)
    assert gain.low > 0 and gain.p < 0.05
    assert metrics.paired_difference("mAP", better, scores, targets, n=200).value == pytest.approx(-gain.value)
    same = metrics.paired_difference("mAP", scores, scores, targets, n=200)
    assert (same.value, same.p) == (0.0, 1.0)


def test_every_metric_declares_direction_and_unit():
    for name, chosen in metrics.METRICS.items():
        assert chosen.name == name and chosen.unit == "%" and chosen.higher_is_better


def test_unknown_metric_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'top1'"):
        metrics.metric("top-1")


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 1), dtype=int), "got"),
        (np.zeros((0, 3)), np.zeros((0, 1), dtype=int), "N > 0"),
        (np.array([[0.0, np.nan]]), np.zeros((1, 1), dtype=int), "1 of 1 videos are not finite"),
        (np.zeros((1, 2)), np.array([[2]]), "2 classes"),
    ],
)
def test_what_does_not_fit_is_named(scores, targets, message):
    with pytest.raises(BenchError, match=message):
        metrics.METRICS["top1"](scores, targets)
