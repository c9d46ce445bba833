"""Paired tests of rows on the same images, over groups of images and seeds.

Input: `correct` arrays [n_seeds, n_images] of rows that were tested on the same images, and the
group of each image: images of one casting (rotated, mirrored, copied) are one group and count as
one observation. Output: plain numbers, shares in 0..1.

A row has two sources of randomness: the castings that were photographed, and the seeds that were
trained. A difference of two rows contains both:

    variance(difference) = variance between groups  +  variance between seeds / n_seeds, of each row

This is the closed form of resampling groups and seeds together. It counts the interaction of seed
and group twice, so it is conservative (Owen 2007, The pigeonhole bootstrap, Ann. Appl. Stat. 1,
386-411).

With one seed per row, the spread between seeds is unknown: two copies of a cell whose seeds spread
by 1.5 points differ "significantly" in a third of all simulations. `PairTable.about` shows this;
only more seeds help. Simulated with 84 castings and ten seeds that spread by 0.6 points, a
difference of two points is found in 98, 94 and 57 % of tables of 2, 3 and 7 rows, and rarely among
33. Two copies of a cell with several seeds differ in 0 to 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.bootstrap import Resampling, pair_intervals
from casting_tune.analysis.group_sums import (
    binary_sums,
    borrowing,
    by_n_seeds,
    effective_groups,
    group,
    seed_variances,
)
from casting_tune.analysis.statistics import Floats, compact_letters, holm, sign_flip, sign_flips

_ROUGH = 1e-12  # the error of `sign_flips`
_FINE = 1e-3  # above this, `sign_flips` has nine correct digits
_MANY = 1000  # pairs for which `sign_flip` takes half a second


@dataclass(frozen=True, slots=True)
class PairTable:
    """All pairs of n rows, [n (n - 1) / 2] each, in the order (0, 1), (0, 2) .. (n - 2, n - 1).

    Attributes:
        first, second: the two rows.
        difference: mean of `first` minus mean of `second`, a share in -1..1.
        low, high: its interval at 1 - alpha, for this pair alone; NaN if all images are one group.
        p: two-sided, for this pair alone.
        p_holm: corrected for all pairs of this table.
        about: "trainings" if both rows have one seed: this compares two networks, and another seed
            may differ; "cells" if the test includes the spread over seeds.
        letters: [n] rows with the same letter do not differ significantly at `alpha` after Holm;
            the best row has an "a".
        alpha: probability of any difference in a table of equal rows.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_holm: Floats
    about: tuple[Literal["trainings", "cells"], ...]
    letters: list[str]
    alpha: float


def all_pairs(
    correct: Sequence[ArrayLike],
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    alpha: float = 0.05,
) -> PairTable:
    """Compare all pairs of rows on the same images, and give letters to rows that do not differ.

    Two rows of one seed each get the exact test of `sign_flip`, which is McNemar's test if every
    image is a separate group. If one of them has several seeds, p is that of `paired_bootstrap`.
    All rows share the resampled groups, and each pair has the interval that it has alone. In a
    table of a thousand pairs or more, p values from 0.001 up may come from `sign_flips`, correct to
    nine digits; all others are exact.

    Args:
        correct: n arrays [n_seeds_i, n_images] of bool, whether the image was classified correctly.
        groups: [n_images] any labels; images of one casting have equal labels.
        n_resamples: of the groups, for the intervals; p values are not resampled.
        seed: of the resampling.
        alpha: level of the letters and of the intervals.

    Raises:
        ValueError: no image, wrong shapes, or a value that is neither 0 nor 1.
    """
    codes, sizes = group(groups)
    rows = binary_sums(correct, codes, sizes=sizes)
    first, second = np.triu_indices(len(rows), 1)
    difference, p = _p_values(rows, first, second, sizes=sizes)
    low, high = pair_intervals(
        rows, first, second, sizes=sizes, resampling=Resampling(n_resamples, seed, 1 - alpha)
    )
    adjusted = holm(p)
    one = np.array([len(row) == 1 for row in rows], dtype=np.bool_)
    return PairTable(
        first=first,
        second=second,
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=adjusted,
        about=tuple("trainings" if both else "cells" for both in one[first] & one[second]),
        letters=_letters(rows, first, second, adjusted < alpha),
        alpha=alpha,
    )


def _p_values(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp], *, sizes: Floats
) -> tuple[Floats, Floats]:
    """Return difference and p of each pair: [pairs]."""
    difference, by_seeds, flipped, at_most = _tests(rows, first, second, sizes=sizes)
    is_rough = (flipped < _FINE) | (len(first) < _MANY)
    needed = np.flatnonzero(is_rough & (at_most > by_seeds))
    flipped[needed] = _exact(rows, first[needed], second[needed])
    return difference, np.maximum(by_seeds, flipped)


def letters(correct: Sequence[ArrayLike], groups: ArrayLike, *, alpha: float = 0.05) -> list[str]:
    """Return the letters of `all_pairs` without computing small p values exactly.

    `sign_flips` gives bounds of each p. Holm's correction is monotonic in p, so a decision that is
    equal for both bounds is correct; otherwise the exact p decides.

    Raises:
        ValueError: as `all_pairs`.
    """
    codes, sizes = group(groups)
    rows = binary_sums(correct, codes, sizes=sizes)
    first, second = np.triu_indices(len(rows), 1)
    # if p is below, the rows differ after Holm; from alpha up, never
    sure = alpha / max(len(first), 1)
    _, by_seeds, flipped, at_most = _tests(
        rows, first, second, sizes=sizes, beyond=sure / 2, until=alpha
    )
    low, high = np.maximum(flipped - _ROUGH, by_seeds), np.maximum(at_most, by_seeds)
    while True:
        possible, certain = holm(low) < alpha, holm(high) < alpha
        undecided = (possible != certain) & (low < high)
        if (possible == certain).all():
            break
        if not undecided.any():  # all that differ are known, but not their ranks
            undecided = low < high
        exact = _exact(rows, first[undecided], second[undecided])
        low[undecided] = high[undecided] = np.maximum(by_seeds[undecided], exact)
    return _letters(rows, first, second, certain)


def _letters(
    rows: Sequence[Floats],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    apart: NDArray[np.bool_],
) -> list[str]:
    """Return the letters of rows, the best first, given which pairs differ."""
    different = np.zeros((len(rows), len(rows)), dtype=np.bool_)
    different[first, second] = different[second, first] = apart
    best_first = np.argsort([-row.mean() for row in rows], kind="stable").tolist()
    return compact_letters([str(i) for i in range(len(rows))], different, order=best_first)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float, float]:
    """Return (difference, low, high, p) of two rows: mean of a minus mean of b.

    The interval resamples groups and draws seeds as `bootstrap` describes. A row with one seed
    borrows the spread of the other (Crawford & Howell 1998); if both have one seed, the interval is
    valid for these two trainings only.

    The p value is the larger of two, since each alone has a weakness:
      - t with the variance in the docstring of this module and Welch-Satterthwaite degrees of
        freedom, for few seeds. It is not counted from resamples: 2,000 of them end at 1/2,001, and
        Holm over 528 pairs requires 1e-4.
      - `sign_flip` on groups, for few discordant castings: five of them, all in one direction, are
        not significant.
    So with few discordant castings, p may exceed 1 - confidence and the interval exclude zero.

    Args:
        a: [s_a, n_images] bool, whether the image was classified correctly.
        b: [s_b, n_images] the same for the other row, on the same images.
        groups: [n_images] any labels; images of one casting have equal labels.
        n_resamples: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: no image, wrong shapes, or a value that is neither 0 nor 1.
    """
    table = all_pairs([a, b], groups, n_resamples=n_resamples, seed=seed, alpha=1 - confidence)
    return float(table.difference[0]), float(table.low[0]), float(table.high[0]), float(table.p[0])


def _tests(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp], *, sizes: Floats,
    beyond: float = 0.0, until: float = 1.0,
) -> tuple[Floats, Floats, Floats, Floats]:  # fmt: skip
    """Return difference, p by seeds (0 with one seed), p by `sign_flips`, its bound: [pairs].

    The p of a pair is the larger one: see `paired_bootstrap`. The p by `sign_flips` stays 0 if
    Hoeffding's bound (1963) on it is below the p by seeds or not above `beyond`, or if the p by
    seeds reaches `until`.
    """
    each = np.array([row.sum(axis=0) for row in rows]).reshape(-1, sizes.size)
    variances = seed_variances(rows, sizes)
    difference, by_seeds, flipped, at_most = np.zeros((4, len(first)))
    for k, n_first, n_second in by_n_seeds(rows, first, second):
        common = math.lcm(n_first, n_second)
        # [rows, groups] integers: no rounding below
        a, b = each * (common // n_first), each * (common // n_second)
        i, j = first[k], second[k]
        # of the differences over groups, like `squares` and `weighted`
        total = a.sum(axis=1)[i] - b.sum(axis=1)[j]
        squares = np.square(a).sum(axis=1)[i] + np.square(b).sum(axis=1)[j] - 2 * (a @ b.T)[i, j]
        difference[k] = total / common / sizes.sum()
        if max(n_first, n_second) > 1 and sizes.size > 1:
            mean, weighted = total / sizes.sum(), (a @ sizes)[i] - (b @ sizes)[j]
            influence = squares - 2 * mean * weighted + mean**2 * (sizes @ sizes)
            of_groups = influence / (common * sizes.sum()) ** 2 * sizes.size / (sizes.size - 1)
            terms = [
                (of_groups, effective_groups(sizes) - 1),
                (variances[i] * borrowing(n_first, n_second), n_first - 1),
                (variances[j] * borrowing(n_second, n_first), n_second - 1),
            ]
            by_seeds[k] = _welch(difference[k], terms)
        at_most[k] = np.minimum(2 * np.exp(-(total**2) / np.maximum(2 * squares, 1)), 1)
        needed = np.flatnonzero(
            (at_most[k] > np.maximum(by_seeds[k], beyond)) & (by_seeds[k] < until)
        )
        for some in np.array_split(needed, math.ceil(needed.size * sizes.size / 2**21) or 1):
            flipped[k[some]] = sign_flips((a[i[some]] - b[j[some]]).astype(np.int64))
            at_most[k[some]] = np.minimum(at_most[k[some]], flipped[k[some]] + _ROUGH)
    return difference, by_seeds, np.minimum(flipped, at_most), at_most


def _welch(difference: Floats, terms: Sequence[tuple[Floats, float]]) -> Floats:
    """Return Student's two-sided p of differences, with Welch-Satterthwaite degrees of freedom.

    Args:
        difference: [pairs].
        terms: (variance [pairs], degrees of freedom) of each part.

    Returns:
        [pairs]; 0 if nothing varies.
    """
    from scipy.special import stdtr

    variance = np.sum([term for term, _ in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / np.sum([term**2 / df for term, df in terms if df], axis=0)
        p = 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(variance))
    return np.where(variance > 0, p, 0.0)


def _exact(rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    """Return the exact p of `sign_flip` of pairs; equal differences are computed once."""
    known: dict[tuple[int, bytes], float] = {}
    p = np.empty(len(first))
    for k, (a, b) in enumerate(
        zip((rows[i] for i in first), (rows[j] for j in second), strict=True)
    ):
        gaps = (a.sum(axis=0) * len(b) - b.sum(axis=0) * len(a)).astype(np.int64)
        key = abs(int(gaps.sum())), np.sort(np.abs(gaps[gaps != 0])).tobytes()
        if key not in known:
            known[key] = sign_flip(gaps)
        p[k] = known[key]
    return p
