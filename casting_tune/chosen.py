"""A cell of the store and the operating point that is chosen for it.

Comes in: a store, a cell's id, a rule as a person writes it. Goes out: an OperatingPoint. Trains nothing.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from casting_tune import cells, operating
from casting_tune.errors import UsageError
from casting_tune.operating import OperatingPoint
from casting_tune.store import Store


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
    trial = cells.find(store, cell)
    predictions = cells.predictions(store, trial)
    sides = {name: predictions.filter(pc.field("split") == name) for name in ("validation", "test")}
    given = [sides[name][column].to_numpy() for name in ("validation", "test") for column in ("y_true", "score")]
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
        return operating.at_most_escape(*given, max_escape=_share(max_escape), n_groups_defective=n_groups_defective)
    if max_escape is None and cost_escape is not None and cost_overkill is not None and prevalence is not None:
        return operating.least_cost(
            *given,
            cost_escape=cost_escape,
            cost_overkill=cost_overkill,
            prevalence=prevalence,
            n_groups_defective=n_groups_defective,
        )
    raise UsageError("Give --max-escape, or all of --cost-escape, --cost-overkill and --prevalence.")


def best(store: Store, sweep: str, run_id: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the id of a sweep's best cell and how it was found, by validation alone: test scores are not read.

    The best has the highest accuracy on its validation images at threshold 0.5; of equals, the lowest mean binary
    cross-entropy on them; of equals in that too, the first in the sweep's order.

    Raises:
        UsageError: no such sweep or run in the store, or none of its cells completed.
    """
    from casting_tune import answers

    found = answers.load(store, sweep, run_id)
    asked = found.asked[found.asked["kind"] == "cell"]
    done = found.completed(asked)
    if done.empty:
        raise UsageError(f"No cell of sweep '{sweep}' has completed in '{store.address}': there is no best one yet.")
    rows = store.read("predictions", columns=["cell_id", "attempt", "split", "y_true", "score"], cell_ids=done.index)
    validation = rows.filter(pc.field("split") == "validation")
    ranked = []
    for cell, attempt in done["attempt"].items():
        of_cell = validation.filter((pc.field("cell_id") == cell) & (pc.field("attempt") == attempt))
        y_true, score = of_cell["y_true"].to_numpy(), of_cell["score"].to_numpy().astype(np.float64)
        right = int(((score >= 0.5) == (y_true == 1)).sum())
        likely = np.clip(np.where(y_true == 1, score, 1 - score), 1e-7, 1)
        ranked.append((right / len(score), -float(-np.log(likely).mean()), str(cell), right, len(score)))
    first = max(ranked, key=lambda cell: cell[:2])  # the first of equals, in the sweep's order
    tied = sum(cell[0] == first[0] for cell in ranked) - 1
    equal = sum(cell[:2] == first[:2] for cell in ranked) - 1
    label = str(asked.loc[asked["cell_id"] == first[2], "label"].iloc[0])
    said = [
        f"Cell {first[2]} ({label}) is the best of {len(ranked)} completed cells of sweep {sweep}, on validation "
        f"alone: {first[3]:,} of {first[4]:,} validation images right at threshold 0.5."
    ]
    if tied:
        said.append(
            f"{tied} other cell{'s have' if tied > 1 else ' has'} that accuracy too; of these it has the lowest "
            f"validation cross-entropy ({-first[1]:.4g})"
            + (f", with {equal} more, of which it is the first." if equal else ".")
        )
    if done["fold"].nunique() > 1 or done["dataset_id"].nunique() > 1 or done["split_seed"].nunique() > 1:
        said.append(
            "The cells were validated on different images: which of them is best is partly which had the easy ones."
        )
    return first[2], tuple(said)


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
