"""Exits: scores, the thresholds' closed forms, and that a calibrated budget is met."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.contract.exits import (
    NEVER,
    calibrate_thresholds,
    exit_scores,
    exit_steps,
    point_thresholds,
    should_exit,
)
from harness.errors import UsageError

COSTS = np.arange(1, 9) * 2.5


def exit_logits(videos: int = 200, exits: int = 8, seed: int = 0) -> np.ndarray:
    """Logits that grow surer from exit to exit, at a pace of each video's own."""
    rng = np.random.default_rng(seed)
    pace = rng.uniform(0.1, 1.5, (videos, 1, 1))
    return (rng.standard_normal((videos, exits, 10)) * pace * np.arange(1, exits + 1)[:, None]).astype(np.float32)


def mean_cost(logits: np.ndarray, thresholds: np.ndarray, score: str = "softmax") -> float:
    scores = exit_scores(torch.as_tensor(logits), score).numpy()
    return float(COSTS[exit_steps(scores, thresholds)].mean())


def test_scores() -> None:
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])
    torch.testing.assert_close(exit_scores(logits), torch.tensor([0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(exit_scores(logits, "logit"), torch.tensor([0.0, np.log(3.0)], dtype=torch.float64))
    entropies = torch.tensor([-np.log(2.0), 0.75 * np.log(0.75) + 0.25 * np.log(0.25)])
    torch.testing.assert_close(exit_scores(logits, "entropy"), entropies)
    assert exit_scores(torch.tensor([1e4, 0.0]), "entropy") == 0  # a probability that underflows is no NaN
    assert should_exit(logits, 0.6).tolist() == [False, True]
    with pytest.raises(UsageError, match="did you mean 'softmax'"):
        exit_scores(logits, "sofmax")


def test_scores_do_not_saturate_early() -> None:
    """In single precision both would be 1 and tie."""
    sure, surer = exit_scores(torch.tensor([[20.0, 0.0], [25.0, 0.0]]))
    assert sure < surer < 1


def test_first_threshold_reached_counts() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.9], [0.1, 0.1, 0.1]])
    assert exit_steps(scores, np.array([0.5, 0.5, 0.5])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("score", ["softmax", "logit"])
@pytest.mark.parametrize("budget", [0.15, 0.25, 0.4, 0.5, 0.75, 0.9])
def test_budget_is_met_from_below(budget: float, score: str) -> None:
    logits = exit_logits()
    cost = mean_cost(logits, calibrate_thresholds(logits, COSTS, budget, score=score), score) / COSTS[-1]
    assert budget - 0.02 <= cost <= budget + 1e-9


def test_full_budget_lets_nobody_out_early() -> None:
    logits = exit_logits()
    thresholds = calibrate_thresholds(logits, COSTS, 1.0)
    assert thresholds.tolist() == [NEVER] * 7 + [-NEVER]


def test_a_budget_below_the_first_exit_takes_the_first_exit() -> None:
    logits = exit_logits()
    assert mean_cost(logits, calibrate_thresholds(logits, COSTS, 0.01)) == COSTS[0]


def test_the_surest_leave_first() -> None:
    """Two exits, half of the budget range: the surer half leaves at the first."""
    sure = np.linspace(0.1, 6, 10)
    logits = np.zeros((10, 2, 2), dtype=np.float32)
    logits[:, :, 0] = sure[:, None]
    thresholds = calibrate_thresholds(logits, np.array([1.0, 2.0]), 0.75)
    scores = exit_scores(torch.as_tensor(logits)).numpy()
    assert exit_steps(scores, thresholds).tolist() == [1] * 5 + [0] * 5


def test_ties_never_exceed_the_budget() -> None:
    logits = np.ones((20, 8, 3), dtype=np.float32)
    assert mean_cost(logits, calibrate_thresholds(logits, COSTS, 0.5)) <= 0.5 * COSTS[-1]


def test_shapes_must_fit() -> None:
    with pytest.raises(UsageError, match="7 exit costs"):
        calibrate_thresholds(exit_logits(), COSTS[:7], 0.5)


def test_thresholds_of_points() -> None:
    assert point_thresholds({}, 3) is None
    assert point_thresholds({"exit_at": 1}, 3) == [NEVER, -NEVER, -NEVER]
    assert point_thresholds({"thresholds": [1, 0.5, -NEVER]}, 3) == [1.0, 0.5, -NEVER]


@pytest.mark.parametrize("step", ["abc", 2.5, None, True, -1, 3, [1]])
def test_exits_that_are_none_are_named(step: object) -> None:
    with pytest.raises(UsageError, match="exit_at .*there are 3 exits, 0 to 2") as caught:
        point_thresholds({"exit_at": step}, 3)
    assert repr(step) in str(caught.value)


@pytest.mark.parametrize("thresholds", [0.5, "abc", None, [0.1, 0.2, "x"], [0.1, 0.2, True], [0.1, 0.2, np.nan]])
def test_thresholds_that_are_no_numbers_are_named(thresholds: object) -> None:
    with pytest.raises(UsageError, match="a list of 3 numbers") as caught:
        point_thresholds({"thresholds": thresholds}, 3)
    assert repr(thresholds) in str(caught.value)
    with pytest.raises(UsageError, match="2 thresholds for 3 exits"):
        point_thresholds({"thresholds": [0.1, 0.2]}, 3)
