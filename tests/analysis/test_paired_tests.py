"""pairs: exact values by hand, Fisher's and Welch's tests as peers, and simulated sweeps."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis.bootstrap import bootstrap_interval, bootstrap_intervals
from casting_tune.analysis.paired_tests import all_pairs, letters, paired_bootstrap
from casting_tune.analysis.statistics import holm, mcnemar, wilson

N = 715  # test images of the published set
PHOTOS = 84  # about as many castings do they show


def groups_of(rng: np.random.Generator, n_groups: int) -> np.ndarray:
    """N images in groups of unequal size, each at least one; sizes vary by 60 % of their mean."""
    share = rng.gamma(3, size=n_groups)
    return np.concatenate(
        [np.arange(n_groups), rng.choice(n_groups, N - n_groups, p=share / share.sum())]
    )


def trained(
    rng: np.random.Generator,
    groups: np.ndarray,
    seeds: tuple[int, ...],
    *,
    ease: float = 3.2,
    drop: tuple[float, ...] = (),
    by_photo: float = 1.0,
    by_row_and_photo: float = 0.0,
    by_seed: float = 0.0,
    by_seed_and_photo: float = 0.5,
) -> list[np.ndarray]:
    """Rows [n_seeds_i, N] of bool: an image is correct if its latent ease is above zero.

    Photos and images have an ease that all rows share; a seed shifts all of its images and each of
    its photos; each decision has luck of its own, sd 1. With ease 3.2 about 98 % are right; by_seed
    0.2, 0.4 and 0.8 spread the accuracy of seeds by about 0.9, 1.5 and 4 points.
    """
    photo, image = (
        rng.normal(0, by_photo, groups.max() + 1)[groups],
        rng.normal(0, 0.5, groups.size),
    )
    rows = []
    for s, less in zip(seeds, drop or (0.0,) * len(seeds), strict=True):
        own = rng.normal(0, by_row_and_photo, groups.max() + 1)[groups]
        seed = (
            rng.normal(0, by_seed, (s, 1))
            + rng.normal(0, by_seed_and_photo, (s, groups.max() + 1))[:, groups]
        )
        rows.append(
            ease - less + photo + image + own + seed + rng.normal(size=(s, groups.size)) > 0
        )
    return rows


def test_groups_of_one_image_make_a_pair_of_trainings_mcnemars():
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = rng.random((2, 1, 200)) < rng.uniform(0.8, 0.99, (2, 1, 1))
        table = all_pairs([a, b], np.arange(200), n_resamples=10)
        assert table.about == ("trainings",)
        assert table.p[0] == pytest.approx(mcnemar(~a[0], ~b[0]), rel=1e-12)
        assert paired_bootstrap(a, b, np.arange(200), n_resamples=10)[3] == table.p[0]


def test_a_pair_of_trainings_on_groups_is_fishers_test_of_darwins_maize():
    """Fisher 1935, The Design of Experiments, sec.

    21: 863 of 2^15 sign patterns give a sum of 314 or more.
    """
    gaps = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    groups = np.repeat(np.arange(15), np.abs(gaps))
    a = np.repeat(np.array(gaps) > 0, np.abs(gaps))[None]
    assert all_pairs([a, ~a], groups, n_resamples=10).p == pytest.approx(
        [2 * 863 / 2**15], rel=1e-12
    )


def test_a_copied_image_counts_once_when_its_copies_are_one_group():
    b = np.ones((1, 28), dtype=bool)
    a = np.arange(28)[None] >= 5  # five discordant images, all one way
    once = paired_bootstrap(a, b, np.arange(28), n_resamples=10)[3]
    copied = paired_bootstrap(
        np.tile(a, 20), np.tile(b, 20), np.tile(np.arange(28), 20), n_resamples=10
    )[3]
    as_witnesses = paired_bootstrap(np.tile(a, 20), np.tile(b, 20), np.arange(560), n_resamples=10)[
        3
    ]
    assert once == copied == 2 / 32
    assert as_witnesses < 1e-20


@pytest.mark.parametrize(
    ("n_groups", "seeds", "regime"),
    [
        (N, (1, 1), {"by_seed_and_photo": 0.0}),
        (PHOTOS, (1, 1), {"by_seed_and_photo": 0.7}),
        (PHOTOS, (2, 2), {"by_seed": 0.4}),
        (PHOTOS, (3, 3), {"by_seed_and_photo": 0.7}),
        (PHOTOS, (3, 3), {"by_seed": 0.4}),
        (PHOTOS, (3, 3), {"by_seed": 0.8}),
        (N, (10, 10), {"by_seed_and_photo": 0.0}),
        (PHOTOS, (10, 10), {"by_seed": 0.4}),
        (PHOTOS, (10, 10), {"by_seed": 0.2, "by_row_and_photo": 0.8}),
        (PHOTOS, (10, 10), {"by_seed": 0.3, "ease": 5.0}),
        (10, (10, 10), {"by_seed": 0.2}),
        (PHOTOS, (1, 10), {"by_seed": 0.4}),
        (PHOTOS, (3, 10), {"by_seed": 0.4}),
    ],
)
def test_two_copies_of_one_cell_share_a_letter_in_95_of_100_simulations(n_groups, seeds, regime):
    """The issue's acceptance.

    One seed each is tested only where seeds spread no more than images do (see `about`).
    """
    rng = np.random.default_rng(n_groups + 100 * sum(seeds))
    shared = 0
    for _ in range(200):
        groups = np.arange(N) if n_groups == N else groups_of(rng, n_groups)
        one, other = all_pairs(trained(rng, groups, seeds, **regime), groups, n_resamples=2).letters
        shared += one == other == "a"
    assert shared >= 190


def test_copies_taken_for_witnesses_or_seeds_that_are_not_seen_would_raise_false_alarms():
    """Both rates are far above 5 %: groups and `about` are needed, and the tests above can fail."""
    rng = np.random.default_rng(5)
    as_images = as_cells = 0
    for _ in range(200):
        groups = groups_of(rng, PHOTOS)
        a, b = trained(rng, groups, (1, 1), by_seed_and_photo=0.7)
        as_images += mcnemar(~a[0], ~b[0]) < 0.05
        table = all_pairs(trained(rng, groups, (1, 1), by_seed=0.4), groups, n_resamples=2)
        as_cells += table.p[0] < 0.05
        assert table.about == ("trainings",)
    assert as_images > 20
    assert as_cells > 40


@pytest.mark.parametrize(
    ("n_groups", "regime"),
    [
        (N, {"drop": (0, 0, 0.49), "by_seed_and_photo": 0.0}),
        (PHOTOS, {"drop": (0, 0, 0.61), "ease": 3.6, "by_seed_and_photo": 0.7}),
    ],
)
def test_an_injected_gap_of_two_points_is_found_with_ten_seeds(n_groups, regime):
    """Of three rows the third is two points worse: it shares no letter with the two copies."""
    rng = np.random.default_rng(6)
    found, gaps = 0, []
    for _ in range(100):
        groups = np.arange(N) if n_groups == N else groups_of(rng, n_groups)
        table = all_pairs(trained(rng, groups, (10, 10, 10), **regime), groups, n_resamples=2)
        found += table.letters == ["a", "a", "b"]
        gaps.append(table.difference[1])
    assert np.mean(gaps) == pytest.approx(0.02, abs=0.002)
    assert found >= 90


def test_the_interval_of_a_gap_covers_it_and_agrees_with_the_p_value():
    rng = np.random.default_rng(7)
    covered = agreed = 0
    for k in range(200):
        groups = groups_of(rng, PHOTOS)
        a, b = trained(rng, groups, (5, 5), by_seed=0.3)
        _, low, high, p = paired_bootstrap(a, b, groups, n_resamples=400, seed=k)
        covered += low <= 0 <= high
        agreed += (p >= 0.05) == (low <= 0 <= high)
    assert covered >= 188
    assert agreed >= 190


@pytest.mark.parametrize("n_seeds", [2, 3, 10])
def test_the_interval_of_a_row_covers_the_mean_over_all_castings_and_seeds(n_seeds):
    """P(latent ease > 0) = Phi(2 / sqrt(1 + 0.25 + 0.25 + 1 + 0.01)) is the mean, 89.7 %."""
    rng = np.random.default_rng(8)
    truth = float(peer.norm.cdf(2 / math.sqrt(2.51)))
    covered = 0
    for k in range(200):
        groups = groups_of(rng, PHOTOS)
        (row,) = trained(rng, groups, (n_seeds,), ease=2.0, by_seed=0.1)
        low, high = bootstrap_interval(row, groups, n_resamples=400, seed=k)
        covered += low <= truth <= high
    assert covered >= 183  # 91.5 %: two standard errors of 200 simulations below 95 %


def test_the_interval_of_one_training_on_single_images_is_nearly_wilsons():
    right = np.arange(N)[None] >= 36
    assert bootstrap_interval(right, np.arange(N), n_resamples=20_000) == pytest.approx(
        wilson(N - 36, N), abs=0.004
    )


def test_a_row_without_an_error_gets_the_exact_interval_of_its_castings():
    groups = np.repeat(np.arange(PHOTOS), 5)
    right = np.ones((3, groups.size), dtype=bool)
    assert bootstrap_interval(right, groups) == pytest.approx((0.025 ** (1 / PHOTOS), 1))
    assert bootstrap_interval(~right, groups) == pytest.approx((0, 1 - 0.025 ** (1 / PHOTOS)))


def test_one_casting_says_nothing_of_others():
    one = np.zeros(6, dtype=int)
    rng = np.random.default_rng(9)
    assert np.isnan(bootstrap_interval(rng.random((4, 6)), one)).all()
    assert np.isnan(bootstrap_interval(np.ones((4, 6)), one)).all()
    difference, low, high, p = paired_bootstrap(np.ones((4, 6)), np.zeros((4, 6)), one)
    assert (difference, p) == (1, 1)
    assert np.isnan([low, high]).all()


def test_a_row_against_itself_has_no_gap_and_perfect_against_nothing_the_smallest_p():
    rng = np.random.default_rng(10)
    groups = groups_of(rng, PHOTOS)
    (row,) = trained(rng, groups, (3,))
    difference, low, high, p = paired_bootstrap(row, row, groups)
    assert (difference, p) == (0, 1)
    assert low < 0 < high
    right = np.ones((3, N))
    assert paired_bootstrap(right, 1 - right, groups) == pytest.approx((1, 1, 1, 2 / 2**PHOTOS))


def test_exchanging_two_rows_turns_the_sign_and_leaves_p():
    rng = np.random.default_rng(11)
    groups = groups_of(rng, PHOTOS)
    a, b = trained(rng, groups, (3, 5), drop=(0, 0.3))
    forth, back = paired_bootstrap(a, b, groups), paired_bootstrap(b, a, groups)
    assert forth[0] == pytest.approx(-back[0])
    assert forth[0] == pytest.approx(a.mean() - b.mean())
    assert forth[3] == pytest.approx(back[3])


def test_the_order_of_images_and_seeds_and_the_names_of_groups_change_nothing():
    rng = np.random.default_rng(12)
    groups = groups_of(rng, PHOTOS)
    a, b = trained(rng, groups, (3, 4), drop=(0, 0.3))
    order = rng.permutation(N)
    names = np.array([f"casting {g:03d}" for g in groups])
    assert paired_bootstrap(a[::-1][:, order], b[:, order], names[order]) == pytest.approx(
        paired_bootstrap(a, b, groups)
    )


def test_where_every_image_has_the_same_gap_only_seeds_decide_and_the_test_is_welchs():
    """A seed and its complement are correct once on every image, so only seeds vary."""
    image = np.arange(1000)
    a = np.array([image < 900, image >= 900, image >= 0, image >= 0])
    b = np.array([image < 600, image >= 600, image < 0])
    p = paired_bootstrap(a, b, image)[3]
    assert p == pytest.approx(
        peer.ttest_ind(a.mean(axis=1), b.mean(axis=1), equal_var=False).pvalue, rel=1e-9
    )


def test_beside_one_training_the_test_on_seeds_is_crawford_and_howells():
    """t = (1 - mean) / (sd sqrt((n + 1) / n)) with n - 1 degrees of freedom; images do not vary."""
    image = np.arange(1000)
    b = np.array(
        [image < 300, image >= 300, image < 0]
    )  # accuracies 0.3, 0.7, 0: mean 1/3, variance 37/300
    t = (1 - 1 / 3) / math.sqrt(37 / 300 * 4 / 3)
    expected = 1 - t / math.sqrt(2 + t * t)  # Student's t with two degrees of freedom has this tail
    assert paired_bootstrap(np.ones((1, 1000)), b, image)[3] == pytest.approx(expected, rel=1e-9)


def test_a_table_of_pairs_is_in_order_and_its_letters_follow_holm():
    rng = np.random.default_rng(13)
    groups = groups_of(rng, PHOTOS)
    rows = trained(rng, groups, (5, 1, 5, 1), drop=(1.5, 0, 0.1, 0.2), by_seed=0.1)
    table = all_pairs(rows, groups, seed=1)
    assert list(zip(table.first.tolist(), table.second.tolist(), strict=True)) == list(
        combinations(range(4), 2)
    )
    assert table.difference == pytest.approx(
        [a.mean() - b.mean() for a, b in combinations(rows, 2)]
    )
    assert table.about == ("cells", "cells", "cells", "cells", "trainings", "cells")
    assert (table.low <= table.difference).all()
    assert (table.difference <= table.high).all()
    assert table.p_holm == pytest.approx(holm(table.p))
    for i, j, p in zip(table.first, table.second, table.p_holm, strict=True):
        assert (not set(table.letters[i]) & set(table.letters[j])) == (p < table.alpha)
    best = max(range(4), key=lambda i: rows[i].mean())
    assert "a" in table.letters[best]


def test_the_same_seed_gives_the_same_table_and_p_values_hang_on_none():
    rng = np.random.default_rng(14)
    groups = groups_of(rng, PHOTOS)
    rows = trained(rng, groups, (3, 3, 3), drop=(0, 0.2, 0.4))
    one, again, other = (all_pairs(rows, groups, seed=seed) for seed in (0, 0, 1))
    assert (one.low == again.low).all()
    assert (one.low != other.low).all()
    assert (one.p == other.p).all()


def test_a_table_of_one_row_or_none_has_no_pairs():
    groups = np.arange(4)
    assert all_pairs([np.ones((2, 4))], groups).letters == ["a"]
    assert all_pairs([np.ones((2, 4))], groups).p.size == 0
    assert all_pairs([], groups).letters == []


def test_more_seeds_of_the_same_spread_make_a_gap_surer():
    rng = np.random.default_rng(15)
    groups = groups_of(rng, PHOTOS)
    a, b = trained(rng, groups, (3, 3), drop=(0, 0.4), by_seed=0.1)
    p = [
        paired_bootstrap(np.tile(a, (k, 1)), np.tile(b, (k, 1)), groups, n_resamples=2)[3]
        for k in (1, 2, 4)
    ]
    assert p[0] > p[1] >= p[2]


@pytest.mark.parametrize(
    ("row", "groups", "says"),
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
def test_rows_that_do_not_fit_their_groups_are_refused(row, groups, says):
    with pytest.raises(ValueError, match=says):
        bootstrap_interval(row, groups)
    with pytest.raises(ValueError, match=says):
        paired_bootstrap(row, row, groups)
    with pytest.raises(ValueError, match=says):
        all_pairs([row, row], groups)


def test_shares_that_are_no_decisions_have_an_interval_and_no_paired_test():
    shares = np.array([[0.25, 0.5, 0.75, 1.0]])
    low, high = bootstrap_interval(shares, np.arange(4))
    assert low < 0.625 < high
    with pytest.raises(ValueError, match="0 or 1 for every image"):
        paired_bootstrap(shares, shares, np.arange(4))


def test_halves_that_add_up_to_whole_castings_are_still_no_decisions():
    halves = np.full((1, 4), 0.5)
    with pytest.raises(ValueError, match="0 or 1 for every image"):
        all_pairs([halves, halves], [0, 0, 1, 1])


@pytest.mark.parametrize("seed", range(24))
def test_letters_from_rough_p_values_are_those_of_every_exact_p(seed):
    rng = np.random.default_rng(seed)
    n_rows, n_images, n_castings = (
        rng.integers(2, 14),
        rng.choice([30, 200, 700]),
        rng.choice([8, 80, 700]),
    )
    n_seeds = (
        rng.choice([1, 1, 2, 3, 10], n_rows) if seed % 3 else np.full(n_rows, (seed % 2) * 9 + 1)
    )
    easy = 1 - 0.3 * rng.random(n_images)
    rows = [rng.random((n, n_images)) < easy * rng.uniform(0.85, 1) for n in n_seeds]
    rows.append(rows[0])
    groups = rng.integers(0, n_castings, n_images)
    table = all_pairs(rows, groups, n_resamples=2)
    assert letters(rows, groups) == table.letters


def test_letters_hang_on_the_exact_p_where_the_rough_one_is_too_near_to_the_level():
    """Six discordant images in one direction: p is 1/32, and only a higher level separates them."""
    rows = [np.arange(28)[None] >= k for k in (6, 0)]
    assert letters(rows, np.arange(28), alpha=1 / 32) == ["a", "a"]
    assert letters(rows, np.arange(28), alpha=np.nextafter(1 / 32, 1)) == ["b", "a"]


def test_a_pair_in_a_table_has_the_interval_and_the_p_of_the_pair_alone():
    """So `compare` says of two rows what the table of all pairs says."""
    rng = np.random.default_rng(16)
    groups = groups_of(rng, PHOTOS)
    rows = trained(rng, groups, (5, 1, 5, 1, 3), drop=(1.5, 0, 0.1, 0.2, 0.8), by_seed=0.1)
    table = all_pairs(rows, groups, seed=3)
    for k, (a, b) in enumerate(combinations(rows, 2)):
        alone = paired_bootstrap(a, b, groups, seed=3)
        assert alone == pytest.approx(
            (table.difference[k], table.low[k], table.high[k], table.p[k]), rel=1e-9
        )


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_thousand_pairs_at_once_have_the_p_of_each_alone(seeds):
    rng = np.random.default_rng(18)
    groups = groups_of(rng, PHOTOS)
    rows = trained(rng, groups, (seeds,) * 46, drop=tuple(np.linspace(0, 1.5, 46)))
    table = all_pairs(rows, groups, n_resamples=2)
    some = rng.choice(table.p.size, 60, replace=False)
    alone = [
        paired_bootstrap(rows[table.first[k]], rows[table.second[k]], groups, n_resamples=2)[3]
        for k in some
    ]
    assert table.p[some] == pytest.approx(np.array(alone), rel=1e-9, abs=0)
    assert min(alone) < 1e-4 < 0.1 < max(alone)


def test_the_interval_of_a_gap_is_that_of_its_definition_written_out():
    """Resample groups, move each mean by a t draw times its standard error, take percentiles."""
    rng = np.random.default_rng(17)
    groups = groups_of(rng, PHOTOS)
    a, b = trained(rng, groups, (4, 6), by_seed=0.2)
    sizes = np.bincount(groups).astype(float)
    draws = np.random.default_rng(5)
    weights = draws.multinomial(PHOTOS, np.full(PHOTOS, 1 / PHOTOS), size=500)
    gaps = np.array([(weights[:, groups] @ (a.mean(axis=0) - b.mean(axis=0))) / (weights @ sizes)])[
        0
    ]
    for row in (a, b):
        gaps += (
            draws.standard_t(len(row) - 1, 500) * row.mean(axis=1).std(ddof=1) / math.sqrt(len(row))
        )
    n = sizes.sum() ** 2 / (sizes**2).sum()
    tail = peer.norm.cdf(math.sqrt(n / (n - 1)) * peer.t.ppf(0.025, n - 1))
    _, low, high, _ = paired_bootstrap(a, b, groups, n_resamples=500, seed=5)
    assert (low, high) == pytest.approx(tuple(np.quantile(gaps, [tail, 1 - tail])), rel=1e-9)


def test_intervals_of_rows_together_are_those_of_each_alone():
    rng = np.random.default_rng(3)
    rows = [rng.random((n, 60)) < 0.9 for n in (1, 3, 5)] + [np.ones((2, 60), dtype=bool)]
    groups = rng.integers(0, 20, 60)
    together = bootstrap_intervals(rows, groups)
    assert np.array(together) == pytest.approx(
        np.array([bootstrap_interval(row, groups) for row in rows])
    )
    assert together[0] != pytest.approx(together[1])
