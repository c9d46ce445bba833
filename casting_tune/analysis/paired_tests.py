"""What can be said of the gaps between rows: intervals and paired tests on groups of images and seeds, and their table.

In come `correct` arrays [n_seeds, n_images] of rows (cells) that all decided the same images, with
the group of each image: files that show one casting (rotated, mirrored, copied) are one group and
count as one witness. Out go plain numbers, shares in 0..1. Knows nothing of thresholds, stores or
names of cells.

A row has two sources of luck: which castings were photographed and which seeds were trained. Both
are in every gap:

    variance(gap) = between groups of (gap of the group)  +  between seeds of a row / n_seeds, for either row

the two spreads that resampling groups and seeds together would give, in closed form. It counts the
interaction of seed and group twice, so it errs to the safe side (Owen 2007, The pigeonhole
bootstrap, Ann. Appl. Stat. 1, 386-411).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.statistics import (
    Floats,
    clopper_pearson,
    compact_letters,
    holm,
    sign_flip,
    sign_flips,
)

_ROUGH = 1e-12  # the error of `sign_flips`
_FINE = 1e-3  # from here on it gives nine digits
_MANY = 1000  # pairs that `sign_flip` would take half a second for


@dataclass(frozen=True, slots=True)
class PairTable:
    """All pairs of n rows, [n (n - 1) / 2] each, in the order (0, 1), (0, 2) .. (n - 2, n - 1).

    Attributes:
        first, second: the two rows.
        difference: mean of `first` minus mean of `second`, a share in -1..1.
        low, high: its interval at 1 - alpha, for this pair alone; NaN when all images are one group.
        p: two-sided, for this pair alone.
        p_holm: the same, adjusted for all pairs of this table.
        about: "trainings" when both rows have one seed: then the pair of networks is compared and nothing is known of
            what another seed would give; "cells" when the seeds' own spread is in the test.
        letters: [n] rows that share a letter cannot be told apart at `alpha` after Holm; the best row has an "a".
        alpha: the share of tables of like rows that may show any difference.
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
    """Compare every two rows on the same images, and give letters to rows that cannot be told apart.

    Two rows of one seed each get the exact test of `sign_flip`, which is McNemar's when every image
    is a group of its own. As soon as one of the two has several seeds the p value is that of
    `paired_bootstrap`. All rows see the same resampled groups, and each pair has the interval that
    it would have alone.

    In a table of a thousand pairs or more a p from 0.001 up that the signs decide comes from
    `sign_flips`, right to nine digits; every other one is exact.

    With one seed each the spread between seeds is invisible: two copies of a cell whose seeds
    spread by 1.5 points differ "significantly" in a third of all simulations. `about` says so; only
    more seeds cure it.

    Simulated with 84 castings and ten seeds that spread by 0.6 points, a gap of two points is found
    in 98, 94 and 57 % of tables of 2, 3 and 7 rows, and hardly ever among 33: to tell more, ask of
    fewer rows. Two copies of a cell of several seeds differ in 0 to 5 %.

    Args:
        correct: n arrays [n_seeds_i, n_images] of bool, whether the image was decided rightly.
        groups: [n_images] any labels; equal labels are one casting.
        n_resamples: of the groups, for the intervals; the p values are not resampled.
        seed: of the resampling.
        alpha: level of the letters and of the intervals.

    Raises:
        ValueError: no image, shapes that do not fit, or a value that is neither 0 nor 1.
    """
    codes, sizes = _grouped(groups)
    rows = _rows(correct, codes, sizes=sizes)
    first, second = np.triu_indices(len(rows), 1)
    difference, by_seeds, flipped, at_most = _tests(rows, first, second, sizes=sizes)
    coarse = (flipped < _FINE) | (len(first) < _MANY)
    asked = np.flatnonzero(coarse & (at_most > by_seeds))
    flipped[asked] = _exact(rows, first[asked], second[asked])
    p = np.maximum(by_seeds, flipped)
    low, high = _intervals(
        rows, first, second, sizes=sizes, n_resamples=n_resamples, seed=seed, confidence=1 - alpha
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


def letters(correct: Sequence[ArrayLike], groups: ArrayLike, *, alpha: float = 0.05) -> list[str]:
    """Return the letters that `all_pairs` gives, without working out its small p values to their last digit.

    `sign_flips` says between which bounds each p lies. Holm's correction never falls as a p rises,
    so what holds for both bounds holds for the p between them; where it does not, the exact p
    decides.

    Raises:
        ValueError: as `all_pairs`.
    """
    codes, sizes = _grouped(groups)
    rows = _rows(correct, codes, sizes=sizes)
    first, second = np.triu_indices(len(rows), 1)
    sure = alpha / max(
        len(first), 1
    )  # where p is below, Holm calls the rows apart; from alpha up, never
    _, by_seeds, flipped, at_most = _tests(
        rows, first, second, sizes=sizes, beyond=sure / 2, until=alpha
    )
    low, high = np.maximum(flipped - _ROUGH, by_seeds), np.maximum(at_most, by_seeds)
    while True:
        possible, certain = holm(low) < alpha, holm(high) < alpha
        undecided = (possible != certain) & (low < high)
        if (possible == certain).all():
            break
        if not undecided.any():  # all that differ are known, but not their places among the others
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
    """Return the letters of rows, the best first, given which pairs are apart."""
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
    """Return (difference, low, high, p) of the gap between two rows: mean of a minus mean of b, over seeds and images.

    The interval resamples groups, the same ones for both rows. Seeds are too few to be resampled:
    the bootstrap mean of three spreads by a factor sqrt(2/3) too little. So each row's mean is
    moved by a draw of Student's t with n_seeds - 1 degrees of freedom, times its standard error
    over seeds. A row with one seed borrows the spread of the other (Crawford & Howell 1998); when
    both have one, the interval is about these two trainings only.

    The p value is the larger of two, since either alone can be fooled:
      - t with the variance in this module's head and Welch-Satterthwaite degrees of freedom, for few seeds. It is not
        counted from resamples, because 2,000 of them end at 1/2,001 and Holm over 528 pairs asks for 1e-4.
      - `sign_flip` on groups, for few discordant castings: five of them, all one way, prove nothing.
    So where few castings decide, p may exceed 1 - confidence though the interval just misses zero.

    Args:
        a: [s_a, n_images] bool, whether the image was decided rightly.
        b: [s_b, n_images] the same of the other row, on the same images.
        groups: [n_images] any labels; equal labels are one casting.
        n_resamples: draws of the interval.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: no image, shapes that do not fit, or a value that is neither 0 nor 1.
    """
    table = all_pairs([a, b], groups, n_resamples=n_resamples, seed=seed, alpha=1 - confidence)
    return float(table.difference[0]), float(table.low[0]), float(table.high[0]), float(table.p[0])


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of a row's mean over seeds and images, resampling groups; seeds as in `paired_bootstrap`.

    Where every value is 1 (or 0) no resample can show another: then it is the exact interval of as
    many hits as there are groups. With one group it is (NaN, NaN), with one seed it is about this
    one training.

    With 84 castings and 2 to 10 seeds it held the true mean in 89 to 98 of 100 simulations: least
    where seeds spread by several points, or where a row is so good that its errors sit on few
    castings.

    Args:
        values: [n_seeds, n_images] shares in 0..1, most often 1 where the image was decided rightly.
        groups: [n_images] any labels; equal labels are one casting.
        n_resamples: draws of the interval.
        seed: of the draws.
        confidence: in (0, 1).

    Raises:
        ValueError: no image, shapes that do not fit, or a value outside 0..1.
    """
    ((low, high),) = bootstrap_intervals(
        [values], groups, n_resamples=n_resamples, seed=seed, confidence=confidence
    )
    return low, high


def bootstrap_intervals(
    rows: Sequence[ArrayLike],
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[tuple[float, float]]:
    """Return the `bootstrap_interval` of each row on the same images: they share their resamples."""
    codes, sizes = _grouped(groups)
    sums = [_group_sums(values, codes, sizes=sizes) for values in rows]
    rng = np.random.default_rng(seed)
    resampled = _resampled(sums, sizes, n_resamples=n_resamples, rng=rng)
    after, spread = rng.bit_generator.state, np.sqrt(_seed_variances(sums, sizes))
    n_seeds = np.array([len(row) for row in sums], dtype=np.intp)
    for n in np.unique(n_seeds[n_seeds > 1]):
        rng.bit_generator.state = after  # each row as if it were alone
        resampled[n_seeds == n] += np.outer(
            spread[n_seeds == n], rng.standard_t(n - 1, n_resamples)
        )
    low, high = _percentiles(resampled, sizes=sizes, confidence=confidence)
    intervals = list(zip(low.clip(0, 1).tolist(), high.clip(0, 1).tolist(), strict=True))
    for i, row in enumerate(sums):
        if sizes.size > 1 and row.sum() in (0, len(row) * sizes.sum()):
            intervals[i] = clopper_pearson(
                sizes.size if row.any() else 0, sizes.size, confidence=confidence
            )
    return intervals


def _tests(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp], *, sizes: Floats,
    beyond: float = 0.0, until: float = 1.0,
) -> tuple[Floats, Floats, Floats, Floats]:  # fmt: skip
    """Return difference, p by seeds (0 where they say nothing), p by `sign_flips` and what that is at most: [pairs].

    The p value of a pair is the larger one: see `paired_bootstrap`. With several seeds and a clear
    gap the p by seeds is above all that Hoeffding's bound (1963) leaves to the other, which then
    stays 0 here; so it does where that bound is not `beyond`, or the p by seeds reaches `until`.
    """
    each = np.array([row.sum(axis=0) for row in rows]).reshape(-1, sizes.size)
    variances = _seed_variances(rows, sizes)
    difference, by_seeds, flipped, at_most = np.zeros((4, len(first)))
    for k, n_first, n_second in _alike(rows, first, second):
        common = math.lcm(n_first, n_second)
        a, b = (
            each * (common // n_first),
            each * (common // n_second),
        )  # [rows, groups] whole numbers: no rounding below
        i, j = first[k], second[k]
        total = (
            a.sum(axis=1)[i] - b.sum(axis=1)[j]
        )  # of the gaps over groups, as `squares` and `weighted` are
        squares = np.square(a).sum(axis=1)[i] + np.square(b).sum(axis=1)[j] - 2 * (a @ b.T)[i, j]
        difference[k] = total / common / sizes.sum()
        if max(n_first, n_second) > 1 and sizes.size > 1:
            mean, weighted = total / sizes.sum(), (a @ sizes)[i] - (b @ sizes)[j]
            influence = squares - 2 * mean * weighted + mean**2 * (sizes @ sizes)
            terms = [
                (
                    influence / (common * sizes.sum()) ** 2 * sizes.size / (sizes.size - 1),
                    _effective(sizes) - 1,
                ),
                (variances[i] * _borrowing(n_first, n_second), n_first - 1),
                (variances[j] * _borrowing(n_second, n_first), n_second - 1),
            ]
            by_seeds[k] = _welch(difference[k], terms)
        at_most[k] = np.minimum(2 * np.exp(-(total**2) / np.maximum(2 * squares, 1)), 1)
        asked = np.flatnonzero(
            (at_most[k] > np.maximum(by_seeds[k], beyond)) & (by_seeds[k] < until)
        )
        for some in np.array_split(asked, math.ceil(asked.size * sizes.size / 2**21) or 1):
            flipped[k[some]] = sign_flips((a[i[some]] - b[j[some]]).astype(np.int64))
            at_most[k[some]] = np.minimum(at_most[k[some]], flipped[k[some]] + _ROUGH)
    return difference, by_seeds, np.minimum(flipped, at_most), at_most


def _welch(difference: Floats, terms: Sequence[tuple[Floats, float]]) -> Floats:
    """Return Student's two-sided p of differences, given (variance, degrees of freedom) of their parts: [pairs].

    Degrees of freedom are Welch's and Satterthwaite's; where nothing varies, 0.
    """
    from scipy.special import stdtr

    variance = np.sum([term for term, _ in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / np.sum([term**2 / df for term, df in terms if df], axis=0)
        p = 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(variance))
    return np.where(variance > 0, p, 0.0)


def _exact(rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    """Return the p of `sign_flip` of pairs, right in every digit; those whose castings differ alike are one."""
    known: dict[tuple[int, bytes], float] = {}
    p = np.empty(len(first))
    for k, (a, b) in enumerate(
        zip((rows[i] for i in first), (rows[j] for j in second), strict=True)
    ):
        gaps = (a.sum(axis=0) * len(b) - b.sum(axis=0) * len(a)).astype(np.int64)
        alike = abs(int(gaps.sum())), np.sort(np.abs(gaps[gaps != 0])).tobytes()
        if alike not in known:
            known[alike] = sign_flip(gaps)
        p[k] = known[alike]
    return p


def _intervals(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp], *, sizes: Floats,
    n_resamples: int, seed: int, confidence: float,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return low and high of each pair: [pairs].

    What other seeds might give is drawn for each as if it were alone.
    """
    rng = np.random.default_rng(seed)
    resampled = _resampled(rows, sizes, n_resamples=n_resamples, rng=rng)
    after, spread = rng.bit_generator.state, np.sqrt(_seed_variances(rows, sizes))
    low, high = np.empty((2, len(first)))
    for of_kind, n_first, n_second in _alike(rows, first, second):
        rng.bit_generator.state = after
        draws = [
            rng.standard_t(n - 1, n_resamples) if n > 1 else np.zeros(n_resamples)
            for n in (n_first, n_second)
        ]
        scales = math.sqrt(_borrowing(n_first, n_second)), math.sqrt(_borrowing(n_second, n_first))
        for k in np.array_split(of_kind, math.ceil(of_kind.size * n_resamples / 2**21)):
            moved = resampled[first[k]] - resampled[second[k]]
            for row, scale, draw in zip((first[k], second[k]), scales, draws, strict=True):
                moved += np.outer(spread[row] * scale, draw)
            low[k], high[k] = _percentiles(moved, sizes=sizes, confidence=confidence)
    return low, high


def _percentiles(means: Floats, *, sizes: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the low and the high percentile of each row of resampled means [n, n_resamples]; NaN of one group.

    They stand further out when groups are few (Hesterberg 2015, Am. Stat. 69, 371-386). Overwrites
    the means.
    """
    from scipy.special import ndtr, stdtrit

    n = _effective(sizes)
    if n == 1:
        return np.full(len(means), np.nan), np.full(len(means), np.nan)
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - confidence) / 2)))
    low, high = np.quantile(means, [tail, 1 - tail], axis=1, overwrite_input=True)
    return low, high


def _alike(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], int, int]]:
    """Yield positions of all pairs whose rows have the same numbers of seeds, and these two."""
    n_seeds = np.array([len(row) for row in rows], dtype=np.intp)
    n_first, n_second = n_seeds[first], n_seeds[second]
    for n, m in sorted(set(zip(n_first.tolist(), n_second.tolist(), strict=True))):
        yield np.flatnonzero((n_first == n) & (n_second == m)), n, m


def _means(rows: Sequence[Floats], sizes: Floats) -> Floats:
    """Return the mean over seeds of each row's group sums: [n, n_groups]."""
    return np.array([row.mean(axis=0) for row in rows]).reshape(-1, sizes.size)


def _seed_variances(rows: Sequence[Floats], sizes: Floats) -> Floats:
    """Return the variance that seeds add to each row's mean: [n]; 0 with one seed, which shows none."""
    shares = [row.sum(axis=1) / sizes.sum() for row in rows]
    return np.array([share.var(ddof=1) / len(share) if len(share) > 1 else 0.0 for share in shares])


def _borrowing(n: int, other: int) -> int:
    """Return by how much the seeds of a row of n count beside a row of one, which borrows its variance v.

    v / n + v = v / n x (n + 1).
    """
    return n + 1 if n == 1 or other == 1 else 1


def _resampled(
    rows: Sequence[Floats], sizes: Floats, *, n_resamples: int, rng: np.random.Generator
) -> Floats:
    """Return the [n_rows, n_resamples] means of the rows over resampled groups, the same groups for all rows."""
    n_groups = sizes.size
    weights, rng.bit_generator.state = _weights(
        n_groups, n_resamples, json.dumps(rng.bit_generator.state)
    )
    return _means(rows, sizes) @ weights.T / (weights @ sizes)


@lru_cache(maxsize=2)
def _weights(n_groups: int, n_resamples: int, state: str) -> tuple[Floats, Any]:
    """Return how often each resample [n_resamples, n_groups] has each group, and the generator's state after.

    Every row of a table draws the same resamples from the same seed: 330 rows would draw them for
    seconds.
    """
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(state)
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples).astype(
        np.float64
    )
    weights.setflags(write=False)
    return weights, rng.bit_generator.state


def _effective(sizes: Floats) -> float:
    """Return how many groups of equal size tell as much as these (Kish 1965): sum^2 / sum of squares."""
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def _grouped(groups: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    """Return the group number of each image, [n_images] from 0, and how many images each group has, [n_groups]."""
    labels = np.asarray(groups)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            f"groups must hold a label for each of at least one image, not shape {labels.shape}."
        )
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return codes, sizes.astype(np.float64)


def _rows(correct: Sequence[ArrayLike], codes: NDArray[np.intp], *, sizes: Floats) -> list[Floats]:
    """Return for each row how many images of each group were right, [n_seeds, n_groups]."""
    rows = [_group_sums(row, codes, sizes=sizes) for row in correct]
    if not all(np.isin(row, (0, 1)).all() for row in correct):
        raise ValueError(
            "To be compared, a row must hold 0 or 1 for every image: whether it was decided rightly."
        )
    return rows


def _group_sums(values: ArrayLike, codes: NDArray[np.intp], *, sizes: Floats) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != codes.size or len(x) == 0:
        raise ValueError(f"A row must be [n_seeds, {codes.size}] like its groups, not {x.shape}.")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("A row must hold shares in 0..1 for every image.")
    return np.array([np.bincount(codes, weights=seed, minlength=sizes.size) for seed in x])
