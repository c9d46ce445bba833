"""Named questions over a store, answered as data frames.

Comes in: the answers of a run, and which class is the positive one. Goes out: a Table: a frame of plain values with
the sentences that a reader needs beside it. Trains nothing, reads no images, and lays out no text (render does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from casting_tune import answers, contrasts, metrics, pairs, stats, timings
from casting_tune.answers import Answers, Compared, Positive, Table
from casting_tune.backbones import BACKBONES
from casting_tune.metrics import Counts
from casting_tune.store import Store

COUNTED = ("tp", "fp", "tn", "fn")
SHOWN = ("accuracy", "recall", "precision", "f1", "escape_rate", "overkill_rate")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


def comparison(store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective") -> Table:
    """Compare the rows of a sweep on the test images at threshold 0.5, the baselines below them.

    Columns: row; named (the row has a name of its own, not one made of its settings); backbone, augmentation, batch,
    px, weights; n (trainings); accuracy (mean over trainings), its sd, its interval low..high
    (`pairs.bootstrap_interval`: over seeds and groups of copies), letters (`pairs.all_pairs`: rows that share one
    cannot be told apart); recall to overkill_rate; escape_upper, the exact one-sided 95 % bound of the training that
    let most defects pass; wilson_low and wilson_high of the mean accuracy over the images; clean and leaked accuracy
    (without and with a byte-identical copy in train); validation_accuracy and best (the best row on validation);
    epoch_s; study_accuracy, study_recall, study_f1.

    Raises:
        UsageError: the store holds no run of the sweep, or not that run.
    """
    found = answers.load(store, sweep, run_id)
    labelled = [(kind, row, cells) for kind in ("cell", "baseline") for row, cells in found.rows(kind)]
    frame = pd.DataFrame([_row(found, kind, row, cells, positive) for kind, row, cells in labelled])
    compared, lost = found.compared([cells for _, _, cells in labelled])
    frame["low"], frame["high"], frame["letters"] = _intervals(frame, compared)
    best = frame.loc[frame["kind"] == "cell", "validation_accuracy"].astype(float)
    frame["best"] = frame.index == (best.idxmax() if best.notna().any() else -1)
    return Table(
        title=f"{sweep}: test images, threshold 0.5",
        notes=(*answers.notes(found, positive), *_test_notes(found, frame, compared), *lost),
        frame=frame,
    )


def thresholds(store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective") -> Table:
    """Mean and sd over trainings of each row at five thresholds, from one set of predictions, the study's beside.

    A threshold is one on P(positive class): for `ok` a casting passes when P(ok_front) is above it, as in the study.
    """
    found = answers.load(store, sweep, run_id)
    rows = []
    for row, cells in found.rows():
        figures = cells["figures"].iloc[0]
        for threshold in THRESHOLDS:
            each = pd.DataFrame(_at(found, cells, threshold, positive)).astype(float)
            rows.append(
                {"row": row, "threshold": threshold, "n": len(each), **_mean_sd(each)} | _published(figures, threshold)
            )
    return Table(
        title=f"{sweep}: test images at five thresholds on P({'ok_front' if positive == 'ok' else 'defective'})",
        notes=answers.notes(found, positive),
        frame=pd.DataFrame(rows),
    )


def trainings(store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective") -> Table:
    """Each training at each of five thresholds, the study's training of that number beside."""
    found = answers.load(store, sweep, run_id)
    rows = []
    for row, cells in found.rows():
        for threshold in THRESHOLDS:
            for (_, cell), measured in zip(
                _finished(found, cells), _at(found, cells, threshold, positive), strict=True
            ):
                figures = {
                    f"study_{name}": cell["figures"].get(f"{name}@{threshold}") for name in ("accuracy", "recall", "f1")
                }
                rows.append(
                    {"row": row, "threshold": threshold, "seed": cell["seed"], "fold": cell["fold"], **measured}
                    | figures
                )
    return Table(title=f"{sweep}: every training", notes=answers.notes(found, positive), frame=pd.DataFrame(rows))


TABLES: dict[str, Callable[..., Table]] = {
    "comparison": comparison,
    "pairs": contrasts.all_pairs,
    "effects": contrasts.effects,
    "timing": timings.timing,
    "thresholds": thresholds,
    "trainings": trainings,
}


def _row(found: Answers, kind: str, row: str, cells: pd.DataFrame, positive: Positive) -> dict[str, Any]:
    first, done = cells.iloc[0], found.completed(cells)
    counted = [_counts(trial, "test") for _, trial in done.iterrows()]
    measured = pd.DataFrame([_metrics(counts, positive) for counts in counted], columns=list(SHOWN)).astype(float)
    leaked = _sum([_counts(trial, "test_leaked") for _, trial in done.iterrows()])
    clean = _minus(_sum(counted), leaked)
    n_images = sum(sum(vars_of(counts)) for counts in counted)
    low, high = (
        stats.wilson(round(_right(counted) / len(done)), round(n_images / len(done))) if counted else (None, None)
    )
    return {
        "kind": kind,
        "row": row,
        "named": kind == "cell" and not row.startswith(first["backbone"]),
        **(_settings(first) if kind == "cell" else {"backbone": row}),
        "n": len(done),
        "accuracy": measured["accuracy"].mean(),
        "accuracy_sd": measured["accuracy"].std(ddof=1) if len(done) > 1 else np.nan,
        "low": np.nan,
        "high": np.nan,
        "letters": "",
        **{name: measured[name].mean() for name in SHOWN[1:]},
        "escape_upper": max((stats.upper_bound(c.fn, c.tp + c.fn) for c in counted if c.tp + c.fn), default=np.nan),
        "wilson_low": low,
        "wilson_high": high,
        "clean_accuracy": metrics.METRICS["accuracy"](clean),
        "leaked_accuracy": metrics.METRICS["accuracy"](leaked),
        "n_leaked": round(sum(vars_of(leaked)) / len(done)) if len(done) else 0,
        "validation_accuracy": done["validation_accuracy"].mean() if len(done) else np.nan,
        "epoch_s": done["epoch_s"].median() if len(done) else np.nan,
        **{f"study_{name}": first["figures"].get(name) for name in ("accuracy", "recall", "f1", "epoch_s")},
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


def vars_of(counts: Counts) -> tuple[int, int, int, int]:
    """Return (tp, fp, tn, fn)."""
    return counts.tp, counts.fp, counts.tn, counts.fn


def _counts(trial: pd.Series, prefix: str) -> Counts:
    values = [trial[f"{prefix}_{name}"] for name in COUNTED]
    return Counts(*(0 if pd.isna(value) else int(value) for value in values))


def _sum(counted: list[Counts]) -> Counts:
    return (
        Counts(*(int(n) for n in np.sum([vars_of(counts) for counts in counted], axis=0)))
        if counted
        else Counts(0, 0, 0, 0)
    )


def _minus(whole: Counts, part: Counts) -> Counts:
    return Counts(*(a - b for a, b in zip(vars_of(whole), vars_of(part), strict=True)))


def _right(counted: list[Counts]) -> int:
    return sum(counts.tp + counts.tn for counts in counted)


def _metrics(counts: Counts, positive: Positive) -> dict[str, float | None]:
    """Work the shown metrics out from counts, so that both views come from the same decisions."""
    viewed = counts if positive == "defective" else counts.swapped()
    return {name: metrics.METRICS[name](counts if name in metrics.OF_THE_DEFECT else viewed) for name in SHOWN}


def _intervals(frame: pd.DataFrame, compared: list[Compared]) -> tuple[list[float], list[float], list[str]]:
    """Return each row's interval, and its letters among rows on the same images: a.. in the first set, A.. next."""
    low, high, letters = [np.nan] * len(frame), [np.nan] * len(frame), [""] * len(frame)
    for position, alike in enumerate(compared):
        for i, right in zip(alike.indices, alike.right, strict=True):
            low[i], high[i] = pairs.bootstrap_interval(right, alike.groups)
        if len(alike.indices) > 1 and position < 2:
            found = pairs.all_pairs(alike.right, alike.groups).letters
            for i, letter in zip(alike.indices, found, strict=True):
                letters[i] = letter.upper() if position else letter
    return low, high, letters


def _finished(found: Answers, cells: pd.DataFrame) -> list[Any]:
    return [(i, cell) for i, cell in cells.iterrows() if cell["cell_id"] in found.trials.index]


def _at(found: Answers, cells: pd.DataFrame, threshold: float, positive: Positive) -> list[dict[str, float | None]]:
    """Measure each completed training of a row at a threshold on P(positive class)."""
    measured = []
    for _, cell in _finished(found, cells):
        tested = found.predictions[found.predictions["cell_id"] == cell["cell_id"]]
        on_defect = threshold if positive == "defective" else 1 - threshold
        values = metrics.measure(
            tested["y_true"].to_numpy(), tested["score"].to_numpy(), threshold=on_defect, positive=positive
        )
        shown = {name: values[name] for name in SHOWN}
        leaked = tested["leaked"].fillna(value=False).to_numpy(dtype=bool)
        for name, side in (("clean_accuracy", ~leaked), ("leaked_accuracy", leaked)):
            of_side = metrics.measure(
                tested["y_true"].to_numpy()[side], tested["score"].to_numpy()[side], threshold=on_defect
            )
            shown[name] = of_side["accuracy"]
        measured.append(shown)
    return measured


def _mean_sd(each: pd.DataFrame) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in SHOWN:
        values = each[name] if name in each else pd.Series(dtype=float)
        columns |= {name: values.mean(), f"{name}_sd": values.std(ddof=1) if len(values) > 1 else np.nan}
    for name in ("clean_accuracy", "leaked_accuracy"):
        columns[name] = each[name].mean() if name in each else np.nan
    return columns


def _published(figures: dict[str, float], threshold: float) -> dict[str, float | None]:
    return {
        f"study_{column}": figures.get(f"{kind}_{name}@{threshold}")
        for name in ("accuracy", "recall", "f1")
        for kind, column in (("mean", name), ("sd", f"{name}_sd"))
    }


def _test_notes(found: Answers, frame: pd.DataFrame, compared: list[Compared]) -> tuple[str, ...]:
    """Say what the figures can and cannot show."""
    notes = []
    kind = "photographs" if found.photographs is not None else "different images"
    if any(len(alike.indices) > 1 for alike in compared):
        counts = " and ".join(f"{len(np.unique(alike.groups))}" for alike in compared[:2])
        notes.append(f"Rows that share a letter cannot be told apart ({counts} {kind}, Holm, 5 %).")
    if len(compared) > 1:
        notes.append("Rows with capital letters tested other images than those with small ones: compare within a set.")
    if frame["n"].max() == 1:
        notes.append("One training a row: what another seed would give is unknown, and often moves a row by a point.")
    if frame["n_leaked"].max() > 0:
        notes.append(
            f"{frame['n_leaked'].max()} test images are byte-identical to training images: see clean and leaked."
        )
    if frame["best"].any():
        notes.append(f"* is the best on validation: {frame.loc[frame['best'], 'row'].iloc[0]}.")
    return tuple(notes)
