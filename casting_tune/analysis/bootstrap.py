"""Bootstrap intervals of rows and of differences between rows, over groups of images and seeds.

Groups are resampled, the same ones for all rows. Seeds are too few to be resampled: the bootstrap
mean of three spreads by a factor sqrt(2/3) too little. So the mean of a row is moved by a draw of
Student's t with n_seeds - 1 degrees of freedom, times its standard error over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune.analysis.group_sums import (
    borrowing,
    by_n_seeds,
    effective_groups,
    group,
    means,
    seed_variances,
    sums,
)
from casting_tune.analysis.statistics import Floats, clopper_pearson


@dataclass(frozen=True, slots=True)
class Resampling:
    """How an interval is drawn.

    Attributes:
        n_resamples: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).
    """

    n_resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of the mean of a row over seeds and images.

    If every value is 1 (or 0), resampling shows no variation: then it is the exact interval with
    one trial per group. With one group it is (NaN, NaN). With one seed it is valid for this one
    training only.

    With 84 castings and 2 to 10 seeds it contained the true mean in 89 to 98 of 100 simulations:
    least if seeds spread by several points, or if the few errors are on few castings.

    Args:
        values: [n_seeds, n_images] shares in 0..1, usually 1 if the image was classified correctly.
        groups: [n_images] any labels; images of one casting have equal labels.
        n_resamples: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: no image, wrong shapes, or a value outside 0..1.
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
    """Return the `bootstrap_interval` of each row; all rows share the resamples."""
    codes, sizes = group(groups)
    of_rows = [sums(values, codes, sizes=sizes) for values in rows]
    rng = np.random.default_rng(seed)
    resampled = _resampled_means(of_rows, sizes, n_resamples=n_resamples, rng=rng)
    after, spread = rng.bit_generator.state, np.sqrt(seed_variances(of_rows, sizes))
    n_seeds = np.array([len(row) for row in of_rows], dtype=np.intp)
    for n in np.unique(n_seeds[n_seeds > 1]):
        rng.bit_generator.state = after  # each row as if it was alone
        resampled[n_seeds == n] += np.outer(
            spread[n_seeds == n], rng.standard_t(n - 1, n_resamples)
        )
    low, high = _percentiles(resampled, sizes=sizes, confidence=confidence)
    intervals = list(zip(low.clip(0, 1).tolist(), high.clip(0, 1).tolist(), strict=True))
    for i, row in enumerate(of_rows):
        if sizes.size > 1 and row.sum() in (0, len(row) * sizes.sum()):
            intervals[i] = clopper_pearson(
                sizes.size if row.any() else 0, sizes.size, confidence=confidence
            )
    return intervals


def pair_intervals(
    rows: Sequence[Floats], first: NDArray[np.intp], second: NDArray[np.intp], *, sizes: Floats,
    resampling: Resampling,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return low and high of the difference of each pair: [pairs].

    The spread over seeds is drawn for each pair as if it was alone.
    """
    n_resamples, confidence = resampling.n_resamples, resampling.confidence
    rng = np.random.default_rng(resampling.seed)
    resampled = _resampled_means(rows, sizes, n_resamples=n_resamples, rng=rng)
    after, spread = rng.bit_generator.state, np.sqrt(seed_variances(rows, sizes))
    low, high = np.empty((2, len(first)))
    for of_kind, n_first, n_second in by_n_seeds(rows, first, second):
        rng.bit_generator.state = after
        draws = [
            rng.standard_t(n - 1, n_resamples) if n > 1 else np.zeros(n_resamples)
            for n in (n_first, n_second)
        ]
        scales = math.sqrt(borrowing(n_first, n_second)), math.sqrt(borrowing(n_second, n_first))
        for k in np.array_split(of_kind, math.ceil(of_kind.size * n_resamples / 2**21)):
            moved = resampled[first[k]] - resampled[second[k]]
            for row, scale, draw in zip((first[k], second[k]), scales, draws, strict=True):
                moved += np.outer(spread[row] * scale, draw)
            low[k], high[k] = _percentiles(moved, sizes=sizes, confidence=confidence)
    return low, high


def _percentiles(means: Floats, *, sizes: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the low and high percentile of resampled means [n, n_resamples]; NaN for one group.

    With few groups the percentiles are farther out (Hesterberg 2015, Am. Stat. 69, 371-386).
    Overwrites the means.
    """
    from scipy.special import ndtr, stdtrit

    n = effective_groups(sizes)
    if n == 1:
        return np.full(len(means), np.nan), np.full(len(means), np.nan)
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - confidence) / 2)))
    low, high = np.quantile(means, [tail, 1 - tail], axis=1, overwrite_input=True)
    return low, high


def _resampled_means(
    rows: Sequence[Floats], sizes: Floats, *, n_resamples: int, rng: np.random.Generator
) -> Floats:
    """Return the means over resampled groups [n_rows, n_resamples]; all rows share the groups."""
    n_groups = sizes.size
    weights, rng.bit_generator.state = _weights(
        n_groups, n_resamples, json.dumps(rng.bit_generator.state)
    )
    return means(rows, sizes) @ weights.T / (weights @ sizes)


@lru_cache(maxsize=2)
def _weights(n_groups: int, n_resamples: int, state: str) -> tuple[Floats, Any]:
    """Return how often each resample has each group, [n_resamples, n_groups], and the new state.

    Cached, because every row of a table draws the same resamples: for 330 rows that takes seconds.
    """
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(state)
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples).astype(
        np.float64
    )
    weights.setflags(write=False)
    return weights, rng.bit_generator.state
