"""Compare two cells, or two rows of a sweep, on the same images.

Input: a store and two names. Output: a Versus: the paired test, and the images that differ. Trains
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import (
    cell_names,
    decisions,
    lookup,
    paired_tests,
    run_results,
    statistics,
)
from casting_tune.errors import UsageError, unknown
from casting_tune.store.store import Store

LISTED = 12  # most rows listed in an error, which is one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """The comparison of a and b.

    With several trainings, a side is wrong on an image if at least half of them are.

    Attributes:
        a, b: the two names.
        n_trainings: of each side.
        n_images, n_groups: tested by both; photographs, or different images without an audit.
        accuracy: of each side on these images, over its trainings.
        difference, low, high, p: accuracy of a minus accuracy of b, its 95 % interval and p
            (`paired_tests.pair`); NaN if the groups are too few.
        counts: images that both classify correctly, that only a or only b, or both misclassify.
        mcnemar_p: exact, on images; valid only if every image shows a different casting.
        disagreements: path, y_true, share of wrong trainings of each side; largest gap first.
        notes: one sentence each.
    """

    a: str
    b: str
    n_trainings: tuple[int, int]
    n_images: int
    n_groups: int
    groups: str
    accuracy: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    counts: dict[str, int]
    mcnemar_p: float
    disagreements: pd.DataFrame
    notes: tuple[str, ...]


def cells(store: Store, a: str, b: str) -> Versus:
    """Compare two cells, named as in `cell_names.find`, on their common test images.

    Raises:
        UsageError: cell not found or not completed, or no test image in common.

    Example:
        >>> from casting_tune import Store, compare
        >>> store = Store("results")
        >>> first, second, *_ = sorted(store.completed())
        >>> sum(compare(store, first, second).counts.values())  # test images
        16
    """
    names = [cell_names.find(store, name) for name in (a, b)]
    rows = [lookup.predictions(store, name) for name in names]
    datasets = [
        store.read("trials", columns=["dataset_id"], cell_ids=[name])[0][0].as_py()
        for name in names
    ]
    if datasets[0] != datasets[1]:
        raise UsageError(
            f"These cells were tested on different datasets ({datasets[0]}, {datasets[1]}) and "
            "cannot be compared."
        )
    tested = [part[part["split"] == "test"].set_index("image").sort_index() for part in rows]
    common = tested[0].index.intersection(tested[1].index)
    if common.empty:
        raise UsageError("These cells have no test image in common and cannot be compared.")
    right = [
        ((part.loc[common, "score"] >= 0.5) == (part.loc[common, "y_true"] == 1)).to_numpy()[
            None, :
        ]
        for part in tested
    ]
    n_other = sum(len(part) for part in tested) - 2 * len(common)
    notes = (f"{n_other} test images of only one cell are skipped.",) if n_other else ()
    images = tested[0].loc[common].reset_index()
    return _versus(store, (names[0], names[1]), right, images, dataset_id=datasets[0], notes=notes)


def rows(store: Store, sweep: str, a: str, b: str, *, run_id: str | None = None) -> Versus:
    """Compare two rows of a sweep's table by their labels, or by a unique part of a label.

    Raises:
        UsageError: sweep, run or row not found; a part of several labels; or different test images.
    """
    run = run_results.load(store, sweep, run_id)
    labelled = dict(run.rows() + run.rows("baseline"))
    a, b = (_row(name, labelled) for name in (a, b))
    tested = {name: decisions.correct(run, cells) for name, cells in labelled.items()}
    sides = [tested[name] for name in (a, b)]
    for name, (shown, _) in zip((a, b), sides, strict=True):
        if not len(shown):
            raise UsageError(f"Row '{name}' has no complete training with predictions yet.")
    if not np.array_equal(sides[0][0], sides[1][0]):
        raise UsageError("These rows were tested on different images and cannot be compared.")
    of_run = run.predictions.drop_duplicates("image").set_index("image")
    paths = store.read(
        "predictions", columns=["image", "path"], cell_ids=run.trials.index
    ).to_pandas()
    of_run["path"] = paths.drop_duplicates("image").set_index("image")["path"]
    images = of_run.loc[sides[0][0]].reset_index()
    # the variance between seeds is that of the whole table, so that p is that of the table
    others = [
        right
        for name, (shown, right) in tested.items()
        if name not in (a, b) and np.array_equal(shown, sides[0][0])
    ]
    correct = [*(right for _, right in sides), *others]
    return _versus(store, (a, b), correct, images, dataset_id=run.dataset_id, notes=())


def _row(name: str, labels: Iterable[str]) -> str:
    """Return the one row with this label, these parts of a label (between commas), or this text."""
    known = list(labels)
    if name in known:
        return name
    words = {word.strip().lower() for word in name.split(",")}
    matching = [
        label for label in known if words <= {part.strip().lower() for part in label.split(",")}
    ]
    matching = matching or [label for label in known if name.lower() in label.lower()]
    if not matching:
        raise UsageError(unknown("row", name, known))
    if len(matching) > 1:
        listed = ", ".join(f"'{label}'" for label in matching[:LISTED])
        more = f" and {len(matching) - LISTED} more" if len(matching) > LISTED else ""
        raise UsageError(
            f"'{name}' matches {len(matching)} rows: {listed}{more}. Give more of the label."
        )
    return matching[0]


def _versus(
    store: Store,
    names: tuple[str, str],
    right: list[Any],
    images: pd.DataFrame,
    *,
    dataset_id: str,
    notes: tuple[str, ...],
) -> Versus:
    kind, groups = lookup.photographs(store, dataset_id, images)
    difference, low, high, p = paired_tests.pair(right[0], right[1], groups, others=right[2:])
    share = [1 - side.mean(axis=0) for side in right[:2]]  # [n] of wrong trainings
    wrong_a, wrong_b = (side >= 0.5 for side in share)
    table = images[["path", "y_true"]].assign(wrong_a=share[0], wrong_b=share[1])
    if len(right[0]) == len(right[1]) == 1:
        notes += ("One training each: the result may differ with another seed.",)
    gap = (table["wrong_a"] - table["wrong_b"]).abs()
    return Versus(
        a=names[0],
        b=names[1],
        n_trainings=(len(right[0]), len(right[1])),
        n_images=len(images),
        n_groups=len(np.unique(groups)),
        groups=kind,
        accuracy=(float(right[0].mean()), float(right[1].mean())),
        difference=difference,
        low=low,
        high=high,
        p=p,
        counts={
            "both right": int((~wrong_a & ~wrong_b).sum()),
            "only a wrong": int((wrong_a & ~wrong_b).sum()),
            "only b wrong": int((~wrong_a & wrong_b).sum()),
            "both wrong": int((wrong_a & wrong_b).sum()),
        },
        mcnemar_p=statistics.mcnemar(wrong_a, wrong_b),
        disagreements=table.loc[
            gap[gap > 0].sort_values(ascending=False, kind="stable").index
        ].reset_index(drop=True),
        notes=notes,
    )
