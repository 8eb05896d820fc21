"""Metrics against closed forms, scikit-learn and plain resampling."""

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
def test_contributions_have_the_value_as_their_mean(name):
    scores, targets = problem(videos=300)
    contributions = metrics.METRICS[name].contributions(scores, targets)
    assert contributions.shape == (300,)
    assert contributions.mean() == pytest.approx(metrics.METRICS[name](scores, targets))


def test_contributions_to_map_are_its_derivative_by_the_weight_of_a_video():
    rng = np.random.default_rng(4)
    scores, hits = rng.normal(size=50), rng.random(50) < 0.3

    def weighted(weights):
        order = np.argsort(-scores, kind="stable")
        w, h = weights[order], hits[order]
        return 100 * (w * h * np.cumsum(w * h) / np.cumsum(w)).sum() / (w * h).sum()

    chosen = metrics.METRICS["mAP"]
    targets = np.where(hits, 0, -1)[:, None]
    assert weighted(np.ones(50)) == pytest.approx(chosen(scores[:, None], targets))
    found = chosen.contributions(scores[:, None], targets) - chosen(scores[:, None], targets)
    step = 1e-6 * np.eye(50)
    slopes = [(weighted(1 + up) - weighted(1 - up)) / 2e-6 for up in step]
    few = np.sqrt(hits.sum() / (hits.sum() - 1))
    np.testing.assert_allclose(found, 50 * few * np.array(slopes), atol=1e-4)


def bootstrap_error(name, scores, targets, resamples=400):
    """Standard deviation of a metric over plain resamples of the videos."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(scores), size=(resamples, len(scores)))
    return np.std([metrics.METRICS[name](scores[r], targets[r]) for r in rows])


@pytest.mark.parametrize("name", ["top1", "mAP"])
def test_spread_of_contributions_is_that_of_the_plain_bootstrap(name):
    scores, targets = problem(videos=400, classes=5)
    error = metrics.METRICS[name].contributions(scores, targets).std(ddof=1) / np.sqrt(400)
    assert error == pytest.approx(bootstrap_error(name, scores, targets), rel=0.1)


def test_interval_of_map_covers_the_value_of_many_videos():
    rng = np.random.default_rng(2)

    def drawn(videos):
        targets = rng.integers(10, size=(videos, 1))
        logits = rng.normal(size=(videos, 10))
        logits[np.arange(videos), targets[:, 0]] += 3
        return metrics.softmax(logits), targets

    truth = metrics.METRICS["mAP"](*drawn(40_000))
    ends = np.array([metrics.interval("mAP", *drawn(200)) for _ in range(300)])
    assert 0.92 < np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) < 0.99


def test_metric_without_a_linear_form_is_jackknifed():
    scores, targets = problem(videos=450)
    top = metrics.METRICS["top1"]
    plain = metrics.Metric("plain", "Plain", top.compute)
    one, other = plain.contributions(scores, targets), top.contributions(scores, targets)
    assert one.mean() == pytest.approx(other.mean())
    assert one.std() == pytest.approx(other.std(), rel=0.1)


def test_interval_of_accuracy_is_wilsons():
    right = np.arange(16) < 15
    scores = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    expected = stats.binomtest(15, 16).proportion_ci(method="wilson")
    found = metrics.interval("top1", scores, np.zeros((16, 1), dtype=int))
    assert found == pytest.approx((100 * expected.low, 100 * expected.high))


def test_evaluate_gives_the_record_form():
    scores, targets = problem()
    result = metrics.evaluate(np.log(scores), targets, metrics.reported("mAP", 7))
    assert list(result) == ["mAP", "mAP@first-label", "top1"]
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in result.values())


def test_reported_leaves_out_a_top5_that_says_nothing():
    assert metrics.reported("top1", 5) == ["top1"]
    assert metrics.reported("top1", 10) == ["top1", "top5"]


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
