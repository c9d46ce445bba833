"""A seeded cut of `tests.benchmarks.coverage`: intervals and letters against a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis import bootstrap
from tests.benchmarks import coverage
from tests.benchmarks.coverage import REAL, REAL_DEFECTS, SIZES, Truth

N = 400


def at_least(goal: float, n: int = N) -> int:
    """Hits of n that a method with this coverage reaches in 999 of 1,000 runs."""
    return int(peer.binom.ppf(0.001, n, goal))


def at_most(goal: float, n: int) -> int:
    return int(peer.binom.ppf(0.999, n, goal))


def test_the_generator_has_the_accuracy_correlation_and_spread_that_it_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    for model in coverage.MODELS:
        truth = Truth(model, (0.95,), SIZES["84"], 0.3, 2, (0.019,))
        wrong, seen = truth.draw(2000, rng)
        assert 1 - wrong.mean() / 9 == pytest.approx(0.95, abs=0.003)
        assert seen.std() == pytest.approx(0.019, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("model", coverage.MODELS)
@pytest.mark.parametrize(
    ("sizes", "accuracy", "correlation"),
    [
        (REAL, 0.95, 0.6),
        (REAL, 0.99, 0.3),
        (REAL, 0.998, 0.6),
        (SIZES["20"], 0.95, 0.6),
        (SIZES["20"], 0.99, 0.6),
        (SIZES["84"], 0.99, 0.3),
        (SIZES["84"], 0.80, 0.3),
        (SIZES["131"], 0.998, 0.3),
        (SIZES["715 images"], 0.99, 0.0),
    ],
)
def test_the_interval_of_a_training_contains_its_accuracy_on_new_castings(
    model: str, sizes: np.ndarray, accuracy: float, correlation: float
) -> None:
    wrong, _ = Truth(model, (accuracy,), sizes, correlation).draw(N, np.random.default_rng(1))
    low, high = coverage.row_intervals(wrong, sizes)
    assert ((low <= 1 - accuracy) & (1 - accuracy <= high)).sum() >= at_least(0.93)


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "n_rows"), [(2, 1), (2, 3), (3, 3), (10, 1)])
def test_the_interval_of_a_row_contains_the_accuracy_of_new_trainings(
    n_seeds: int, n_rows: int
) -> None:
    truth = Truth("logistic", (0.95,) * n_rows, REAL, 0.3, n_seeds, (0.01,))
    wrong, _ = truth.draw(N, np.random.default_rng(2))
    low, high = coverage.row_intervals(wrong, REAL)
    assert ((low <= 0.05) & (high >= 0.05))[:, 0].sum() >= at_least(0.93)


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.95, 0.99, 0.998])
def test_the_bound_of_the_escape_rate_holds_on_photographs_of_defects(accuracy: float) -> None:
    truth = Truth("normal", (accuracy,), REAL_DEFECTS, 0.3)
    wrong, _ = truth.draw(N, np.random.default_rng(3))
    _, high = bootstrap.rate_bounds(wrong[:, 0, 0], REAL_DEFECTS.astype(float), tail=0.05)
    assert (high >= 1 - accuracy).sum() >= at_least(0.95)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.003, 0.01, 0.02])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_the_interval_of_a_difference_contains_it_near_a_faultless_row(
    gap: float, correlation: float
) -> None:
    sizes = SIZES["84"]
    truth = Truth("normal", (0.998, 0.998 - gap), sizes, correlation)
    found = coverage.pair_gaps(truth.draw(N, np.random.default_rng(4))[0], sizes)
    assert ((found.low <= gap) & (gap <= found.high)).sum() >= at_least(0.93)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_rows", "n_seeds", "sd"),
    [(2, 1, 0.0), (11, 1, 0.0), (11, 2, 0.004), (11, 3, 0.01), (33, 2, 0.01), (3, 10, 0.019)],
)
def test_equal_rows_get_different_letters_in_6_per_cent_of_tables_at_most(
    n_rows: int, n_seeds: int, sd: float
) -> None:
    n = 200
    truth = Truth("normal", (0.95,) * n_rows, SIZES["84"], 0.3, n_seeds, (sd,), "photograph")
    wrong, _ = truth.draw(n, np.random.default_rng(5))
    p = coverage.pair_gaps(wrong, SIZES["84"]).p.reshape(n, -1)
    assert (p.min(axis=1) * p.shape[1] < 0.05).sum() <= at_most(0.06, n)


@pytest.mark.slow
def test_the_methods_used_before_would_fail_this_cut() -> None:
    """So the tests above can fail: the percentile bootstrap and Welch's test."""
    wrong, _ = Truth("normal", (0.99,), REAL, 0.6).draw(N, np.random.default_rng(1))
    low, high = coverage.percentile(wrong, REAL)
    assert ((low <= 0.01) & (high >= 0.01)).sum() < at_least(0.93)
    truth = Truth("normal", (0.95,) * 11, SIZES["84"], 0.3, 2, (0.019,), "photograph")
    p = coverage.welch(truth.draw(200, np.random.default_rng(5))[0], SIZES["84"])
    assert (p.min(axis=1) * p.shape[1] < 0.05).sum() > at_most(0.06, 200)
