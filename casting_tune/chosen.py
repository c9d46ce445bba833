"""A cell of the store and the operating point that is chosen for it.

Comes in: a store, a cell's id, a rule as a person writes it. Goes out: an OperatingPoint. Trains nothing.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from casting_tune import operating
from casting_tune.errors import UsageError, unknown
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
    predictions, trial = _predictions(store, cell)
    sides = {name: predictions.filter(pc.field("split") == name) for name in ("validation", "test")}
    given = [sides[name][column].to_numpy() for name in ("validation", "test") for column in ("y_true", "score")]
    defects = sides["test"].filter(pc.field("y_true") == 1)["image"].to_pylist()
    photographs = _photographs(store, str(trial["dataset_id"]), set(defects))
    costs = (cost_escape, cost_overkill, prevalence)
    if max_escape is not None and not any(cost is not None for cost in costs):
        return operating.at_most_escape(*given, max_escape=_share(max_escape), n_groups_defective=photographs)
    if max_escape is None and cost_escape is not None and cost_overkill is not None and prevalence is not None:
        return operating.least_cost(
            *given,
            cost_escape=cost_escape,
            cost_overkill=cost_overkill,
            prevalence=prevalence,
            n_groups_defective=photographs,
        )
    raise UsageError("Give --max-escape, or all of --cost-escape, --cost-overkill and --prevalence.")


def _predictions(store: Store, cell: str) -> tuple[pa.Table, dict[str, object]]:
    """Return the predictions of the completed trial of a cell, and its row."""
    done = store.read("trials").filter(pc.field("status") == "completed").sort_by("started_at").to_pylist()
    known = dict.fromkeys(str(trial["cell_id"]) for trial in done)
    matching = [known_cell for known_cell in known if known_cell.startswith(cell)]
    if len(matching) > 1 or not cell:
        raise UsageError(f"'{cell}' begins the ids of {len(matching)} cells. Write more of it.")
    if not matching:
        raise UsageError(unknown("completed cell", cell, known) if known else "The store holds no completed cell.")
    trial = next(trial for trial in done if trial["cell_id"] == matching[0])
    rows = store.read("predictions", cell_ids=matching)
    return rows.filter(pc.field("attempt") == trial["attempt"]), trial


def _photographs(store: Store, dataset_id: str, images: set[int]) -> int | None:
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
