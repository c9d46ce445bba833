"""Two cells, or two rows of a sweep, against each other on the same images.

Comes in: a store and two names. Goes out: a Versus: the paired test, who is wrong where. Trains
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import lookup, paired_tests, run_results, statistics
from casting_tune.errors import UsageError, unknown
from casting_tune.store.store import Store

LISTED = 12  # rows in an error, which is one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """What can be said of a against b.

    With several trainings, a side is wrong where at least half of them are.

    Attributes:
        a, b: the two names.
        n_trainings: of either side.
        n_images, n_groups: that both tested; photographs, or different images without an audit.
        accuracy: of either side on these images, over its trainings.
        difference, low, high, p: a's accuracy minus b's, its 95 % interval and p (`pairs.paired_bootstrap`).
        counts: images that both decide rightly, that only a or only b decides wrongly, that both do.
        mcnemar_p: exact, on images; it takes every image for a casting of its own.
        disagreements: path, y_true, and the share of either side's trainings that are wrong; the widest gap first.
        notes: what must be known beside.
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
    """Compare two cells, named by the beginnings of their ids, on the test images that both have.

    Raises:
        UsageError: no such cell, one that has not completed, or no test image in common.
    """
    names = [lookup.find(store, prefix) for prefix in (a, b)]
    rows = [lookup.predictions(store, name) for name in names]
    datasets = [
        store.read("trials", columns=["dataset_id"], cell_ids=[name])[0][0].as_py()
        for name in names
    ]
    if datasets[0] != datasets[1]:
        raise UsageError(
            f"These cells tested other datasets ({datasets[0]}, {datasets[1]}): they cannot be paired."
        )
    tested = [part[part["split"] == "test"].set_index("image").sort_index() for part in rows]
    common = tested[0].index.intersection(tested[1].index)
    if common.empty:
        raise UsageError("These cells have no test image in common: they cannot be paired.")
    right = [
        ((part.loc[common, "score"] >= 0.5) == (part.loc[common, "y_true"] == 1)).to_numpy()[
            None, :
        ]
        for part in tested
    ]
    n_other = sum(len(part) for part in tested) - 2 * len(common)
    notes = (f"{n_other} test images that only one of them has are left out.",) if n_other else ()
    images = tested[0].loc[common].reset_index()
    return _versus(store, (names[0], names[1]), right, images, dataset_id=datasets[0], notes=notes)


def rows(store: Store, sweep: str, a: str, b: str, *, run_id: str | None = None) -> Versus:
    """Compare two rows of a sweep's table by their labels, or by parts of these that no other row has.

    Raises:
        UsageError: no such sweep, run or row, a part that several rows have, or rows that did not test the same images.
    """
    found = run_results.load(store, sweep, run_id)
    labelled = dict(found.rows() + found.rows("baseline"))
    a, b = (_row(name, labelled) for name in (a, b))
    decided = [found.decisions(labelled[name]) for name in (a, b)]
    for name, (tested, _) in zip((a, b), decided, strict=True):
        if not len(tested):
            raise UsageError(f"Row '{name}' has no whole training with predictions yet.")
    if not np.array_equal(decided[0][0], decided[1][0]):
        raise UsageError("These rows tested other images: they cannot be paired.")
    of_run = found.predictions.drop_duplicates("image").set_index("image")
    paths = store.read(
        "predictions", columns=["image", "path"], cell_ids=found.trials.index
    ).to_pandas()
    of_run["path"] = paths.drop_duplicates("image").set_index("image")["path"]
    images = of_run.loc[decided[0][0]].reset_index()
    dataset_id = str(found.asked["dataset_id"].iloc[0])
    return _versus(
        store, (a, b), [right for _, right in decided], images, dataset_id=dataset_id, notes=()
    )


def _row(name: str, labels: Iterable[str]) -> str:
    """Return the one row that is called so: by its whole label, by some of its parts between commas, or by any text."""
    known = list(labels)
    if name in known:
        return name
    words = {word.strip().lower() for word in name.split(",")}
    found = [
        label for label in known if words <= {part.strip().lower() for part in label.split(",")}
    ]
    found = found or [label for label in known if name.lower() in label.lower()]
    if not found:
        raise UsageError(unknown("row", name, known))
    if len(found) > 1:
        listed = ", ".join(f"'{label}'" for label in found[:LISTED])
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise UsageError(
            f"'{name}' matches {len(found)} rows: {listed}{more}. Give more of the label."
        )
    return found[0]


def _versus(
    store: Store, names: tuple[str, str], right: list[Any], images: pd.DataFrame, *, dataset_id: str,
    notes: tuple[str, ...],
) -> Versus:  # fmt: skip
    kind, groups = lookup.photographs(store, dataset_id, images)
    difference, low, high, p = paired_tests.paired_bootstrap(right[0], right[1], groups)
    share = [1 - side.mean(axis=0) for side in right]  # [n] of trainings that are wrong
    wrong_a, wrong_b = (side >= 0.5 for side in share)
    table = images[["path", "y_true"]].assign(wrong_a=share[0], wrong_b=share[1])
    if len(right[0]) == len(right[1]) == 1:
        notes += (
            "One training each: this compares two trained networks; another seed may tell otherwise.",
        )
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
