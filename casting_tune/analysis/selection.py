"""A cell of the store and the operating point that is chosen for it.

Comes in: a store, a cell's id, a rule as a person writes it. Goes out: an OperatingPoint. Trains
nothing.
"""

from __future__ import annotations

import pyarrow.compute as pc
from numpy.typing import ArrayLike

from casting_tune.analysis import operating_point
from casting_tune.analysis.operating_point import OperatingPoint
from casting_tune.errors import UsageError
from casting_tune.store import completed
from casting_tune.store.store import Store


def threshold(
    store: Store,
    cell: str,
    *,
    max_escape: str | None = None,
    cost_escape: float | None = None,
    cost_overkill: float | None = None,
    prevalence: float | None = None,
) -> OperatingPoint:
    """Choose a cell's threshold on its validation images, by an escape rate or by costs.

    Args:
        store: where the cell's predictions are.
        cell: the cell's id, or the beginning of one.
        max_escape: such as "0.5%" or "0.005"; or else the three of:
        cost_escape, cost_overkill: what a missed defect and a rejected good casting cost, in any one unit.
        prevalence: share of defective castings on the line, in (0, 1).

    Raises:
        UsageError: no such cell, no rule or two, or numbers that cannot be meant.
    """
    trial = completed.find(store, cell)
    predictions = completed.predictions(store, trial)
    sides = {name: predictions.filter(pc.field("split") == name) for name in ("validation", "test")}
    given = [
        sides[name][column].to_numpy()
        for name in ("validation", "test")
        for column in ("y_true", "score")
    ]
    defects = sides["test"].filter(pc.field("y_true") == 1)["image"].to_pylist()
    return choose(
        *given,
        max_escape=max_escape,
        cost_escape=cost_escape,
        cost_overkill=cost_overkill,
        prevalence=prevalence,
        n_groups_defective=photographs(store, str(trial["dataset_id"]), set(defects)),
    )


def choose(
    validation_y: ArrayLike,
    validation_score: ArrayLike,
    test_y: ArrayLike,
    test_score: ArrayLike,
    *,
    max_escape: str | None = None,
    cost_escape: float | None = None,
    cost_overkill: float | None = None,
    prevalence: float | None = None,
    n_groups_defective: int | None = None,
) -> OperatingPoint:
    """Choose a threshold on validation by a rule as a person writes it; the arguments are those of `threshold`.

    Raises:
        UsageError: no rule or two, or numbers that cannot be meant.
    """
    given = (validation_y, validation_score, test_y, test_score)
    costs = (cost_escape, cost_overkill, prevalence)
    if max_escape is not None and not any(cost is not None for cost in costs):
        return operating_point.at_most_escape(
            *given, max_escape=_share(max_escape), n_groups_defective=n_groups_defective
        )
    if (
        max_escape is None
        and cost_escape is not None
        and cost_overkill is not None
        and prevalence is not None
    ):
        return operating_point.least_cost(
            *given,
            cost_escape=cost_escape,
            cost_overkill=cost_overkill,
            prevalence=prevalence,
            n_groups_defective=n_groups_defective,
        )
    raise UsageError(
        "Give --max-escape, or all of --cost-escape, --cost-overkill and --prevalence."
    )


def best(store: Store, sweep: str, run_id: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the id of a sweep's best cell and how it was chosen, by validation alone (`answers.Answers.best`).

    Raises:
        UsageError: no such sweep or run in the store, or none of its cells completed.
    """
    from casting_tune.analysis import run_results

    found = run_results.load(store, sweep, run_id)
    best = found.best
    if best is None:
        raise UsageError(
            f"No cell of sweep '{sweep}' has completed in '{store.address}': there is no best one yet."
        )
    done = found.completed(found.asked[found.asked["kind"] == "cell"])
    trial = run_results.records(done.loc[[best.cell_id]])[0]
    label = found.asked.loc[found.asked["cell_id"] == best.cell_id, "label"].iloc[0]
    n = trial["n_validation"]
    said = [
        f"Row '{best.row}' has the highest mean validation accuracy of {best.n_rows} "
        f"row{'s' * (best.n_rows != 1)} of sweep {sweep}: {100 * best.accuracy:.2f} %. Its best training is cell "
        f"{best.cell_id} ({label}): {round(trial['validation_accuracy'] * n):,} of {n:,} validation images are "
        "classified correctly at threshold 0.5.",
        *best.ties,
    ]
    if any(done[name].nunique() > 1 for name in ("fold", "dataset_id", "split_seed")):
        said.append(
            "The cells were validated on different images, so the choice depends in part on which images were easy."
        )
    return best.cell_id, tuple(said)


def named(
    store: Store, cell: str, sweep: str | None, run_id: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the cell that a person named, and how it was chosen if the name is 'best', the best cell of a sweep.

    Raises:
        UsageError: 'best' without a sweep, or a sweep or run without 'best'; or as `best`.
    """
    if (cell == "best") != (sweep is not None) or (run_id is not None and sweep is None):
        raise UsageError(
            "'best' is the best cell of a sweep and requires its name: best --sweep NAME [--run ID]."
        )
    return (cell, ()) if sweep is None else best(store, sweep, run_id)


def photographs(store: Store, dataset_id: str, images: set[int]) -> int | None:
    """Return how many photographs some images show, None without an audit of their dataset."""
    rows = store.read("images", columns=["dataset_id", "image", "group_id"]).filter(
        pc.field("dataset_id") == dataset_id
    )
    groups = dict(zip(rows["image"].to_pylist(), rows["group_id"].to_pylist(), strict=True))
    return len({groups[image] for image in images}) if groups else None


def _share(text: str) -> float:
    number, per_cent, rest = text.partition("%")
    try:
        value = float(number)
    except ValueError as error:
        raise UsageError(f"--max-escape is a share such as 0.5% or 0.005, not '{text}'.") from error
    if rest:
        raise UsageError(f"--max-escape is a share such as 0.5% or 0.005, not '{text}'.")
    return value / 100 if per_cent else value
