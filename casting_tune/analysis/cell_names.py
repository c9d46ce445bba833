"""From what a person calls a cell to its id: an id, "best", or a part of a label.

Input: a store and a name, perhaps a sweep and a run. Output: the id of one cell. Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from casting_tune.analysis import run_results
from casting_tune.errors import UsageError, unknown
from casting_tune.store.store import Store

MAX_LISTED = 20
"""Most cells below the error of an ambiguous name."""

_LEAST_OF_ID = 4  # fewer characters of an id are a part of a label, if any label has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where a name is looked up: a run of a sweep, or the last run of every sweep.

    `completed` leaves out cells without a completed training.
    """

    sweep: str | None = None
    run_id: str | None = None
    completed: bool = False


EVERYWHERE = Scope()
COMPLETED = Scope(completed=True)


def find(store: Store, name: str, scope: Scope = EVERYWHERE) -> str:
    """Return the id of the one cell with this name.

    A name is an id or its first characters; the label of a cell or of its row; or a part of a label
    without regard to case, where commas separate parts that may stand in any order.

    Raises:
        UsageError: no cell or several cells match; the error lists them.
    """
    known = _labels(store, scope)
    if known.empty:
        raise UsageError(_nothing(store, scope))
    matching = _matching(known, name)
    if len(matching) == 1:
        return str(matching.index[0])
    state = "completed cell" if scope.completed else "cell"
    if matching.empty:
        near = unknown(state, name, [*known["label"], *known.index])
        hint = "casting-tune list SWEEP --cells shows the cells."
        raise UsageError(near if "Did you mean" in near else f"Unknown {state} '{name}'. {hint}")
    n_more = len(matching) - MAX_LISTED
    raise UsageError(
        f"'{name}' matches {len(matching)} cells. Give an id, or a longer part of a label.",
        details=(
            *(f"{cell}  {label}" for cell, label in matching["label"].head(MAX_LISTED).items()),
            *((f"and {n_more} more",) if n_more > 0 else ()),
        ),
    )


def only_sweep(store: Store) -> str:
    """Return the sweep of a store that holds one.

    Raises:
        UsageError: the store holds no sweep or several.
    """
    sweeps = sorted(set(store.read("cells", columns=["sweep"])[0].to_pylist()))
    if len(sweeps) == 1:
        return str(sweeps[0])
    if not sweeps:
        raise UsageError(_nothing(store, EVERYWHERE))
    raise UsageError(
        f"'best' of which sweep? Give it: best --sweep NAME. This store has {', '.join(sweeps)}."
    )


def _nothing(store: Store, scope: Scope) -> str:
    if scope.completed:
        return f"The store '{store.address}' has no completed cell."
    return f"No cells in '{store.address}'. Set another store with --results."


def _labels(store: Store, scope: Scope) -> pd.DataFrame:
    """Return the columns label and row of every cell, indexed by cell_id."""
    completed = store.completed() if scope.completed else None
    if scope.sweep is not None:
        cells = run_results.load(store, scope.sweep, scope.run_id).cells
    else:
        columns = ["cell_id", "sweep", "run_id", "asked_at", "row", "label"]
        every: pd.DataFrame = store.read("cells", columns=columns).to_pandas()
        # a cell of a deleted run file, or of an older store, is known by its trials alone
        trials: pd.DataFrame = store.read("trials", columns=["cell_id", "label"]).to_pandas()
        cells = pd.concat([trials.assign(row=trials["label"]), every.sort_values("asked_at")])
    cells = cells.drop_duplicates("cell_id", keep="last").set_index("cell_id")[["row", "label"]]
    return cells if completed is None else cells[cells.index.isin(completed)]


def _matching(known: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the cells of the first rule that matches any."""
    if name in known.index:
        return known.loc[[name]]
    lower = name.strip().lower()
    label, row = known["label"].str.lower(), known["row"].str.lower()
    of_id = known.index.str.startswith(lower) & (len(lower) >= _LEAST_OF_ID)
    parts = {part.strip() for part in lower.split(",")}
    has_parts = label.map(lambda text: parts <= {part.strip() for part in text.split(",")})
    contains = label.str.contains(lower, regex=False)
    for rule in (label == lower, of_id, row == lower, has_parts, contains):
        if rule.any():
            return known[rule]
    return known[known.index.str.startswith(lower) & bool(lower)]
