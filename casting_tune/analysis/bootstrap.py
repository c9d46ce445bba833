"""Bounds of a rate over groups of images: the Bayesian bootstrap with one invented group.

The groups get random weights (Rubin 1981, The Bayesian bootstrap, Ann. Stat. 9, 130-134), and one
group is added that the test set lacks: a bad one for the upper bound of an error rate, a faultless
one for the lower bound (Gaffke 2005, Mathematical Methods of Statistics; Learned-Miller & Thomas
2019, arXiv 1905.06208). For independent images this is the exact interval of Clopper & Pearson. One
more error never narrows an interval, and none has width 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from casting_tune.analysis.group_sums import (
    few_groups,
    group,
    has_too_few,
    images_of_unseen,
    means,
    seed_variances,
    sums,
)
from casting_tune.analysis.statistics import Floats

N_DRAWS = 10_000
_BLOCK = 512  # groups whose weights are drawn at once, and rows: 40 MB


def rate_bounds(
    wrong: Floats, sizes: Floats, *, tail: float = 0.025, n_draws: int = N_DRAWS
) -> tuple[Floats, Floats]:
    """Return low and high bounds of error rates, each with confidence 1 - tail.

    With few or unequal groups the tail is smaller, by Student's t (Hesterberg 2015, Am. Stat. 69,
    371-386) and `group_sums.few_groups`.

    Args:
        wrong: [n, n_groups] wrong images of each group; a mean over seeds need not be whole.
        sizes: [n_groups] images of each group.
        tail: in (0, 0.5).
        n_draws: of the weights.

    Returns:
        low and high [n], shares in 0..1; NaN if `has_too_few` groups, except that images that are
        all different need no minimum.
    """
    from scipy.special import betaincinv, ndtr, stdtrit

    n_images, k = sizes.sum(), wrong.sum(axis=1)
    if sizes.max() == 1 and np.isin(wrong, (0, 1)).all():
        low = np.where(k > 0, betaincinv(np.maximum(k, 1), n_images - k + 1, tail), 0.0)
        full = np.minimum(k, n_images - 1)
        return low, np.where(k < n_images, betaincinv(full + 1, n_images - full, 1 - tail), 1.0)
    if has_too_few(sizes):
        return np.full(len(wrong), np.nan), np.full(len(wrong), np.nan)
    if len(wrong) > _BLOCK:
        halves = [
            rate_bounds(half, sizes, tail=tail, n_draws=n_draws)
            for half in (wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :])
        ]
        return np.concatenate([x for x, _ in halves]), np.concatenate([y for _, y in halves])
    freedom, factor = few_groups(sizes)
    tail = float(ndtr(math.sqrt(factor) * stdtrit(freedom, tail)))
    rng = np.random.default_rng(0)
    added = rng.exponential(size=n_draws)
    errors, images = np.zeros((len(wrong), n_draws)), np.zeros(n_draws)
    for start in range(0, sizes.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        weights = rng.exponential(size=(n_draws, sizes[part].size))
        errors += wrong[:, part] @ weights.T
        images += weights @ sizes[part]
    images += added * sizes.mean()
    low = np.quantile(errors / images, tail, axis=1)
    errors += added * images_of_unseen(sizes)
    errors /= images
    return low, np.quantile(errors, 1 - tail, axis=1, overwrite_input=True)


def row_interval(
    correct: ArrayLike, groups: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the accuracy of one row alone; see `row_intervals`."""
    ((low, high),) = row_intervals([correct], groups, confidence=confidence)
    return low, high


def row_intervals(
    rows: Sequence[ArrayLike],
    groups: ArrayLike,
    *,
    confidence: float = 0.95,
    n_draws: int = N_DRAWS,
) -> list[tuple[float, float]]:
    """Return the interval of the accuracy of each row on new castings, over groups and seeds.

    With several seeds it is valid for a new training of the row: the distance to each bound over
    groups and the one over seeds, Student's t times the standard error, are combined as squares
    (Zou & Donner 2008, Stat. Med. 27, 1693-1702). With one seed it is valid for this training only.

    Args:
        rows: [n_seeds, n_images] shares in 0..1, usually 1 if the image was classified correctly.
        groups: [n_images] any labels; images of one casting have equal labels.
        confidence: of each interval, in (0, 1).
        n_draws: of `rate_bounds`.

    Returns:
        (low, high) of each row in 0..1; NaN if the groups are too few.

    Raises:
        ValueError: no image, wrong shapes, or a value outside 0..1.
    """
    codes, sizes = group(groups)
    of_rows = [sums(values, codes, sizes=sizes) for values in rows]
    wrong = sizes - means(of_rows, sizes)
    tail = (1 - confidence) / 2
    low, high = rate_bounds(wrong, sizes, tail=tail, n_draws=n_draws)
    rate = wrong.sum(axis=1) / sizes.sum()
    variances, freedom = seed_variances(of_rows, sizes)
    n_seeds = np.array([len(row) for row in of_rows])
    variances[n_seeds == 1] = 0
    low, high = with_seeds(rate, low, high, variances / n_seeds, freedom, tail=tail)
    return list(zip((1 - high).tolist(), (1 - low).tolist(), strict=True))


def with_seeds(
    rate: Floats, low: Floats, high: Floats, variances: Floats, freedom: float,
    *, tail: float = 0.025,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Widen bounds over groups by the variance over seeds of the mean rates, all of one shape."""
    from scipy.special import stdtrit

    by_seeds = np.sqrt(variances) * (stdtrit(freedom, 1 - tail) if freedom else 0.0)
    return (
        np.maximum(rate - np.hypot(rate - low, by_seeds), 0),
        np.minimum(rate + np.hypot(high - rate, by_seeds), 1),
    )


def upper_bound(wrong: ArrayLike, groups: ArrayLike, *, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of the share of wrong images on new castings.

    Args:
        wrong: [n_images] bool.
        groups: [n_images] any labels; images of one casting have equal labels.
        confidence: in (0.5, 1).

    Returns:
        A share in 0..1; 1 without an image, NaN if the groups are too few.
    """
    values = np.asarray(wrong, dtype=np.float64)
    if not values.size:
        return 1.0
    codes, sizes = group(groups)
    _, high = rate_bounds(sums(values[None], codes, sizes=sizes), sizes, tail=1 - confidence)
    return float(high[0])
