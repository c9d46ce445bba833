"""The decisions on test images at a threshold: counts per cell, and correct images per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from casting_tune.analysis.run_results import RunResults

CountTuple = tuple[int, int, int, int]
"""Numbers of images: tp, fp, tn, fn, the defect as the positive class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparable:
    """Rows that were tested on the same images.

    Attributes:
        indices: positions of the rows.
        correct: of each row [n_seeds, n] bool.
        groups: [n] the photograph that each image shows.
        images: [n] ascending.
        defective: [n] whether the image shows a defect.
    """

    indices: list[int]
    correct: list[NDArray[np.bool_]]
    groups: NDArray[np.int64]
    images: NDArray[np.int64]
    defective: NDArray[np.bool_]


def count(
    run: RunResults, thresholds: Sequence[float]
) -> list[dict[str, tuple[CountTuple, CountTuple]]]:
    """Return for each threshold the counts of every cell: of all test images, and of leaked ones.

    A cell without predictions or with a score that is not finite is left out. All cells and
    thresholds are counted at once: one by one, seven million predictions took a minute.

    Args:
        run: holds the predictions.
        thresholds: on P(defective).
    """
    limits, where = np.unique(np.asarray(thresholds, np.float32), return_inverse=True)
    columns = run.columns
    score, leaked, defective = columns["score"], columns["leaked"], columns["y_true"] == 1
    reached = np.zeros(len(score), np.int8)  # how many of the limits, in ascending order
    for limit in limits:
        reached += score >= limit
    cells = run.predictions["cell_id"].cat
    # cell, leaked, defective, limits reached
    shape = (len(cells.categories), 2, 2, len(limits) + 1)
    place = cells.codes.to_numpy(np.int32, copy=True)
    for size, values in zip(shape[1:], (leaked, defective, reached), strict=True):
        place *= size
        place += values
    n = np.bincount(place, minlength=int(np.prod(shape))).reshape(shape)
    counts = _by_decision(n, where)
    is_valid = n.sum(axis=(1, 2, 3)) > 0
    is_valid[cells.codes[~np.isfinite(score)]] = False
    valid = np.flatnonzero(is_valid).tolist()
    of_all, of_leaked = counts[:, 0].tolist(), counts[:, 1].tolist()
    return [
        {
            cells.categories[cell]: (tuple(of_all[cell][at]), tuple(of_leaked[cell][at]))
            for cell in valid
        }
        for at in range(len(thresholds))
    ]


def _by_decision(n: NDArray[np.int64], where: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return tp, fp, tn, fn at each threshold: [cells, (all, leaked), thresholds, 4].

    Args:
        n: numbers of images, [cells, leaked, defective, limits reached].
        where: [thresholds] the limit of each threshold.
    """
    from_above = n[..., ::-1].cumsum(axis=3)[..., ::-1]
    rejected = from_above[..., 1:][..., where]  # [cells, 2, 2, thresholds]
    passed = n.sum(axis=3)[..., None] - rejected
    counts = np.stack(
        [rejected[:, :, 1], rejected[:, :, 0], passed[:, :, 0], passed[:, :, 1]], axis=-1
    )
    counts[:, 0] += counts[:, 1]  # of all images, not only of those that are not leaked
    return counts


def correct(
    run: RunResults, cells: pd.DataFrame, *, threshold: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the images of a row [n], ascending, and which its trainings classify correctly.

    The folds of one seed are joined, so that a seed classifies every image once. Left out are seeds
    without some fold or prediction, and seeds that tested other images than the first.

    Returns:
        images [n] and correct [n_seeds, n]; ([0], [0, 0]) without any complete seed.
    """
    n_folds, n_test = cells["fold"].nunique(), run.trials["n_test"]
    by_seed: dict[int, list[str]] = {}
    for cell, seed in zip(cells["cell_id"], cells["seed"], strict=True):
        if cell in run.trials.index:
            by_seed.setdefault(int(seed), []).append(cell)
    first = np.empty(0, np.int64)
    rows: list[NDArray[np.bool_]] = []
    for seed in sorted(by_seed):
        folds = [run.tested(cell) for cell in by_seed[seed]]
        image, y_true, score = (
            np.concatenate([fold[name] for fold in folds]) for name in ("image", "y_true", "score")
        )
        n_expected = sum(n_test[cell] for cell in by_seed[seed])
        is_complete = len(folds) == n_folds and len(image) == n_expected
        if not is_complete or not np.isfinite(score).all():
            continue
        order = np.argsort(image, kind="stable")
        first = first if rows else image[order]
        if np.array_equal(first, image[order]):
            rows.append(((score >= np.float32(threshold)) == (y_true == 1))[order])
    return first, np.stack(rows) if rows else np.empty((0, 0), np.bool_)


def comparable(
    run: RunResults, rows: Iterable[pd.DataFrame]
) -> tuple[list[Comparable], tuple[str, ...]]:
    """Return sets of rows with the same test images, in the order of their first rows, and notes.

    The note counts rows whose predictions are missing.
    """
    rows = list(rows)
    of_rows = [correct(run, cells) for cells in rows]
    sets: dict[bytes, list[int]] = {}
    for i, (images, right) in enumerate(of_rows):
        if len(right):
            sets.setdefault(images.tobytes(), []).append(i)
    n_done = sum(any(map(run.trials.index.__contains__, cells["cell_id"])) for cells in rows)
    n_lost = n_done - sum(map(len, sets.values()))
    notes = (f"{n_lost} rows have no interval: predictions are missing in the store.",)
    return [
        Comparable(
            indices=indices,
            correct=[of_rows[i][1] for i in indices],
            groups=run.groups(of_rows[indices[0]][0]),
            images=of_rows[indices[0]][0],
            defective=_defective(run, rows[indices[0]], of_rows[indices[0]][0]),
        )
        for indices in sets.values()
    ], notes if n_lost else ()


def _defective(
    run: RunResults, cells: pd.DataFrame, images: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether images that some cells tested show a defect: [n]."""
    tested = [run.tested(cell) for cell in cells["cell_id"]]
    return np.isin(images, np.concatenate([one["image"][one["y_true"] == 1] for one in tested]))
