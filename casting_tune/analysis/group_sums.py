"""Sums of decisions per group of images, and the variance that seeds add.

Input: `correct` arrays [n_seeds, n_images] of rows that were tested on the same images, and the
group of each image: images of one casting (rotated, mirrored, copied) are one group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.statistics import Floats

FEWEST_GROUPS = 8.0
"""Fewest effective groups for an interval or a test. With 5, an interval for new castings is
meaningless: the bound of no error in 5 groups is 52 %.
"""

LIKENESS = 0.5
"""Assumed share of wrong images among the other images of a group, if one of them is wrong.

It applies to groups that the test set lacks; what the groups of the test set show is used as it is.
0 would mean that images of a casting are independent, 1 that they are all right or all wrong.
`tests/benchmarks/coverage.py` shows that 0.5 holds up to a latent intra-group correlation of 0.6.
"""


def group(groups: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    """Return the group of each image, [n_images] from 0, and the images per group, [n_groups]."""
    labels = np.asarray(groups)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            f"groups must be one label per image, for at least one image; got {labels.shape}."
        )
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return codes, sizes.astype(np.float64)


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


def effective_groups(sizes: Floats) -> float:
    """Return the effective number of equal groups (Kish 1965): sum^2 / sum of squares."""
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def few_groups(sizes: Floats) -> tuple[float, float]:
    """Return the degrees of freedom of groups, and the factor on their variance, for intervals.

    The first are Satterthwaite's (1946) for groups whose images are all alike, so that the largest
    groups count most: (sum m^2)^2 / sum m^4 - 1. The second is the ratio of the jackknife's
    variance to the plain one (Bell & McCaffrey 2002, Survey Methodology 28, 169-181).
    """
    share, squares = sizes / sizes.sum(), np.square(sizes)
    freedom = squares.sum() ** 2 / np.square(squares).sum() - 1
    return float(freedom), float(np.square(share / (1 - share)).sum() / np.square(share).sum())


def has_too_few(sizes: Floats) -> bool:
    """Return whether the groups are too few, or one too large, for a statement on new castings."""
    return effective_groups(sizes) < FEWEST_GROUPS


def refusal(sizes: Floats, noun: str) -> str:
    """Return why groups are too few, as a sentence."""
    effective = effective_groups(sizes)
    weigh = "" if effective > sizes.size - 0.5 else f", which weigh like {effective:.1f} equal ones"
    return (
        f"No intervals and no letters: the test images show {sizes.size} {noun}{weigh}. At least "
        f"{FEWEST_GROUPS:.0f} of equal weight are needed."
    )


def images_of_unseen(sizes: Floats) -> float:
    """Return the wrong images of a group that the test set lacks, given that one of them is wrong.

    The group has the mean size; see LIKENESS.
    """
    return 1 + (float(sizes.mean()) - 1) * LIKENESS


def seed_variances(rows: Sequence[Floats], sizes: Floats) -> tuple[Floats, float]:
    """Return the variance over seeds of the accuracy of one training of each row, and its freedom.

    Two or three seeds give a poor variance: it may be near 0 by chance. So the variances are pooled
    over the rows, relative to p (1 - p) (quasi-binomial: McCullagh & Nelder 1989, sec. 4.5), and a
    row has its own or the pooled one, whichever is larger.

    Returns:
        variances [n] and degrees of freedom; (0, 0) if each row has one seed.
    """
    n_images = sizes.sum()
    shares = [row.sum(axis=1) / n_images for row in rows]
    right = np.array([share.mean() for share in shares])
    smooth = (right * n_images + 1) / (n_images + 2)  # no variance of 0 for a row without errors
    binomial = smooth * (1 - smooth)
    own = np.array([share.var(ddof=1) if len(share) > 1 else 0.0 for share in shares])
    freedoms = np.array([len(share) - 1 for share in shares], dtype=np.float64)
    if not freedoms.sum():
        return np.zeros(len(rows)), 0.0
    pooled = (freedoms @ (own / binomial)) / freedoms.sum() * binomial
    return np.maximum(own, pooled), float(freedoms.sum())
