"""Bounds of rates: exact values by hand and from scipy, and what no interval may do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis.bootstrap import rate_bounds, row_interval, row_intervals, upper_bound
from casting_tune.analysis.group_sums import seed_variances

GROUPS = np.repeat(np.arange(84), 4)


def row(*wrong: int, n_images: int = GROUPS.size) -> np.ndarray:
    """One training that is wrong on some images."""
    right = np.ones((1, n_images), dtype=bool)
    right[0, list(wrong)] = False
    return right


@pytest.mark.parametrize("k", [0, 1, 7, 50, 99, 100])
def test_bounds_of_different_images_are_clopper_and_pearsons(k):
    wrong = (np.arange(100) < k).astype(float)[None]
    low, high = rate_bounds(wrong, np.ones(100))
    expected = peer.binomtest(k, 100).proportion_ci(method="exact")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_453_different_defects_without_a_miss_show_at_most_066_per_cent():
    assert upper_bound(np.zeros(453), np.arange(453)) == pytest.approx(1 - 0.05 ** (1 / 453))


def test_drawn_weights_give_clopper_and_pearsons_bounds_too():
    """A share of an image that is not whole takes the general way; it has 5 % more error here."""
    wrong = np.array([(np.arange(400) < 9) * (1 - 1e-9)], dtype=float)
    low, high = rate_bounds(wrong, np.ones(400))
    expected = peer.binomtest(9, 400).proportion_ci(method="exact")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), rel=0.05)


def test_without_an_error_the_bound_is_that_of_one_invented_group():
    """Of 84 groups of 4, the added one has 1 + 3 / 2 wrong images: 2.5 / 4 of a beta quantile.

    The tail is Phi(84 / 83 t), t with 83 degrees of freedom.
    """
    tail = peer.norm.cdf(84 / 83 * peer.t.ppf(0.025, 83))
    _, high = rate_bounds(np.zeros((1, 84)), np.full(84, 4.0))
    assert high[0] == pytest.approx(2.5 / 4 * peer.beta.ppf(1 - tail, 1, 84), rel=0.03)


def test_one_more_error_never_narrows_an_interval():
    rng = np.random.default_rng(1)
    for groups in (GROUPS, np.arange(336), rng.integers(0, 60, 336)):
        order, last = rng.permutation(336), (2.0, 2.0)
        for k in (0, 1, 2, 3, 10, 40):
            low, high = row_interval(row(*order[:k]), groups)
            assert low < last[0]
            assert high <= last[1]
            last = low, high
    before, after = (row_interval(row(*range(k)), GROUPS) for k in (0, 1))
    assert after[1] - after[0] > before[1] - before[0]


@pytest.mark.parametrize("k", [0, 1, 335, 336])
def test_no_interval_has_width_zero_or_leaves_0_to_1(k):
    low, high = row_interval(row(*range(k)), GROUPS)
    assert 0 <= low < high <= 1


def test_images_of_one_group_are_worth_less_than_different_images():
    apart, together = (row_interval(row(0, 50, 100), groups) for groups in (np.arange(336), GROUPS))
    assert together[0] < apart[0]


def test_five_groups_or_one_giant_group_get_no_interval():
    """Kish's number: 5, and 168^2 / (84^2 + 84) = 3.95."""
    few = np.repeat(np.arange(5), 20)
    giant = np.r_[np.zeros(84, int), np.arange(1, 85)]
    for groups in (few, giant):
        assert np.isnan(row_interval(row(3, n_images=groups.size), groups)).all()
        assert math.isnan(upper_bound(np.zeros(groups.size), groups))


def test_seeds_that_spread_widen_the_interval_by_students_t():
    """Two seeds with 4 and 12 errors: mean 8 of 336, sd of the mean 4 / 336, t(1) is 12.7."""
    two = np.concatenate([row(*range(0, 16, 4)), row(*range(0, 48, 4))])
    same = np.concatenate([row(*range(0, 32, 4))] * 2)
    (low, high), (least, _) = (row_interval(both, GROUPS) for both in (two, same))
    by_seeds = peer.t.ppf(0.975, 1) * 4 / 336
    groups = 328 / 336 - low
    assert groups > by_seeds
    assert groups == pytest.approx(math.hypot(by_seeds, 328 / 336 - least), rel=0.02)
    assert high == 1


def test_the_variance_of_seeds_is_pooled_over_rows_and_never_below_a_rows_own():
    """Shares of 100 images: .8 and .9 (variance .005), .9 and .9; pooled (.5 + 0) / 2 at p q."""
    rows = [np.array([[80.0], [90.0]]), np.array([[90.0], [90.0]]), np.array([[95.0]])]
    found, freedom = seed_variances(rows, np.array([100.0]))
    binomial = [p * (1 - p) for p in (86 / 102, 91 / 102, 96 / 102)]
    pooled = 0.005 / binomial[0] / 2
    assert freedom == 2
    assert found == pytest.approx([0.005, pooled * binomial[1], pooled * binomial[2]])


def test_rows_of_one_seed_have_no_variance_of_seeds():
    found, freedom = seed_variances([np.array([[80.0]])] * 3, np.array([100.0]))
    assert (found.tolist(), freedom) == ([0, 0, 0], 0)


def test_the_order_of_images_and_the_names_of_groups_change_nothing():
    rng = np.random.default_rng(2)
    right, order = rng.random((3, 336)) < 0.9, rng.permutation(336)
    names = np.array([f"casting {g:03d}" for g in GROUPS])
    assert row_interval(right[:, order], names[order]) == pytest.approx(row_interval(right, GROUPS))


def test_rows_of_one_seed_have_the_interval_that_each_has_alone():
    rng = np.random.default_rng(3)
    rows = [rng.random((1, 336)) < p for p in (0.8, 0.95, 1.1)]
    together = np.array(row_intervals(rows, GROUPS))
    assert together == pytest.approx(np.array([row_interval(one, GROUPS) for one in rows]))


def test_many_rows_are_computed_in_parts_with_the_same_result():
    rng = np.random.default_rng(4)
    wrong = (rng.random((600, 84)) < 0.1).astype(float)
    whole = rate_bounds(wrong, np.full(84, 4.0), n_draws=500)
    some = rate_bounds(wrong[550:553], np.full(84, 4.0), n_draws=500)
    assert whole[0][550:553] == pytest.approx(some[0])
    assert whole[1][550:553] == pytest.approx(some[1])


@pytest.mark.parametrize(
    ("values", "groups", "says"),
    [
        (np.ones((2, 3)), [], "at least one image"),
        (np.ones((2, 3)), [[0, 1, 2]], "at least one image"),
        (np.ones((2, 3)), [0, 1], "like its groups"),
        (np.ones(3), [0, 1, 2], "like its groups"),
        (np.ones((0, 3)), [0, 1, 2], "like its groups"),
        (np.full((2, 3), 1.5), [0, 1, 2], "shares in 0..1"),
        (np.full((2, 3), np.nan), [0, 1, 2], "shares in 0..1"),
    ],
)
def test_rows_that_do_not_fit_their_groups_are_refused(values, groups, says):
    with pytest.raises(ValueError, match=says):
        row_interval(values, groups)
