"""Choose the best row of a run and its best training, by the validation images only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from casting_tune.analysis.run_results import RunResults


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best row of a run and its best training; see `RunResults.best`.

    Attributes:
        row: the label of the row.
        cell_id: its best training.
        accuracy: the mean validation accuracy of the trainings of the row.
        n_rows: rows with a completed training.
        ties: one sentence per tie, of rows and of trainings, about how it was resolved.
    """

    row: str
    cell_id: str
    accuracy: float
    n_rows: int
    ties: tuple[str, ...]


def choose(run: RunResults) -> Best | None:
    """Return the best row and its best training, None without a completed training."""
    cells = run.cells.loc[run.cells["kind"] == "cell", ["row", "cell_id"]]
    done = cells.assign(
        accuracy=cells["cell_id"].map(run.trials["validation_accuracy"]).astype(float)
    ).dropna()
    if done.empty:
        return None
    means = done.groupby("row", sort=False)["accuracy"].mean()
    row, tied_rows = _first(run, means, done.set_index("cell_id")["row"], "row")
    own = done[done["row"] == row].set_index("cell_id")["accuracy"]
    cell, tied_trainings = _first(run, own, own.index.to_series(), "training of this row")
    return Best(
        row=row,
        cell_id=cell,
        accuracy=float(means[row]),
        n_rows=len(means),
        ties=(*tied_rows, *tied_trainings),
    )


def _first(
    run: RunResults, accuracy: pd.Series, names: pd.Series, noun: str
) -> tuple[str, tuple[str, ...]]:
    """Return the best name by accuracy, then cross-entropy, then order; and a sentence for a tie.

    Args:
        run: holds the predictions.
        accuracy: by name, in the order of the sweep.
        names: the name that each cell_id belongs to.
        noun: what a name is.
    """
    # the mean of the same values in another order may differ in the last digit
    rounded = accuracy.round(12)
    equal = rounded.index[rounded == rounded.max()]
    if len(equal) == 1:
        return str(equal[0]), ()
    loss = _validation_loss(run, names.index[names.isin(equal)])
    loss = loss.groupby(names).mean().reindex(equal).fillna(np.inf).round(12)
    lowest = loss.index[loss == loss.min()]
    n = len(equal) - 1
    reason = f"has the lowest validation cross-entropy ({loss.min():.4g})"
    if len(lowest) > 1:
        reason = (
            "comes first in the sweep, since their validation cross-entropies are equal or unknown"
        )
    plural = noun.replace(" ", "s ", 1) if " " in noun else f"{noun}s"
    others = f"1 other {noun} has" if n == 1 else f"{n} other {plural} have"
    return str(lowest[0]), (f"{others} the same validation accuracy; this one {reason}.",)


def _validation_loss(run: RunResults, cell_ids: pd.Index) -> pd.Series:
    """Return the mean binary cross-entropy in nats on the validation images, by cell_id."""
    columns = ["cell_id", "attempt", "split", "y_true", "score"]
    rows: pd.DataFrame = run.store.read(
        "predictions", columns=columns, cell_ids=cell_ids
    ).to_pandas()
    attempt = rows["cell_id"].map(run.trials["attempt"])
    rows = rows[(rows["split"] == "validation") & (rows["attempt"] == attempt)]
    score = rows["score"].astype(float)
    likelihood = score.where(rows["y_true"] == 1, 1 - score).clip(1e-7, 1)
    return -likelihood.transform(np.log).groupby(rows["cell_id"]).mean()
