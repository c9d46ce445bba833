"""Sums of correct decisions per group of images, and the variance that seeds add.

Input: `correct` arrays [n_seeds, n_images] of rows that were tested on the same images, and the
group of each image: images of one casting (rotated, mirrored, copied) are one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.statistics import Floats


def group(groups: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    """Return the group of each image, [n_images] from 0, and the images per group, [n_groups]."""
    labels = np.asarray(groups)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            f"groups must be one label per image, for at least one image; got {labels.shape}."
        )
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return codes, sizes.astype(np.float64)


def binary_sums(
    correct: Sequence[ArrayLike], codes: NDArray[np.intp], *, sizes: Floats
) -> list[Floats]:
    """Return for each row the number of correct images of each group, [n_seeds, n_groups]."""
    rows = [sums(row, codes, sizes=sizes) for row in correct]
    if not all(np.isin(row, (0, 1)).all() for row in correct):
        raise ValueError(
            "A row to compare must hold 0 or 1 for every image: whether it is correct."
        )
    return rows


def sums(values: ArrayLike, codes: NDArray[np.intp], *, sizes: Floats) -> Floats:
    """Return the sum of shares of each group, [n_seeds, n_groups]."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != codes.size or len(x) == 0:
        raise ValueError(f"A row must be [n_seeds, {codes.size}] like its groups; got {x.shape}.")
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("A row must hold shares in 0..1 for every image.")
    return np.array([np.bincount(codes, weights=seed, minlength=sizes.size) for seed in x])


def means(rows: Sequence[Floats], sizes: Floats) -> Floats:
    """Return the mean over seeds of each row's group sums: [n, n_groups]."""
    return np.array([row.mean(axis=0) for row in rows]).reshape(-1, sizes.size)


def seed_variances(rows: Sequence[Floats], sizes: Floats) -> Floats:
    """Return the variance that seeds add to the mean of each row: [n]; 0 with one seed."""
    shares = [row.sum(axis=1) / sizes.sum() for row in rows]
    return np.array([share.var(ddof=1) / len(share) if len(share) > 1 else 0.0 for share in shares])


def borrowing(n: int, other: int) -> int:
    """Return the factor on the seed variance of a row of n seeds, compared with `other` seeds.

    A row with one seed borrows the variance v of the other: v / n + v = v / n x (n + 1).
    """
    return n + 1 if n == 1 or other == 1 else 1


def effective_groups(sizes: Floats) -> float:
    """Return the effective number of equal groups (Kish 1965): sum^2 / sum of squares."""
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def by_n_seeds(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], int, int]]:
    """Yield the positions of all pairs with the same two numbers of seeds, and these numbers."""
    n_seeds = np.array([len(row) for row in rows], dtype=np.intp)
    n_first, n_second = n_seeds[first], n_seeds[second]
    for n, m in sorted(set(zip(n_first.tolist(), n_second.tolist(), strict=True))):
        yield np.flatnonzero((n_first == n) & (n_second == m)), n, m
