"""Paired tests of rows on the same images, over groups of images and seeds.

Input: `correct` arrays [n_seeds, n_images] of rows that were tested on the same images, and the
group of each image: images of one casting (rotated, mirrored, copied) are one group and count as
one observation. Output: plain numbers, shares in 0..1.

A row has two sources of randomness: the castings that were photographed, and the seeds that were
trained. A difference of two rows contains both:

    variance(difference) = variance between groups  +  variance between seeds / n_seeds, of each row

It counts the interaction of seed and group twice, so it is conservative (Owen 2007, The pigeonhole
bootstrap, Ann. Appl. Stat. 1, 386-411). The variance between seeds is pooled over all rows, because
two or three seeds often agree by chance (`group_sums.seed_variances`). The test is Student's t with
Satterthwaite's degrees of freedom (1946).

Two invented groups are added, one for each row, in which only this row is wrong (Agresti & Min
2005, Stat. Med. 24, 729-740). For the test they have one image each, so that rows without a
difference are not compared with a variance of 0; for two trainings on different images it then
agrees with McNemar's exact test within .02 for p below .1. For the interval they are as large as
the differences of the test set and `group_sums.images_of_unseen` let expect.

If all rows have one seed, the spread between seeds is unknown, and a test compares two trainings:
`PairTable.about` shows this; only more seeds help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.group_sums import (
    effective_groups,
    few_groups,
    group,
    has_too_few,
    images_of_unseen,
    means,
    seed_variances,
    sums,
)
from casting_tune.analysis.statistics import Floats, compact_letters, holm


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Differences of rates and what is known of them, [n] each; NaN if the groups are too few.

    Attributes:
        difference: a share in -1..1.
        low, high: the interval; it contains 0 exactly if p is at least 1 - confidence. An end of 0
            of an interval with a smaller p does not belong to it.
        p: two-sided, of no difference.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats


@dataclass(frozen=True, slots=True)
class PairTable:
    """All pairs of n rows, [n (n - 1) / 2] each, in the order (0, 1), (0, 2) .. (n - 2, n - 1).

    Attributes:
        first, second: the two rows.
        difference: mean of `first` minus mean of `second`, a share in -1..1.
        low, high: its interval at 1 - alpha, for this pair alone; see `Gap`.
        p: two-sided, for this pair alone; NaN if the groups are too few.
        p_holm: corrected for all pairs of this table.
        about: "trainings" if all rows have one seed: this compares two networks, and another seed
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


def all_pairs(correct: Sequence[ArrayLike], groups: ArrayLike, *, alpha: float = 0.05) -> PairTable:
    """Compare all pairs of rows on the same images, and give letters to rows that do not differ.

    Args:
        correct: n arrays [n_seeds_i, n_images] of bool, whether the image was classified correctly.
        groups: [n_images] any labels; images of one casting have equal labels.
        alpha: level of the letters and of the intervals.

    Raises:
        ValueError: no image, wrong shapes, or a value outside 0..1.
    """
    codes, sizes = group(groups)
    rows = [sums(row, codes, sizes=sizes) for row in correct]
    first, second = np.triu_indices(len(rows), 1)
    difference, low, high, p = _compared(rows, first, second, sizes=sizes, alpha=alpha)
    adjusted = holm(np.nan_to_num(p, nan=1.0))
    return PairTable(
        first=first,
        second=second,
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=np.where(np.isnan(p), np.nan, adjusted),
        about=("cells" if any(len(row) > 1 for row in rows) else "trainings",) * len(first),
        letters=_letters(means(rows, sizes), first, second, adjusted < alpha),
        alpha=alpha,
    )


def pair(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, *, others: Sequence[ArrayLike] = ()
) -> tuple[float, float, float, float]:
    """Return (difference, low, high, p) of two rows: mean of a minus mean of b, at 95 %.

    Args:
        a: [s_a, n_images] bool, whether the image was classified correctly.
        b: [s_b, n_images] the same for the other row, on the same images.
        groups: [n_images] any labels; images of one casting have equal labels.
        others: the other rows of the table on the same images, for the variance between seeds: the
            result is then that of `all_pairs` of all of them.

    Raises:
        ValueError: as `all_pairs`.
    """
    codes, sizes = group(groups)
    rows = [sums(row, codes, sizes=sizes) for row in (a, b, *others)]
    found = _compared(rows, np.array([0]), np.array([1]), sizes=sizes, alpha=0.05)
    difference, low, high, p = (float(one[0]) for one in found)
    return difference, low, high, p


def _compared(
    rows: Sequence[Floats],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    *,
    sizes: Floats,
    alpha: float,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return difference, low, high and p of some pairs of rows: [pairs] each."""
    each = means(rows, sizes)
    variances, freedom = seed_variances(rows, sizes)
    variances = variances / np.array([len(row) for row in rows] or 1)
    parts = [
        gaps(
            each[first[k]] - each[second[k]],
            sizes,
            extra=variances[first[k]] + variances[second[k]],
            extra_freedom=freedom,
            confidence=1 - alpha,
        )
        for k in np.array_split(np.arange(len(first)), len(first) * sizes.size // 2**22 + 1)
    ]
    difference, low, high, p = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("difference", "low", "high", "p")
    )
    return difference, low, high, p


def gaps(
    differences: Floats,
    sizes: Floats,
    *,
    extra: Floats,
    extra_freedom: float,
    confidence: float = 0.95,
) -> Gap:
    """Return the mean differences over images with intervals and p.

    Args:
        differences: [n, n_groups] sum over the images of each group.
        sizes: [n_groups] images of each group.
        extra: [n] variance of the mean difference that does not come from the groups.
        extra_freedom: its degrees of freedom.
        confidence: of the intervals, in (0, 1).
    """
    from scipy.special import stdtr, stdtrit

    n_images, n = sizes.sum(), effective_groups(sizes)
    mean = differences.sum(axis=1) / n_images
    if has_too_few(sizes):
        unknown = np.full(len(mean), np.nan)
        return Gap(difference=mean, low=unknown, high=unknown, p=unknown)
    squares = np.square(differences - mean[:, None] * sizes).sum(axis=1)
    of_groups = (squares * n / (n - 1) + 2) / n_images**2
    variance = of_groups + extra
    freedom = variance**2 / (of_groups**2 / (n - 1) + extra**2 / max(extra_freedom, 1))
    p = 2 * stdtr(freedom, -np.abs(mean) / np.sqrt(variance))
    n_different = (np.abs(differences) > 1e-9).sum(axis=1)  # sums of effects are not exact
    unseen = images_of_unseen(sizes) ** 2 + np.square(differences).sum(axis=1)
    unseen /= 1 + n_different
    wide, factor = few_groups(sizes)  # never wide > n - 1, nor factor < n / (n - 1)
    freedom = variance**2 / (of_groups**2 / wide + extra**2 / max(extra_freedom, 1))
    half = stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(
        (squares * factor + 2 * np.maximum(unseen, 1)) / n_images**2 + extra
    )
    low, high = np.maximum(mean - half, -1), np.minimum(mean + half, 1)
    is_sure = p < 1 - confidence
    return Gap(
        difference=mean,
        low=np.where(is_sure & (mean > 0), np.maximum(low, 0), low),
        high=np.where(is_sure & (mean < 0), np.minimum(high, 0), high),
        p=p,
    )


def _letters(
    each: Floats,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    apart: NDArray[np.bool_],
) -> list[str]:
    """Return the letters of rows, the best first, given which pairs differ."""
    n = len(each)
    different = np.zeros((n, n), dtype=np.bool_)
    different[first, second] = different[second, first] = apart
    best_first = np.argsort(-each.sum(axis=1), kind="stable").tolist()
    return compact_letters([str(i) for i in range(n)], different, order=best_first)
