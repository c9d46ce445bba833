"""Choose a cell of a sweep, and the operating point of a cell.

Input: a store, a cell's id, a rule as text. Output: an OperatingPoint. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from casting_tune.analysis import cell_names, image_groups, operating_point
from casting_tune.analysis.operating_point import OperatingPoint, Scored
from casting_tune.errors import UsageError
from casting_tune.store import completed
from casting_tune.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


def threshold(
    store: Store,
    cell: str,
    *,
    max_escape: str | None = None,
    cost_escape: float | None = None,
    cost_overkill: float | None = None,
    prevalence: float | None = None,
) -> OperatingPoint:
    """Choose the threshold of a cell on its validation images, by an escape rate or by costs.

    Args:
        store: holds the predictions of the cell.
        cell: the cell's id, or its first characters.
        max_escape: such as "0.5%" or "0.005"; or give all three of the following instead.
        cost_escape, cost_overkill: cost of a missed defect and of a rejected good casting, in the
            same unit.
        prevalence: share of defective castings on the line, in (0, 1).

    Raises:
        UsageError: cell not found, no rule or two rules, or a number out of range.
    """
    trial = completed.find(store, cell)
    predictions = completed.predictions(store, trial)
    sides = {name: predictions.filter(pc.field("split") == name) for name in ("validation", "test")}
    dataset_id = str(trial["dataset_id"])
    validation, test = (
        replace(_scored(rows), groups=photographs(store, dataset_id, rows["image"].to_pylist()))
        for rows in sides.values()
    )
    shown = sides["validation"]["image"].to_pylist()
    n_leaked = leaked(store, dataset_id, shown, split=str(trial["split"]))
    return choose(
        replace(validation, n_leaked=n_leaked),
        test,
        max_escape=max_escape,
        cost_escape=cost_escape,
        cost_overkill=cost_overkill,
        prevalence=prevalence,
    )


def choose(
    validation: Scored,
    test: Scored,
    *,
    max_escape: str | None = None,
    cost_escape: float | None = None,
    cost_overkill: float | None = None,
    prevalence: float | None = None,
) -> OperatingPoint:
    """Choose a threshold on validation by a rule; arguments as in `threshold`.

    Raises:
        UsageError: no rule or two rules, or a number out of range.
    """
    costs = (cost_escape, cost_overkill, prevalence)
    if max_escape is not None and not any(cost is not None for cost in costs):
        return operating_point.at_most_escape(validation, test, max_escape=_share(max_escape))
    if (
        max_escape is None
        and cost_escape is not None
        and cost_overkill is not None
        and prevalence is not None
    ):
        return operating_point.least_cost(
            validation,
            test,
            cost_escape=cost_escape,
            cost_overkill=cost_overkill,
            prevalence=prevalence,
        )
    raise UsageError(
        "Give --max-escape, or all of --cost-escape, --cost-overkill and --prevalence."
    )


def best(store: Store, sweep: str, run_id: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the id of the best cell of a sweep, and sentences about the choice.

    The choice uses only validation (`run_results.RunResults.best`).

    Raises:
        UsageError: sweep or run not found in the store, or no completed cell.
    """
    from casting_tune.analysis import run_results

    run = run_results.load(store, sweep, run_id)
    best = run.best
    if best is None:
        raise UsageError(
            f"No completed cell of sweep '{sweep}' in '{store.address}'. Train it first: "
            f"casting-tune sweep {sweep}"
        )
    done = run.completed(run.cells[run.cells["kind"] == "cell"])
    trial = run_results.records(done.loc[[best.cell_id]])[0]
    label = run.cells.loc[run.cells["cell_id"] == best.cell_id, "label"].iloc[0]
    n = trial["n_validation"]
    sentences = [
        f"Row '{best.row}' has the highest mean validation accuracy of {best.n_rows} "
        f"row{'s' * (best.n_rows != 1)} of sweep {sweep}: {100 * best.accuracy:.2f} %. "
        f"Its best training is cell {best.cell_id} ({label}): "
        f"{round(trial['validation_accuracy'] * n):,} of {n:,} validation images are classified "
        "correctly at threshold 0.5.",
        *best.ties,
    ]
    if any(done[name].nunique() > 1 for name in ("fold", "dataset_id", "split_seed")):
        sentences.append(
            "The cells were validated on different images, so the choice depends in part on which "
            "images were easy."
        )
    return best.cell_id, tuple(sentences)


def named(
    store: Store, name: str, scope: cell_names.Scope = cell_names.COMPLETED
) -> tuple[str, tuple[str, ...]]:
    """Return the id of the cell with a name; for "best" also sentences about the choice.

    Args:
        store: holds the cell.
        name: "best", or as in `cell_names.find`.
        scope: where the name is looked up; "best" without a sweep is of the only sweep.

    Raises:
        UsageError: no cell or several cells match; a run without a sweep; or as `best`.
    """
    if scope.run_id is not None and scope.sweep is None:
        raise UsageError("--run selects a run of a sweep: use it together with --sweep.")
    if name == "best":
        return best(store, scope.sweep or cell_names.only_sweep(store), scope.run_id)
    return cell_names.find(store, name, scope), ()


def _scored(rows: pa.Table) -> Scored:
    """Return labels, scores and kinds of predictions; of older ones without kinds."""
    columns = {name: rows[name].to_numpy() for name in ("y_true", "score")}
    kinds = None if rows["kind"].null_count else rows["kind"].to_pylist()
    return Scored(**columns, kinds=kinds)


def photographs(store: Store, dataset_id: str, images: Sequence[int]) -> list[int] | None:
    """Return the photograph that each image shows, None if the dataset was not audited."""
    groups = image_groups.photo_groups(store, dataset_id)
    return None if groups is None else [groups[image] for image in images]


def leaked(store: Store, dataset_id: str, validation: Sequence[int], *, split: str) -> int:
    """Return how many validation images show a photograph that is also in training.

    0 if the dataset was not audited, and for grouped splits, which keep photographs together.
    """
    groups = image_groups.photo_groups(store, dataset_id)
    if groups is None or split != "official":
        return 0
    trained = {
        groups[image]
        for image in image_groups.train_folder(store, dataset_id) - frozenset(validation)
    }
    return sum(groups[image] in trained for image in validation)


def _share(text: str) -> float:
    value, per_cent, rest = text.partition("%")
    try:
        if rest:
            raise ValueError
        return float(value) / 100 if per_cent else float(value)
    except ValueError as error:
        raise UsageError(
            f"--max-escape must be a share such as 0.5% or 0.005; got '{text}'."
        ) from error
