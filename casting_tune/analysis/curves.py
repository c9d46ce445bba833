"""The data of figures: curves, points and lists as data frames.

Input: RunResults, and the cells of one row. Output: frames of shares in 0..1, seconds and
counts. The defect is the positive class. Intervals and tests are in `tables`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune import metrics
from casting_tune.analysis import run_results
from casting_tune.analysis.run_results import RunResults
from casting_tune.config import RESOLVED
from casting_tune.store import schema
from casting_tune.toggles import TOGGLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTED = ("tp", "fn", "fp", "tn")

_LAST = ("augmentation", "seed", "fold")
SETTINGS = (
    *(name for name in schema.SETTINGS if name not in (*_LAST, *RESOLVED, *TOGGLES)),
    *_LAST,
)
"""What a sweep can vary; seed and fold are last, because they are random and not a choice."""

MEASURED = ("validation_accuracy", "test_accuracy", "test_escape_rate", "test_overkill_rate")


def best_row(run: RunResults) -> tuple[str, pd.DataFrame, str] | None:
    """Return the best row on validation, its cells and the id of its best training.

    The choice is that of `RunResults.best`.
    """
    best = run.best
    return None if best is None else (best.row, dict(run.rows())[best.row], best.cell_id)


def over_thresholds(run: RunResults, cells: pd.DataFrame) -> pd.DataFrame:
    """Return escape and overkill of a row at many thresholds: mean, minimum and maximum.

    Over its trainings. Columns: threshold; escape_rate, escape_low, escape_high; overkill_rate,
    overkill_low, overkill_high; n.
    """
    tested = [(y, score) for _, y, score in _tested(run, cells)]
    if not tested:
        return pd.DataFrame()
    scores = np.concatenate([score for _, score in tested])
    at = np.unique(
        np.concatenate([np.linspace(0, 1, 101), np.quantile(scores, np.linspace(0, 1, 101))]).round(
            6
        )
    )
    counted = [[metrics.counts(y, score, threshold=t) for y, score in tested] for t in at.tolist()]
    columns: dict[str, NDArray[np.float64]] = {"threshold": at}
    for name in ("escape", "overkill"):
        rate = metrics.METRICS[f"{name}_rate"]
        values = np.array(
            [[rate(counts) for counts in row] for row in counted], dtype=np.float64
        )  # [thresholds, n]
        columns |= {
            f"{name}_rate": values.mean(1),
            f"{name}_low": values.min(1),
            f"{name}_high": values.max(1),
        }
    return pd.DataFrame({**columns, "n": len(tested)})


def roc(run: RunResults, rows: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return the ROC curve of every training: row, training, overkill_rate, recall.

    Points on a straight line between others are left out (scikit-learn's `drop_intermediate`).
    """
    from sklearn.metrics import roc_curve

    parts = []
    for row, cells in rows:
        for training, y, score in _tested(run, cells):
            overkill, recall, _ = roc_curve(y, score)
            parts.append(
                pd.DataFrame(
                    {"row": row, "training": training, "overkill_rate": overkill, "recall": recall}
                )
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def precision_recall(run: RunResults, rows: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return the precision-recall curve of every training: row, training, recall, precision."""
    from sklearn.metrics import precision_recall_curve

    parts = []
    for row, cells in rows:
        for training, y, score in _tested(run, cells):
            precision, recall, _ = precision_recall_curve(y, score, drop_intermediate=True)
            parts.append(
                pd.DataFrame(
                    {"row": row, "training": training, "recall": recall, "precision": precision}
                )
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def calibration(run: RunResults, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the calibration of the scores: one row per tenth of the scale that has images.

    Over all trainings of a row. Columns: from, to; score (the mean), defective (the share), n
    (images times trainings).
    """
    tested = [(y, score) for _, y, score in _tested(run, cells)]
    if not tested:
        return pd.DataFrame()
    y, score = (np.concatenate(side).astype(np.float64) for side in zip(*tested, strict=True))
    tenth = np.minimum((score * 10).astype(int), 9)
    rows = [
        {
            "from": k / 10,
            "to": (k + 1) / 10,
            "score": score[tenth == k].mean(),
            "defective": y[tenth == k].mean(),
            "n": int((tenth == k).sum()),
        }
        for k in range(10)
        if (tenth == k).any()
    ]
    return pd.DataFrame(rows)


def confusions(run: RunResults, rows: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return the counts on the test images at threshold 0.5, over all trainings of each row."""
    counted = []
    for row, cells in rows:
        done = run.completed(cells)
        if len(done):
            sums = {name: int(done[f"test_{name}"].fillna(0).sum()) for name in COUNTED}
            counted.append({"row": row, "n": len(done), **sums})
    return pd.DataFrame(counted, columns=["row", "n", *COUNTED])


def mistakes(run: RunResults, cells: pd.DataFrame, *, threshold: float) -> pd.DataFrame:
    """Return the test images that a row's trainings misclassify, those with the worst scores first.

    Columns: image, path, y_true, kind, score (mean over trainings), n_wrong of n trainings, leaked.
    """
    done = run.completed(cells)
    columns = ["cell_id", "attempt", "split", "image", "path", "y_true", "score", "leaked", "kind"]
    rows: pd.DataFrame = run.store.read(
        "predictions", columns=columns, cell_ids=done.index
    ).to_pandas()
    rows = rows[
        (rows["split"] == "test") & (rows["attempt"] == rows["cell_id"].map(done["attempt"]))
    ]
    rejected = rows["score"].to_numpy(np.float32) >= np.float32(threshold)
    rows = rows.assign(
        wrong=rejected != (rows["y_true"] == 1).to_numpy(bool),
        off=(rows["score"] - rows["y_true"]).abs(),
    )
    images = rows.groupby("image", as_index=False).agg(
        path=("path", "first"),
        y_true=("y_true", "first"),
        kind=("kind", "first"),
        score=("score", "mean"),
        n_wrong=("wrong", "sum"),
        n=("wrong", "size"),
        leaked=("leaked", "first"),
        off=("off", "mean"),
    )
    wrong = images[images["n_wrong"] > 0].sort_values(
        ["off", "image"], ascending=[False, True], kind="stable"
    )
    return wrong.drop(columns="off").reset_index(drop=True)


def epochs(run: RunResults, rows: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return every epoch of the trainings of some rows, including running ones."""
    parts = []
    columns = [
        "cell_id",
        "attempt",
        "epoch",
        "train_loss",
        "validation_loss",
        "validation_accuracy",
        "train_s",
    ]
    read: pd.DataFrame = run.store.read(
        "epochs", columns=columns, cell_ids=[cell for _, cells in rows for cell in cells["cell_id"]]
    ).to_pandas()
    read = read.sort_values(["epoch", "attempt"]).drop_duplicates(["cell_id", "epoch"], keep="last")
    for row, cells in rows:
        for cell in run_results.records(cells):
            of_cell = read[read["cell_id"] == cell["cell_id"]].drop(columns=["cell_id", "attempt"])
            of_cell.insert(0, "training", _training(cell))
            of_cell.insert(0, "row", row)
            parts.append(of_cell)
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return whole if len(whole) else pd.DataFrame()


def pareto(run: RunResults, frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and latency of each row, and whether it is on the Pareto front.

    Columns: row, accuracy, low, high, latency_one_s, alone, front. The latency is the median of the
    timing passes of the row, which had the device alone; if there are none, that of its trainings,
    during which others may have run.
    """
    passes = run.trials.loc[
        run.trials.index.isin(run.cells.loc[run.cells["kind"] == "timing", "cell_id"])
    ]
    settings = ["backbone", "image_px"]
    alone = (
        passes.groupby(settings)["latency_one_s"].median()
        if len(passes)
        else pd.Series(dtype=float)
    )
    points = []
    cells_of = dict(run.rows())
    for _, row in frame[(frame["kind"] == "cell") & (frame["n"] > 0)].iterrows():
        done = run.completed(cells_of[row["row"]])
        key = tuple(done.iloc[0][settings])
        timed = (
            float(alone[key])
            if key in alone.index
            else float(done["latency_one_s"].astype(float).median())
        )
        by_itself = key in alone.index or bool((done["n_at_once"] == 1).all())
        if np.isfinite(timed):
            shown = {name: row[name] for name in ("row", "accuracy", "low", "high")}
            points.append({**shown, "latency_one_s": timed, "alone": by_itself})
    marks = pd.DataFrame(
        points, columns=["row", "accuracy", "low", "high", "latency_one_s", "alone"]
    )
    accuracy, seconds = marks["accuracy"].to_numpy(float), marks["latency_one_s"].to_numpy(float)
    better = (accuracy[:, None] >= accuracy) & (seconds[:, None] <= seconds)
    strictly = (accuracy[:, None] > accuracy) | (seconds[:, None] < seconds)
    return marks.assign(front=np.logical_not((better & strictly).any(axis=0)).tolist())


def settings(run: RunResults) -> pd.DataFrame:
    """Return the settings that differ between completed trainings, and their results.

    Columns: those of SETTINGS and of the toggles that differ, then MEASURED.
    """
    done = run.completed(run.cells[run.cells["kind"] == "cell"])
    toggles = [name for name in TOGGLES if done[name].nunique() > 1]
    named = [name for name in SETTINGS if name != "augmentation" or len(toggles) < 2]
    varied = [name for name in named if name in done and done[name].nunique() > 1]
    at = varied.index("seed") if "seed" in varied else len(varied)
    if len(toggles) > 1:
        varied[at:at] = toggles
    return done[[*varied, *MEASURED]].reset_index(drop=True)


def _tested(
    run: RunResults, cells: pd.DataFrame
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield name, y_true and score of each completed training with both classes in test."""
    for cell in run_results.records(cells):
        tested = run.predictions[run.predictions["cell_id"] == cell["cell_id"]]
        y, score = tested["y_true"].to_numpy(np.uint8), tested["score"].to_numpy(np.float32)
        if len(y) and 0 < y.sum() < len(y) and np.isfinite(score).all():
            yield _training(cell), y, score


def _training(cell: dict[str, Any]) -> str:
    return f"seed {cell['seed']}, fold {cell['fold']}" if cell["fold"] else f"seed {cell['seed']}"
