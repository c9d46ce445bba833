"""Paired tests: values by hand, McNemar's test as a peer, agreement of p and interval."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis.paired_tests import all_pairs, gaps, pair
from casting_tune.analysis.statistics import holm, mcnemar

GROUPS = np.repeat(np.arange(84), 4)
N = GROUPS.size


def rows(seed: int, *designs: tuple[int, float]) -> list[np.ndarray]:
    """Rows of (seeds, accuracy) that find the same castings hard."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=84)[GROUPS]
    return [
        hard + rng.normal(0, 2, (n, N)) < 2.3 * peer.norm.ppf(accuracy) for n, accuracy in designs
    ]


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 0), (6, 0), (9, 1), (3, 3), (12, 4), (0, 0)])
def test_two_trainings_on_different_images_agree_with_mcnemar(only_a, only_b):
    image = np.arange(400)
    a, b = (image >= only_a)[None], ((image < only_a) | (image >= only_a + only_b))[None]
    exact = mcnemar(~a[0], ~b[0])
    p = pair(a, b, image)[3]
    assert p == pytest.approx(exact, abs=0.02 if exact < 0.1 else 0.15)
    assert (p < 0.05) == (exact < 0.05)


def test_p_is_students_t_with_one_invented_image_for_each_row():
    """Six of 84 groups have one image that only a gets wrong: by hand from the docstring."""
    a, b = np.ones((2, 1, N), dtype=bool)
    a[0, :24:4] = False
    mean = -6 / N
    squares = (6 * (1 + mean * 4) ** 2 + 78 * (mean * 4) ** 2) * 84 / 83
    expected = 2 * peer.t.sf(6 / math.sqrt(squares + 2), 83)
    assert pair(a, b, GROUPS)[3] == pytest.approx(expected, rel=1e-9)


def test_copies_of_an_image_count_once_when_they_are_one_group():
    """Twenty copies of each of 28 images with 5 differences: far from the p of 560 images."""
    a, b = np.arange(28)[None] >= 5, np.ones((1, 28), dtype=bool)
    copies = [np.tile(one, 20) for one in (a, b)]
    assert pair(*copies, np.tile(np.arange(28), 20))[3] > 0.02
    assert pair(*copies, np.arange(560))[3] < 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_contains_0_exactly_if_p_is_at_least_5_per_cent(seed):
    designs = [(1, 0.97), (1, 0.93), (2, 0.97), (3, 0.90), (10, 0.99), (10, 0.96)]
    for some in (designs[:2], designs):
        table = all_pairs(rows(seed, *some), GROUPS)
        for low, high, p in zip(table.low, table.high, table.p, strict=True):
            assert (p >= 0.05) == (low < 0 < high)


def test_rows_without_a_difference_have_an_interval_of_some_width():
    same = np.ones((1, N), dtype=bool)
    difference, low, high, p = pair(same, same, GROUPS)
    assert (difference, p) == (0, 1)
    assert low == -high < -0.005


def test_seeds_that_agree_by_chance_do_not_make_two_rows_differ():
    """Rows a and b have two equal seeds each; the seeds of three other rows spread by 3 points."""
    image = np.arange(1000)
    others = [np.stack([image >= k, image >= k + 30]) for k in (100, 120, 80)]
    a, b = (np.stack([image >= k] * 2) for k in (100, 140))
    assert pair(a, b, image)[3] < 1e-8
    assert pair(a, b, image, others=others)[3] > 0.05


def test_the_variance_of_seeds_is_added_with_satterthwaites_freedom():
    """One group variance g with 83 degrees, one seed variance s with 4: by hand."""
    differences = np.zeros((1, 84))
    differences[0, :6] = 1
    mean = 6 / N
    squares = (6 * (1 - mean * 4) ** 2 + 78 * (mean * 4) ** 2) * 84 / 83
    g, s = (squares + 2) / N**2, 2e-5
    freedom = (g + s) ** 2 / (g**2 / 83 + s**2 / 4)
    expected = 2 * peer.t.sf(mean / math.sqrt(g + s), freedom)
    found = gaps(differences, np.full(84, 4.0), extra=np.array([s]), extra_freedom=4)
    assert found.p[0] == pytest.approx(expected, rel=1e-9)


def test_five_groups_give_no_interval_no_p_and_one_letter_for_all():
    groups = np.repeat(np.arange(5), 20)
    table = all_pairs([np.ones((2, 100)), np.zeros((2, 100))], groups)
    assert table.difference.tolist() == [1]
    assert np.isnan([table.low, table.high, table.p, table.p_holm]).all()
    assert table.letters == ["a", "a"]


def test_perfect_against_nothing_has_a_tiny_p_and_an_interval_within_1():
    right = np.ones((3, N))
    difference, low, high, p = pair(right, 1 - right, GROUPS)
    assert (difference, high) == (1, 1)
    assert low > 0.9
    assert p < 1e-30


def test_exchanging_two_rows_turns_the_sign_and_leaves_p():
    a, b = rows(11, (3, 0.97), (5, 0.9))
    forth, back = pair(a, b, GROUPS), pair(b, a, GROUPS)
    assert forth[0] == pytest.approx(a.mean() - b.mean())
    assert forth[:3] == pytest.approx((-back[0], -back[2], -back[1]))
    assert forth[3] == pytest.approx(back[3])


def test_the_order_of_images_and_seeds_and_the_names_of_groups_change_nothing():
    a, b = rows(12, (3, 0.97), (4, 0.95))
    order = np.random.default_rng(12).permutation(N)
    names = np.array([f"casting {g:03d}" for g in GROUPS])
    assert pair(a[::-1][:, order], b[:, order], names[order]) == pytest.approx(pair(a, b, GROUPS))


def test_a_table_of_pairs_is_in_order_and_its_letters_follow_holm():
    some = rows(13, (5, 0.7), (1, 0.97), (5, 0.96), (1, 0.95))
    table = all_pairs(some, GROUPS)
    assert list(zip(table.first.tolist(), table.second.tolist(), strict=True)) == list(
        combinations(range(4), 2)
    )
    assert table.difference == pytest.approx(
        [a.mean() - b.mean() for a, b in combinations(some, 2)]
    )
    assert set(table.about) == {"cells"}
    assert table.p_holm == pytest.approx(holm(table.p))
    for i, j, p in zip(table.first, table.second, table.p_holm, strict=True):
        assert (not set(table.letters[i]) & set(table.letters[j])) == (p < table.alpha)
    assert "a" in table.letters[max(range(4), key=lambda i: some[i].mean())]


def test_a_table_of_one_seed_each_is_about_trainings():
    assert set(all_pairs(rows(14, (1, 0.9), (1, 0.9), (1, 0.8)), GROUPS).about) == {"trainings"}


def test_a_table_of_one_row_or_none_has_no_pairs():
    assert all_pairs([np.ones((2, N))], GROUPS).letters == ["a"]
    assert all_pairs([np.ones((2, N))], GROUPS).p.size == 0
    assert all_pairs([], GROUPS).letters == []


def test_more_seeds_of_the_same_spread_make_a_gap_surer():
    a, b = rows(15, (3, 0.97), (3, 0.93))
    p = [pair(np.tile(a, (k, 1)), np.tile(b, (k, 1)), GROUPS)[3] for k in (1, 2, 4)]
    assert p[0] > p[1] > p[2]


def test_a_pair_in_a_table_has_the_result_of_the_pair_with_the_same_others():
    """So `compare` says of two rows what the table of all pairs says."""
    some = rows(16, (5, 0.9), (1, 0.95), (5, 0.97), (1, 0.93), (3, 0.9))
    table = all_pairs(some, GROUPS)
    for k, (i, j) in enumerate(combinations(range(5), 2)):
        others = [one for at, one in enumerate(some) if at not in (i, j)]
        assert pair(some[i], some[j], GROUPS, others=others) == pytest.approx(
            (table.difference[k], table.low[k], table.high[k], table.p[k]), rel=1e-9
        )


@pytest.mark.parametrize(
    ("values", "groups", "says"),
    [
        (np.ones((2, 3)), [], "at least one image"),
        (np.ones((2, 3)), [0, 1], "like its groups"),
        (np.full((2, 3), 1.5), [0, 1, 2], "shares in 0..1"),
    ],
)
def test_rows_that_do_not_fit_their_groups_are_refused(values, groups, says):
    with pytest.raises(ValueError, match=says):
        pair(values, values, groups)
    with pytest.raises(ValueError, match=says):
        all_pairs([values, values], groups)
