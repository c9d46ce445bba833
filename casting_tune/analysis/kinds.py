"""Escapes of each kind of defect: the table of a run, and the worst kind of a row.

Input: the results of a run. Output: a Table, or KindRates. The folds of one seed are joined, so
that a seed decides every image once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from casting_tune.analysis import kind_rates, result_table, run_results
from casting_tune.analysis.kind_rates import KindRate
from casting_tune.analysis.result_table import Positive, Table

if TYPE_CHECKING:
    from casting_tune.analysis.run_results import RunResults
    from casting_tune.store.store import Store

THRESHOLD = 0.5
UNNAMED = "defect"
"""The kind of a defect if the store has neither its kind nor the name of its class."""

COLUMNS = ["row", "kind", "n", "escapes", "n_images", "n_groups", "escape_rate", "escape_upper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindEscapes:
    """The escapes of one kind of defect in a row.

    Attributes:
        worst: of the seed with the highest bound.
        escape_rate: mean over the seeds.
        n_groups: different photographs of the kind in the worst seed; None without an audit.
    """

    worst: KindRate
    escape_rate: float
    n_groups: int | None


def table(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Return the escapes of each row and kind of defect at threshold 0.5, the worst kind first.

    Columns: row; kind; n (seeds with predictions); escapes, n_images and n_groups (images and
    photographs of the kind) and escape_upper (exact one-sided 95 % bound, images as independent)
    of the seed with the highest bound; escape_rate, the mean over the seeds.

    Raises:
        UsageError: sweep or run not found in the store.
    """
    run = run_results.load(store, sweep, run_id)
    rows: list[dict[str, Any]] = []
    for row, cells in run.rows():
        n, escapes = of_row(run, cells)
        rows += [
            {
                "row": row,
                "kind": one.worst.kind,
                "n": n,
                "n_images": one.worst.n,
                "n_groups": one.n_groups,
                "escapes": one.worst.escapes,
                "escape_rate": one.escape_rate,
                "escape_upper": one.worst.upper,
            }
            for one in escapes
        ]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"n_groups": "Int64"})
    return Table(
        title=f"{sweep}: escapes by kind of defect, test images, threshold {THRESHOLD}",
        notes=(*result_table.notes(run, positive), *_notes(run, frame)),
        frame=frame,
        verdict=worst_sentence(run),
    )


def worst_sentence(run: RunResults) -> str:
    """Return the worst kind of the best row in one sentence, "" with fewer than two kinds."""
    if run.best is None:
        return ""
    n, escapes = of_row(run, dict(run.rows())[run.best.row])
    if len(escapes) < 2:
        return ""
    where = " in the worst training" if n > 1 else ""
    worst = escapes[0].worst.sentence().replace(" escaped", f" escaped{where}")
    return f"Worst kind: {worst}."


def of_row(run: RunResults, cells: pd.DataFrame) -> tuple[int, list[KindEscapes]]:
    """Return the number of seeds with predictions, and the escapes by kind, the worst kind first.

    A training with a score that is not finite does not count.
    """
    by_seed: dict[int, list[dict[str, NDArray[Any]]]] = {}
    for cell, seed in zip(cells["cell_id"], cells["seed"], strict=True):
        defects = _defects(run, str(cell)) if cell in run.trials.index else None
        if defects is not None:
            by_seed.setdefault(seed, []).append(defects)
    tested = [
        {name: np.concatenate([fold[name] for fold in folds]) for name in folds[0]}
        for folds in by_seed.values()
    ]
    kinds = sorted({str(kind) for seed in tested for kind in seed["kind"]})
    escapes = [_escapes(run, kind, tested) for kind in kinds]
    escapes.sort(key=lambda one: (-one.escape_rate, -one.worst.upper, one.worst.kind))
    return len(tested), escapes


def _escapes(run: RunResults, kind: str, tested: list[dict[str, NDArray[Any]]]) -> KindEscapes:
    """Return the escapes of a kind over seeds, of which at least one has an image of it."""
    of_kind = [seed["kind"] == kind for seed in tested]
    seeds = [
        (
            kind_rates.rate(kind, escapes=int(seed["passed"][mine].sum()), n=int(mine.sum())),
            seed["image"][mine],
        )
        for seed, mine in zip(tested, of_kind, strict=True)
        if mine.any()
    ]
    worst, images = max(seeds, key=lambda seed: seed[0].upper)
    return KindEscapes(
        worst=worst,
        escape_rate=float(np.mean([one.escapes / one.n for one, _ in seeds])),
        n_groups=None if run.photo_groups is None else len(np.unique(run.groups(images))),
    )


def _defects(run: RunResults, cell: str) -> dict[str, NDArray[Any]] | None:
    """Return image, kind and "passed" of the test defects of a cell; None without valid scores."""
    tested = run.tested(cell)
    if not len(tested["score"]) or not np.isfinite(tested["score"]).all():
        return None
    defective = tested["y_true"] == 1
    kinds, known = run.kinds(cell), run.trials.loc[cell, "positive"]
    unnamed = known if isinstance(known, str) else UNNAMED
    return {
        "image": tested["image"][defective],
        "kind": np.array([kind or unnamed for kind in kinds[defective]], np.str_),
        "passed": tested["score"][defective] < np.float32(THRESHOLD),
    }


def _notes(run: RunResults, frame: pd.DataFrame) -> list[str]:
    """Return what the figures mean, and whether kinds or photographs are unknown."""
    if frame.empty:
        return ["No completed training has defective test images."]
    notes = []
    if run.predictions["kind"].isna().any():
        notes.append(
            "Predictions without stored kinds: their defects count as one kind, "
            "the class of the defects."
        )
    elif frame["kind"].nunique() == 1:
        notes.append(f"This dataset has one kind of defect: {frame['kind'].iloc[0]}.")
    order = "Worst kind first. " if frame["kind"].nunique() > 1 else ""
    bound = "the exact one-sided 95 % upper bound"
    if frame["n"].max() > 1:
        notes.append(
            f"{order}esc % is the mean over the trainings. "
            f"esc <= is {bound}: the highest of the trainings, with its escaped and images."
        )
    else:
        notes.append(f"{order}esc <= is {bound}.")
    if run.cells["fold"].nunique() > 1:
        notes.append("The folds of one seed are joined and count as one training.")
    notes.append(
        "Bounds count every image as a different casting, but some show the same: see photographs."
        if (frame["n_groups"] < frame["n_images"]).any()
        else "Bounds are valid only if every image shows a different casting."
    )
    return notes
