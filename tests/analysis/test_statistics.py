"""statistics: exact values from the literature or by hand, and scipy as the peer."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis.statistics import (
    compact_letters,
    defects_needed,
    holm,
    mcnemar,
    upper_bound,
)


def test_a_rate_of_nothing_can_be_anything():
    assert upper_bound(0, 0) == 1


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_more_hits_than_trials_are_no_rate(k, n):
    with pytest.raises(ValueError, match="k must be between 0 and n"):
        upper_bound(k, n)


def test_no_miss_of_453_defects_shows_an_escape_rate_of_at_most_0_66_percent():
    assert upper_bound(0, 453) == pytest.approx(1 - 0.05 ** (1 / 453), rel=1e-12)
    assert round(100 * upper_bound(0, 453), 2) == 0.66
    assert upper_bound(5, 5) == 1


@pytest.mark.parametrize(
    ("rate", "misses", "n"),
    [
        # Success-run sample sizes at 95 % confidence, as reliability tables print them.
        *((0.10, 0, 29), (0.10, 1, 46), (0.10, 2, 61)),
        *((0.05, 0, 59), (0.05, 1, 93), (0.05, 2, 124)),
        *((0.01, 0, 299), (0.01, 1, 473), (0.01, 2, 628)),
        (0.001, 0, 2995),
    ],
)
def test_defects_needed_are_those_of_reliability_tables(rate, misses, n):
    assert defects_needed(rate, misses=misses) == n


def test_one_defect_less_than_needed_does_not_show_the_rate():
    for rate, misses, confidence in ((0.03, 0, 0.9), (0.007, 3, 0.95), (0.5, 1, 0.99)):
        n = defects_needed(rate, misses=misses, confidence=confidence)
        assert (
            peer.binom.cdf(misses, n, rate) <= 1 - confidence < peer.binom.cdf(misses, n - 1, rate)
        )


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_rate_of_zero_or_one_cannot_be_shown(rate):
    with pytest.raises(ValueError, match="greater than 0 and less than 1"):
        defects_needed(rate)


def discordant(only_a: int, only_b: int, both: int = 3) -> tuple[np.ndarray, np.ndarray]:
    wrong = (
        [(True, False)] * only_a
        + [(False, True)] * only_b
        + [(True, True)] * both
        + [(False, False)] * 20
    )
    return tuple(np.array(wrong).T)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1),
        (3, 3, 1),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 9, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_is_the_binomial_test_of_the_discordant_images(only_a, only_b, p):
    assert mcnemar(*discordant(only_a, only_b)) == pytest.approx(p, rel=1e-12)


def test_six_one_sided_discordant_images_are_the_fewest_that_tell_two_trainings_apart():
    assert [mcnemar(*discordant(0, k)) < 0.05 for k in range(1, 9)] == [False] * 5 + [True] * 3


def test_mcnemar_agrees_with_scipy_and_does_not_mind_the_order_of_the_two():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random((2, 300)) < rng.uniform(0.01, 0.6, (2, 1))
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        assert (
            mcnemar(a, b)
            == mcnemar(b, a)
            == pytest.approx(peer.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
        )


def test_mcnemar_refuses_arrays_of_different_images():
    with pytest.raises(ValueError, match="two \\[n\\] arrays"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.9, 0.5], [1, 1]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_adjusts_as_by_hand(p, adjusted):
    assert holm(p) == pytest.approx(adjusted)


def test_holm_never_lowers_a_p_value_never_swaps_two_and_never_exceeds_bonferroni():
    rng = np.random.default_rng(2)
    for m in (2, 10, 528):
        p = rng.random(m) ** 4
        adjusted = holm(p)
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(m * p, 1) + 1e-15).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize(
    ("different", "letters"),
    [
        (set(), ["a", "a", "a"]),
        ({("x", "z")}, ["a", "ab", "b"]),
        ({("z", "x"), ("y", "z")}, ["a", "a", "b"]),
        ({("x", "y"), ("x", "z"), ("y", "z")}, ["a", "b", "c"]),
    ],
)
def test_letters_of_three_rows_are_as_by_hand(different, letters):
    assert compact_letters(["x", "y", "z"], different) == letters


def test_letters_are_given_out_from_the_best_row():
    assert compact_letters(["x", "y", "z"], {("x", "z")}, order=[2, 1, 0]) == ["b", "ab", "a"]


def test_letters_of_a_ring_of_four_need_four():
    """Each row is like its two neighbours only: no letter can stand for more than one such pair."""
    assert compact_letters(["1", "2", "3", "4"], {("1", "3"), ("2", "4")}) == [
        "ab",
        "ac",
        "cd",
        "bd",
    ]


def test_no_row_and_one_row_have_their_letters():
    assert compact_letters([], set()) == []
    assert compact_letters(["only"], set()) == ["a"]


def test_rows_share_a_letter_exactly_when_they_are_not_different():
    rng = np.random.default_rng(3)
    for n in (2, 5, 9, 14):
        for share in (0.1, 0.5, 0.9):
            different = np.triu(rng.random((n, n)) < share, 1)
            different |= different.T
            letters = compact_letters([str(i) for i in range(n)], different)
            assert all(letters)
            for i, j in combinations(range(n), 2):
                assert (not set(letters[i]) & set(letters[j])) == different[i, j]


def test_rows_ordered_on_a_line_need_the_fewest_letters():
    """Rows 3 or more places apart differ: the windows of three are the letters."""
    different = np.abs(np.subtract.outer(np.arange(6), np.arange(6))) >= 3
    assert compact_letters(list("uvwxyz"), different) == ["a", "ab", "abc", "bcd", "cd", "d"]


def test_rows_beyond_the_alphabet_still_have_letters_of_their_own():
    letters = compact_letters([str(i) for i in range(60)], ~np.eye(60, dtype=bool))
    assert letters[25:27] == ["z", "A"]
    assert letters[51:54] == ["Z", "a2", "b2"]
    assert len(set(letters)) == 60


# The deck's ten summary trainings at its five thresholds, with the average and sd that it prints.
SUMMARY = {
    0.1: ([99.44, 98.74, 99.3, 98.32, 99.44, 99.3, 99.3, 92.46, 99.3, 99.02], 98.462, 2.24),
    0.2: ([99.44, 98.88, 99.3, 98.6, 99.44, 99.3, 99.3, 94.27, 99.3, 99.16], 98.699, 1.65),
    0.3: ([99.44, 99.16, 99.3, 98.6, 99.44, 99.3, 99.3, 94.97, 99.3, 99.16], 98.797, 1.43),
    0.4: ([99.44, 99.3, 99.3, 98.74, 99.44, 99.3, 99.3, 95.39, 99.3, 99.16], 98.867, 1.30),
    0.5: ([99.58, 99.3, 99.3, 98.74, 99.3, 99.3, 99.3, 95.53, 99.3, 99.3], 98.895, 1.25),
}


@pytest.mark.parametrize("threshold", SUMMARY)
def test_the_study_averages_ten_trainings_and_prints_the_spread_of_the_last_nine(threshold):
    """Its sd excludes training 1 at every threshold, like a spreadsheet range one cell short."""
    accuracies, average, sd = SUMMARY[threshold]
    assert round(float(np.mean(accuracies)), 3) == average
    assert round(float(np.std(accuracies[1:], ddof=1)), 2) == sd
    assert np.std(accuracies, ddof=1) < sd - 0.04
