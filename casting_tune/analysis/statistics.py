"""What can be said of rates, of paired decisions and of a column of numbers: bounds, exact tests, letters.

In come counts, p values or plain arrays; out go plain numbers, shares in 0..1. Knows nothing of
thresholds, stores or names of cells; rows of several seeds on grouped images are the business of
pairs.
"""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def wilson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of the rate k / n: right on average and short, so for display.

    Raises:
        ValueError: k is not in 0..n.
    """
    from scipy.special import ndtri

    _check_rate(k, n)
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + confidence) / 2))
    rate, shrink = k / n, 1 + z * z / n
    middle = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (middle - half if k else 0.0), (middle + half if k < n else 1.0)


def clopper_pearson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval (Clopper & Pearson 1934) of the rate k / n: never too short, for promises.

    Raises:
        ValueError: k is not in 0..n.
    """
    tail = (1 + confidence) / 2
    return 1 - upper_bound(n - k, n, confidence=tail), upper_bound(k, n, confidence=tail)


def upper_bound(k: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided exact upper bound of a rate of which k of n were seen: 0 of 453 shows at most 0.66 %.

    The n must be independent: 453 files of 74 castings are nearer to 74 than to 453.

    Raises:
        ValueError: k is not in 0..n.
    """
    from scipy.special import betaincinv

    _check_rate(k, n)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, confidence))


def defects_needed(rate: float, *, confidence: float = 0.95, misses: int = 0) -> int:
    """Return how many defects, with at most `misses` passed, show an escape rate of at most `rate`: 0.001 takes 2,995.

    The smallest n whose `upper_bound(misses, n)` is not above `rate`, that is P(Binomial(n, rate)
    <= misses) <= 1 - confidence.

    Raises:
        ValueError: rate is not in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"A rate to be shown lies between 0 and 1, and {rate} does not.")
    too_few, enough = misses, misses + 1
    while upper_bound(misses, enough, confidence=confidence) > rate:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if upper_bound(misses, middle, confidence=confidence) > rate:
            too_few = middle
        else:
            enough = middle
    return enough


def mcnemar(wrong_a: ArrayLike, wrong_b: ArrayLike) -> float:
    """Return McNemar's exact two-sided p of two trainings on the same images: the binomial test of discordant images.

    Copies of one casting must be one image here; with groups, `all_pairs` is the test. Six
    discordant images, all one way, are the fewest that give p < .05 (2 / 2^6 = 0.031).

    Args:
        wrong_a: [n] bool, whether the image was decided wrongly.
        wrong_b: [n] the same of the other training.

    Raises:
        ValueError: shapes differ.
    """
    first, second = np.asarray(wrong_a, dtype=np.bool_), np.asarray(wrong_b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"wrong_a and wrong_b must be two [n] arrays, not {first.shape} and {second.shape}."
        )
    return sign_flip(first.astype(np.int64) - second)


def sign_flip(gaps: NDArray[np.int64]) -> float:
    """Return the exact two-sided p of a sum of [m] whole numbers when each may as well have had the other sign.

    Fisher's randomisation test (1935) over all 2^m signs. A sum of random signs is 2 x subset sum -
    total, and the chances of the subset sums are built up one number at a time. With gaps of 0 and
    1 it is McNemar's exact test.
    """
    steps = np.abs(gaps[gaps != 0])
    if steps.size == 0:
        return 1.0
    unit = np.gcd.reduce(steps)
    chances = np.ones(1)  # [subset sum + 1]
    for step in np.sort(steps // unit):
        longer = np.zeros(chances.size + step)
        longer[: chances.size] = chances / 2
        longer[step:] += chances / 2
        chances = longer
    at_most = (chances.size - 1 - abs(int(gaps.sum() // unit))) // 2
    return min(1.0, 2 * float(chances[: at_most + 1].sum()))


def sign_flips(gaps: NDArray[np.int64]) -> Floats:
    """Return the p of `sign_flip` for each of many rows of gaps [n, m], with an error below 1e-12: [n].

    By characteristic functions (Davies 1973, Biometrika 60, 415-417), thousands of rows in one
    matrix product: a gap v of random sign has cos(v t), a sum has the product of its gaps', and
    added up over more points t than the sum has values it gives P(|sum| < s). The error is
    absolute, so a p below 0.001 has fewer right digits than `sign_flip`'s.
    """
    steps, sums = np.abs(gaps), np.abs(gaps.sum(axis=1))
    values = np.flatnonzero(np.bincount(steps.ravel(), minlength=1))
    place = np.zeros(steps.max(initial=0) + 1, dtype=np.intp)
    place[values] = np.arange(values.size)
    cells = place[steps] + values.size * np.arange(len(steps))[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(steps) * values.size).reshape(
        len(steps), values.size
    )
    n_points = int(steps.sum(axis=1).max(initial=0)) + 1 | 1
    t = np.pi * np.arange(1, n_points // 2 + 1) / n_points  # pi - t would add the same as t
    cosines = np.cos(np.outer(values, t))
    logs = np.log(np.maximum(np.abs(cosines), 1e-300))
    product = np.exp(counts @ logs) * (1 - 2 * (counts @ (cosines < 0) % 2))  # [n, points]
    within = (product * np.sin(np.outer(sums - 1, t))) @ (2 / np.sin(t))
    p: Floats = np.clip(1 - (sums - 1 + within) / n_points, 0, 1)
    return p


def holm(p_values: ArrayLike) -> Floats:
    """Return the [m] p values adjusted for being m at once (Holm 1979): max over i <= j of (m - i) p_(i), at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate((p.size - np.arange(p.size)) * p[order]), 1)
    return adjusted


def compact_letters(
    names: Sequence[str],
    different: Collection[tuple[str, str]] | NDArray[np.bool_],
    *,
    order: Sequence[int] | None = None,
) -> list[str]:
    """Return letters for each name, so that two names share one exactly when they are not different.

    A letter is a largest set of names none of which differ, as in insert and absorb (Piepho 2004,
    J. Comput. Graph. Stat. 13, 456-466). At last letters whose every pair is held by others go, so
    that few are left.

    Args:
        names: [n].
        different: the pairs of names that differ, or a symmetric [n, n] matrix.
        order: rows from the best to the worst, in which letters are given out; as they stand if None.

    Returns:
        [n] strings such as "ab", from a to z, then A to Z, then a2, b2, ...
    """
    if isinstance(different, np.ndarray):
        apart = {(i, j) for i, j in combinations(range(len(names)), 2) if different[i, j]}
    else:
        row = {name: i for i, name in enumerate(names)}
        apart = {(row[one], row[other]) for one, other in different}
    letters = _alike(len(names), apart)
    rank = {row: place for place, row in enumerate(range(len(names)) if order is None else order)}
    ranked = sorted((sorted(rank[row] for row in letter), letter) for letter in _needed(letters))
    alphabet = string.ascii_lowercase + string.ascii_uppercase
    symbols = [alphabet[k % 52] + (str(k // 52 + 1) if k >= 52 else "") for k in range(len(ranked))]
    return [
        "".join(s for s, (_, held) in zip(symbols, ranked, strict=True) if row in held)
        for row in range(len(names))
    ]


def mean_sd(values: ArrayLike) -> tuple[float, float | None, int]:
    """Return (mean, sample standard deviation, n) of [n] values; one value has no spread, so None.

    Raises:
        ValueError: there is no value.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("No value has no mean.")
    return float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else None, x.size


def paired_effect(
    on: ArrayLike, off: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float | None, float | None, int]:
    """Return (mean, low, high, n) of on - off over n matched cells: Student's t interval of the differences.

    Args:
        on: [n] a metric of the cells with the toggle (or backbone) under question.
        off: [n] the same of the cells that differ in nothing else, in the same order.
        confidence: in (0, 1).

    Returns:
        In the unit of the metric; low and high are None for one cell, which has no spread.

    Raises:
        ValueError: shapes differ, or there is no cell.
    """
    from scipy.special import stdtrit

    first, second = np.asarray(on, dtype=np.float64), np.asarray(off, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"on and off must be matched cell by cell, not {first.shape} and {second.shape}."
        )
    mean, sd, n = mean_sd(first - second)
    if sd is None:
        return mean, None, None, n
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half, n


def _check_rate(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no rate: it takes 0 <= k <= n.")


def _alike(n: int, apart: Collection[tuple[int, int]]) -> list[frozenset[int]]:
    """Return the largest sets of n rows of which no two are apart, built up row by row; rows are bits of a number."""
    like = [(1 << n) - 1] * n
    for i, j in apart:
        like[i] &= ~(1 << j)
        like[j] &= ~(1 << i)
    found = {0}
    for row in range(n):
        joined = {letter & like[row] for letter in found}
        joined = {
            one
            for one in joined
            if not any(one != other and one & other == one for other in joined)
        }
        # a letter stays as it is unless the row joins it whole
        found = {letter for letter in found if letter & like[row] != letter} | {
            one | 1 << row for one in joined
        }
    return [frozenset(i for i in range(n) if letter >> i & 1) for letter in found if letter]


def _needed(letters: Collection[frozenset[int]]) -> list[frozenset[int]]:
    """Drop letters, the smallest first, whose every pair (or single row) is held by letters that stay."""
    kept = sorted(letters, key=lambda letter: (len(letter), sorted(letter)))
    n = max(map(max, kept), default=-1) + 1
    held = np.zeros((n, n), dtype=np.int64)  # by how many letters each pair is
    blocks = [np.ix_(sorted(letter), sorted(letter)) for letter in kept]
    for block in blocks:
        held[block] += 1
    stays = []
    for letter, block in zip(kept, blocks, strict=True):
        if (held[block] > 1).all():
            held[block] -= 1
        else:
            stays.append(letter)
    return stays
