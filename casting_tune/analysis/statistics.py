"""Statistics of independent images: exact bounds and tests, Holm's correction, letters.

Input: counts, p values or arrays. Output: plain numbers, shares in 0..1. Groups of images are in
`bootstrap` and `paired_tests`.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def upper_bound(k: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper bound of the rate k / n: 0 of 453 shows at most 0.66 %.

    The n must be independent: for images in groups use `bootstrap.upper_bound`.
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

    Copies of one casting must be one image here; for groups use `paired_tests.pair`. At least
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
