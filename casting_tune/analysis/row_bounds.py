"""Intervals, letters and bounds of the rows of a table.

Input: sets of rows with the same test images. Output: one value per row of the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from casting_tune.analysis import bootstrap, group_sums, paired_tests
from casting_tune.analysis.decisions import Comparable


def intervals(
    n_rows: int, sets: Sequence[Comparable]
) -> tuple[list[float], list[float], list[str]]:
    """Return the interval of the accuracy and the letters of each row; NaN and "" without one.

    Letters compare rows on the same images: small ones in the first set, capitals in the second.
    """
    low, high, letters = [np.nan] * n_rows, [np.nan] * n_rows, [""] * n_rows
    for position, rows in enumerate(sets):
        bounds = bootstrap.row_intervals(rows.correct, rows.groups)
        for i, (least, most) in zip(rows.indices, bounds, strict=True):
            low[i], high[i] = least, most
        has_letters = not group_sums.has_too_few(group_sums.group(rows.groups)[1])
        if len(rows.indices) > 1 and position < 2 and has_letters:
            of_set = paired_tests.all_pairs(rows.correct, rows.groups).letters
            for i, letter in zip(rows.indices, of_set, strict=True):
                letters[i] = letter.upper() if position else letter
    return low, high, letters


def escapes(
    n_rows: int, sets: Sequence[Comparable], *, noun: str
) -> tuple[list[float], list[str | None]]:
    """Return the bound of the escape rate of the worst seed of each row, and what it counts.

    Args:
        n_rows: of the table.
        sets: rows with the same test images.
        noun: what a group is.
    """
    upper: list[float] = [np.nan] * n_rows
    basis: list[str | None] = [None] * n_rows
    for rows in sets:
        if not rows.defective.any():
            continue
        codes, sizes = group_sums.group(rows.groups[rows.defective])
        wrong = [~right[:, rows.defective] for right in rows.correct]
        worst = np.array([seeds[seeds.sum(axis=1).argmax()] for seeds in wrong])
        _, high = bootstrap.rate_bounds(
            group_sums.sums(worst, codes, sizes=sizes), sizes, tail=0.05
        )
        for i, bound in zip(rows.indices, high.tolist(), strict=True):
            upper[i], basis[i] = bound, f"{sizes.size} {noun}"
    return upper, basis
