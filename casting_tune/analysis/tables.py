"""The tables of results.

Input: the results of a run, and the positive class. Output: a Table: a frame of plain values with
its notes. `report.render` makes the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from casting_tune import metrics
from casting_tune.analysis import (
    class_view,
    count_metrics,
    decisions,
    effects,
    group_sums,
    kinds,
    result_table,
    row_bounds,
    run_results,
    timings,
    verdict,
)
from casting_tune.analysis.count_metrics import COUNTED, SHOWN
from casting_tune.analysis.decisions import Comparable, CountTuple
from casting_tune.analysis.result_table import Positive, Table
from casting_tune.analysis.run_results import RunResults
from casting_tune.metrics import Counts
from casting_tune.models.registry import BACKBONES
from casting_tune.store.store import Store

READ = (
    *(f"test_{name}" for name in COUNTED),
    "validation_accuracy",
    "epoch_s",
)
"""The columns of trials that a row of the comparison reads."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


def comparison(
    store: Store, sweep: str, *, run_id: str | None = None, positive: str = "defective"
) -> Table:
    """Compare the rows of a sweep on the test images at threshold 0.5, then the baselines.

    Columns: row; named (whether the label is a name and not made of settings); backbone,
    augmentation, batch, px, weights; n (trainings); accuracy (mean over trainings), its sd, its
    interval low..high (`bootstrap.row_intervals`: over seeds and groups of copies), letters
    (`paired_tests.all_pairs`: rows with the same letter do not differ significantly); the other
    metrics of SHOWN; escape_upper, the one-sided 95 % bound of the seed with the most escapes
    (`bootstrap.rate_bounds`), and escape_basis, the number of photographs or images behind it;
    clean and leaked accuracy (`RunResults.columns`); validation_accuracy and best
    (`RunResults.best`); epoch_s; study_accuracy, study_recall, study_f1.

    Args:
        store: the results.
        sweep: name of the sweep.
        run_id: the run; None: the last run of the sweep.
        positive: "defective", "ok", or the name of a class or kind; see `class_view.view`.

    Raises:
        UsageError: sweep, run or class not found in the store.

    Example:
        >>> from casting_tune import Store, tables
        >>> table = tables.comparison(Store("results"), "tiny")
        >>> int(table.frame["n"].max())  # trainings of a row
        2
    """
    run, view = class_view.view(run_results.load(store, sweep, run_id), positive)
    labelled = [
        (kind, row, cells) for kind in ("cell", "baseline") for row, cells in run.rows(kind)
    ]
    leaked = decisions.count(run, [0.5])[0] if run.n_leaked[0] else {}
    frame = pd.DataFrame(
        [_row(run, kind, row, cells, view, leaked) for kind, row, cells in labelled]
    )
    sets, lost = decisions.comparable(run, [cells for _, _, cells in labelled])
    frame["low"], frame["high"], frame["letters"] = row_bounds.intervals(len(frame), sets)
    frame["escape_upper"], frame["escape_basis"] = row_bounds.escapes(
        len(frame), sets, noun=_noun(run)
    )
    best = run.best
    frame["best"] = (frame["kind"] == "cell") & (frame["row"] == (best.row if best else None))
    return Table(
        title=f"{sweep}: test images, threshold 0.5",
        notes=(*result_table.notes(run, view), *_test_notes(run, frame, sets), *lost),
        frame=frame,
        verdict=verdict.sentence(run, frame),
    )


def thresholds(
    store: Store, sweep: str, *, run_id: str | None = None, positive: str = "defective"
) -> Table:
    """Return mean and sd over the trainings of each row at five thresholds.

    Thresholds are on P(positive class): with `ok` a casting passes if P(good class) is above the
    threshold, as in the study.
    """
    run, view = class_view.view(run_results.load(store, sweep, run_id), positive)
    counted = dict(
        zip(
            THRESHOLDS,
            decisions.count(run, [_on_defect(t, view) for t in THRESHOLDS]),
            strict=True,
        )
    )
    rows = []
    for row, cells in run.rows():
        figures, finished = cells["figures"].iloc[0], _finished(run, cells)
        for threshold in THRESHOLDS:
            each = _at(counted[threshold], finished, view)
            rows.append(
                {"row": row, "threshold": threshold, "n": len(each), **_mean_sd(each)}
                | _published(figures, threshold)
            )
    return Table(
        title=f"{sweep}: test images at five thresholds on "
        f"P({class_view.of_run(run).negative if view == 'ok' else 'defective'})",
        notes=result_table.notes(run, view),
        frame=pd.DataFrame(rows),
    )


def trainings(
    store: Store, sweep: str, *, run_id: str | None = None, positive: str = "defective"
) -> Table:
    """Return each training at each of five thresholds, with the figures of the study's training."""
    run, view = class_view.view(run_results.load(store, sweep, run_id), positive)
    counted = dict(
        zip(
            THRESHOLDS,
            decisions.count(run, [_on_defect(t, view) for t in THRESHOLDS]),
            strict=True,
        )
    )
    rows = []
    for row, cells in run.rows():
        finished = _finished(run, cells)
        for threshold in THRESHOLDS:
            each = zip(finished["seed"], finished["fold"], finished["figures"], strict=True)
            for (seed, fold, study), measured in zip(
                each, _at(counted[threshold], finished, view), strict=True
            ):
                figures = {
                    f"study_{name}": study.get(f"{name}@{threshold}")
                    for name in ("accuracy", "recall", "f1")
                }
                rows.append(
                    {"row": row, "threshold": threshold, "seed": seed, "fold": fold, **measured}
                    | figures
                )
    return Table(
        title=f"{sweep}: every training",
        notes=result_table.notes(run, view),
        frame=pd.DataFrame(rows),
    )


TABLES: dict[str, Callable[..., Table]] = {
    "comparison": comparison,
    "pairs": effects.all_pairs,
    "effects": effects.effects,
    "timing": timings.timing,
    "thresholds": thresholds,
    "trainings": trainings,
    "kinds": kinds.table,
}

VIEWED = ("comparison", "thresholds", "trainings")
"""The tables that depend on the positive class."""


def _row(
    run: RunResults,
    kind: str,
    row: str,
    cells: pd.DataFrame,
    positive: Positive,
    leaks: dict[str, tuple[CountTuple, CountTuple]],
) -> dict[str, Any]:
    first, done = cells.iloc[0], run.numbers(cells, READ)
    counted = count_metrics.from_columns(done[:, :4])
    of_leaked = [Counts(*leaks[cell][1]) for cell in cells["cell_id"] if cell in leaks]
    measured = [count_metrics.shown(counts, positive) for counts in counted]
    shown = {
        name: _known(np.array([values[name] for values in measured], np.float64)) for name in SHOWN
    }
    validation, epoch_s = _known(done[:, 4]), _known(done[:, 5])
    leaked = count_metrics.total(of_leaked)
    whole = count_metrics.total(counted)
    clean = count_metrics.minus(whole, leaked)
    return {
        "kind": kind,
        "row": row,
        "named": kind == "cell" and not row.startswith(first["backbone"]),
        **(_settings(first) if kind == "cell" else {"backbone": row}),
        "n": len(done),
        "accuracy": _mean(shown["accuracy"]),
        "accuracy_sd": shown["accuracy"].std(ddof=1) if len(shown["accuracy"]) > 1 else np.nan,
        "low": np.nan,
        "high": np.nan,
        "letters": "",
        **{name: _mean(shown[name]) for name in SHOWN if name != "accuracy"},
        "escape_upper": np.nan,
        "escape_basis": None,
        "clean_accuracy": metrics.METRICS["accuracy"](clean),
        "leaked_accuracy": metrics.METRICS["accuracy"](leaked),
        "n_leaked": round(sum(count_metrics.values(leaked)) / len(done)) if len(done) else 0,
        "validation_accuracy": _mean(validation),
        "epoch_s": float(np.median(epoch_s)) if len(epoch_s) else np.nan,
        **{
            f"study_{name}": first["figures"].get(name)
            for name in ("accuracy", "recall", "f1", "epoch_s")
        },
    }


def _settings(cell: pd.Series) -> dict[str, Any]:
    backbone = BACKBONES.get(cell["backbone"])
    return {
        "backbone": backbone.study_name if backbone else cell["backbone"],
        "augmentation": cell["augmentation"],
        "batch": cell["batch_size"],
        "px": cell["image_px"],
        "weights": cell["weights"],
    }


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.nan


def _noun(run: RunResults) -> str:
    return "photographs" if run.photo_groups is not None else "different images"


def _finished(run: RunResults, cells: pd.DataFrame) -> pd.DataFrame:
    return cells[[cell in run.trials.index for cell in cells["cell_id"]]]


def _at(
    counted: dict[str, tuple[CountTuple, CountTuple]], cells: pd.DataFrame, positive: Positive
) -> list[dict[str, float | None]]:
    """Return the metrics of each training of some cells, given its counts at a threshold."""
    measured: list[dict[str, float | None]] = []
    for cell in cells["cell_id"]:
        if cell not in counted:
            measured.append(dict.fromkeys((*SHOWN, "clean_accuracy", "leaked_accuracy")))
            continue
        whole, leaked = (Counts(*counts) for counts in counted[cell])
        accuracy = metrics.METRICS["accuracy"]
        sides = {
            "clean_accuracy": accuracy(count_metrics.minus(whole, leaked)),
            "leaked_accuracy": accuracy(leaked),
        }
        measured.append(count_metrics.shown(whole, positive) | sides)
    return measured


def _on_defect(threshold: float, positive: Positive) -> float:
    """Return a threshold on P(positive class) as a threshold on P(defective)."""
    return threshold if positive == "defective" else 1 - threshold


def _mean_sd(each: list[dict[str, float | None]]) -> dict[str, float]:
    """Return mean and sd over the trainings with known values."""
    columns: dict[str, float] = {}
    for name in (*SHOWN, "clean_accuracy", "leaked_accuracy"):
        values = np.array([value for measured in each if (value := measured[name]) is not None])
        columns[name] = float(values.mean()) if len(values) else np.nan
        if name in SHOWN:
            columns[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return columns


def _published(figures: dict[str, float], threshold: float) -> dict[str, float | None]:
    return {
        f"study_{column}": figures.get(f"{kind}_{name}@{threshold}")
        for name in ("accuracy", "recall", "f1")
        for kind, column in (("mean", name), ("sd", f"{name}_sd"))
    }


def _test_notes(run: RunResults, frame: pd.DataFrame, sets: list[Comparable]) -> tuple[str, ...]:
    """Return notes about what the figures can and cannot show."""
    notes = []
    noun = _noun(run)
    sizes = [group_sums.group(rows.groups)[1] for rows in sets]
    for few in filter(group_sums.has_too_few, sizes[:1]):
        notes.append(group_sums.refusal(few, noun))
    if any(len(rows.indices) > 1 for rows in sets) and not notes:
        counts = " and ".join(f"{one.size}" for one in sizes[:2])
        notes.append(
            "Rows with the same letter do not differ significantly "
            f"(5 %, Holm-corrected, {counts} {noun})."
        )
    if len(sets) > 1:
        notes.append(
            "Rows with capital letters were tested on other images than rows with small letters: "
            "compare only within a set."
        )
    if frame["escape_upper"].notna().any():
        seeds = " of the seed with the most escapes" if frame["n"].max() > 1 else ""
        notes.append(f"esc <=: 95 % upper bound of the escape rate{seeds}, for new castings.")
    if frame["n"].max() == 1:
        notes.append(verdict.ONE_SEED)
    n_leaked, n_copies = run.n_leaked
    if n_leaked > n_copies:
        notes.append(
            f"{n_leaked} test images show a photograph that is also in training ({n_copies} byte "
            "for byte): see clean and leaked."
        )
    elif n_leaked:
        notes.append(
            f"{n_leaked} test images are byte-identical to training images: see clean and leaked."
        )
    if run.best is not None:
        notes.append(" ".join((f"* is the best on validation: {run.best.row}.", *run.best.ties)))
    return tuple(notes)
