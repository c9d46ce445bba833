"""Sums and differences of confusion matrices, and their metrics, as the tables show them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from casting_tune import metrics
from casting_tune.analysis.decisions import CountTuple
from casting_tune.analysis.result_table import Positive
from casting_tune.metrics import Counts

COUNTED = ("tp", "fp", "tn", "fn")
# specificity is 1 - overkill_rate
SHOWN = tuple(name for name in metrics.METRICS if name != "specificity")
"""The metrics that the tables show."""


def from_columns(columns: NDArray[np.float64]) -> list[Counts]:
    """Return the counts of trials, given as [n, 4] in the order of COUNTED; unknown is 0."""
    return [Counts(*row) for row in np.nan_to_num(columns).astype(np.int64).tolist()]


def values(counts: Counts) -> CountTuple:
    """Return (tp, fp, tn, fn)."""
    return counts.tp, counts.fp, counts.tn, counts.fn


def total(counted: Sequence[Counts]) -> Counts:
    """Return the sum of counts; of none, 0."""
    if not counted:
        return Counts(0, 0, 0, 0)
    return Counts(*np.sum([values(counts) for counts in counted], axis=0).tolist())


def minus(whole: Counts, part: Counts) -> Counts:
    """Return the counts of the images of `whole` that are not in `part`."""
    return Counts(*(a - b for a, b in zip(values(whole), values(part), strict=True)))


@lru_cache(maxsize=2**16)  # fifty thousand trainings at a threshold have few different counts
def shown(counts: Counts, positive: Positive) -> dict[str, float | None]:
    """Return the shown metrics of counts; the caller must not change the dict, which is cached."""
    viewed = counts if positive == "defective" else counts.swapped()
    return {
        name: metrics.METRICS[name](counts if name in metrics.OF_THE_DEFECT else viewed)
        for name in SHOWN
    }
