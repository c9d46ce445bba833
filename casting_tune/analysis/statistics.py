"""Statistics of rates, paired decisions and numbers: bounds, exact tests, letters.

Input: counts, p values or arrays. Output: plain numbers, shares in 0..1. Rows of several seeds on
grouped images are in `paired_tests`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def wilson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of the rate k / n: short, correct on average.

    Raises:
        ValueError: k is not in 0..n.
    """
    return _interval(k, n, method="wilson", confidence=confidence)


def clopper_pearson(k: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval (Clopper & Pearson 1934) of the rate k / n.

    It is never too short.

    Raises:
        ValueError: k is not in 0..n.
    """
    return _interval(k, n, method="exact", confidence=confidence)


@lru_cache(maxsize=2**12)  # scipy takes 1.6 ms, and the rows of a table share many rates
def _interval(
    k: int, n: int, *, method: Literal["wilson", "exact"], confidence: float
) -> tuple[float, float]:
    from scipy.stats import binomtest

    _check_rate(k, n)
    if n == 0:  # binomtest requires a trial
        return 0.0, 1.0
    interval = binomtest(k, n).proportion_ci(confidence, method)
    return float(interval.low), float(interval.high)


def upper_bound(k: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper bound of the rate k / n: 0 of 453 shows at most 0.66 %.

    The n must be independent: 453 files of 74 castings count more like 74 than like 453.
    From the beta distribution directly: scipy's binomtest is 100 times as slow, and tables of many
    trainings and `defects_needed` call this often.

    Raises:
        ValueError: k is not in 0..n.
    """
    from scipy.special import betaincinv

    _check_rate(k, n)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, confidence))


def defects_needed(rate: float, *, confidence: float = 0.95, misses: int = 0) -> int:
    """Return how many defects show an escape rate of at most `rate`: 2,995 for 0.001.

    At most `misses` of them are passed. The result is the smallest n with `upper_bound(misses, n)`
    not above `rate`, that is P(Binomial(n, rate) <= misses) <= 1 - confidence.

    Raises:
        ValueError: rate is not in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be greater than 0 and less than 1; got {rate}.")
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
    """Return the exact two-sided p of McNemar's test: the binomial test of discordant images.

    Copies of one casting must be one image here; for groups use `paired_tests.all_pairs`. At least
    six discordant images, all in one direction, are needed for p < .05 (2 / 2^6 = 0.031).

    Args:
        wrong_a: [n] bool, whether the first training misclassified the image.
        wrong_b: [n] the same for the second training.

    Raises:
        ValueError: shapes differ.
    """
    first, second = np.asarray(wrong_a, dtype=np.bool_), np.asarray(wrong_b, dtype=np.bool_)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"wrong_a and wrong_b must be two [n] arrays; got {first.shape} and {second.shape}."
        )
    from scipy.stats import binomtest

    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip(gaps: NDArray[np.int64]) -> float:
    """Return the exact two-sided p of a sum of [m] integers with random signs.

    Fisher's randomisation test (1935) over all 2^m signs. A sum of random signs is 2 x subset sum -
    total; the probabilities of the subset sums are computed one number at a time. With gaps of -1,
    0 and 1 it is McNemar's exact test.
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
    """Return the p of `sign_flip` for each row of gaps [n, m], with an error below 1e-12: [n].

    By characteristic functions (Davies 1973, Biometrika 60, 415-417), thousands of rows in one
    matrix product. A gap v of random sign has cos(v t), a sum has the product over its gaps; summed
    over more points t than the sum has values, this gives P(|sum| < s). The error is absolute, so
    a p below 0.001 has fewer correct digits than that of `sign_flip`.
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
    """Return [m] Holm-corrected p values (1979): max over i <= j of (m - i) p_(i), at most 1."""
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
    """Return letters for each name; two names share a letter exactly if they do not differ.

    A letter is a maximal set of names without a difference: insert and absorb (Piepho 2004,
    J. Comput. Graph. Stat. 13, 456-466). Redundant letters are removed at the end.

    Args:
        names: [n].
        different: the pairs of names that differ, or a symmetric [n, n] matrix.
        order: rows from best to worst; the best gets the first letter. By default as given.

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
    """Return (mean, sample standard deviation, n) of [n] values; None for one value.

    Raises:
        ValueError: no values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("values must not be empty: there is no mean.")
    return float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else None, x.size


def paired_effect(
    on: ArrayLike, off: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float | None, float | None, int]:
    """Return (mean, low, high, n) of on - off over n matched cells, with Student's t interval.

    Args:
        on: [n] a metric of the cells with the toggle (or backbone).
        off: [n] the same of the cells that differ in nothing else, in the same order.
        confidence: in (0, 1).

    Returns:
        In the unit of the metric; low and high are None for a single cell.

    Raises:
        ValueError: shapes differ, or no cells.
    """
    from scipy.special import stdtrit

    first, second = np.asarray(on, dtype=np.float64), np.asarray(off, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"on and off must have one value per cell each; got {first.shape} and {second.shape}."
        )
    mean, sd, n = mean_sd(first - second)
    if sd is None:
        return mean, None, None, n
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half, n


def _check_rate(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and n = {n}; got {k}.")


def _alike(n: int, apart: Collection[tuple[int, int]]) -> list[frozenset[int]]:
    """Return the maximal sets of n rows without a different pair; rows are bits of an integer."""
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
        # a letter stays unchanged unless the row can join it completely
        found = {letter for letter in found if letter & like[row] != letter} | {
            one | 1 << row for one in joined
        }
    return [frozenset(i for i in range(n) if letter >> i & 1) for letter in found if letter]


def _needed(letters: Collection[frozenset[int]]) -> list[frozenset[int]]:
    """Remove letters, smallest first, all of whose pairs (or single row) are in other letters."""
    kept = sorted(letters, key=lambda letter: (len(letter), sorted(letter)))
    n = max(map(max, kept), default=-1) + 1
    held = np.zeros((n, n), dtype=np.int64)  # the number of letters of each pair
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
