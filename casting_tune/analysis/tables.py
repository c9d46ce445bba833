"""Named questions over a store, answered as data frames.

Comes in: the answers of a run, and which class is the positive one. Goes out: a Table: a frame of
plain values with the sentences that a reader needs beside it. Trains nothing, reads no images, and
lays out no text (render does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from casting_tune import metrics
from casting_tune.analysis import effects, paired_tests, run_results, statistics, timings, verdict
from casting_tune.analysis.run_results import Answers, Compared, Decided, Positive, Table
from casting_tune.metrics import Counts
from casting_tune.models.registry import BACKBONES
from casting_tune.store.store import Store

COUNTED = ("tp", "fp", "tn", "fn")
READ = (
    *(f"{prefix}_{name}" for prefix in ("test", "test_leaked") for name in COUNTED),
    "validation_accuracy",
    "epoch_s",
)
"""What a row of the comparison reads of its trials."""
SHOWN = tuple(
    name for name in metrics.METRICS if name != "specificity"
)  # which is 1 - overkill_rate
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


def comparison(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Compare the rows of a sweep on the test images at threshold 0.5, the baselines below them.

    Columns: row; named (the row has a name of its own, not one made of its settings); backbone,
    augmentation, batch, px, weights; n (trainings); accuracy (mean over trainings), its sd, its
    interval low..high (`pairs.bootstrap_interval`: over seeds and groups of copies), letters
    (`pairs.all_pairs`: rows that share one cannot be told apart); the other metrics of SHOWN;
    escape_upper, the exact one-sided 95 % bound of the training that let most defects pass;
    wilson_low and wilson_high of the mean accuracy over the images; clean and leaked accuracy
    (without and with a byte-identical copy in train); validation_accuracy and best
    (`Answers.best`); epoch_s; study_accuracy, study_recall, study_f1.

    Raises:
        UsageError: the store holds no run of the sweep, or not that run.
    """
    found = run_results.load(store, sweep, run_id)
    labelled = [
        (kind, row, cells) for kind in ("cell", "baseline") for row, cells in found.rows(kind)
    ]
    frame = pd.DataFrame([_row(found, kind, row, cells, positive) for kind, row, cells in labelled])
    compared, lost = found.compared([cells for _, _, cells in labelled])
    frame["low"], frame["high"], frame["letters"] = _intervals(frame, compared)
    best = found.best
    frame["best"] = (frame["kind"] == "cell") & (frame["row"] == (best.row if best else None))
    return Table(
        title=f"{sweep}: test images, threshold 0.5",
        notes=(*run_results.notes(found, positive), *_test_notes(found, frame, compared), *lost),
        frame=frame,
        verdict=verdict.sentence(found, frame),
    )


def thresholds(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Mean and sd over trainings of each row at five thresholds, from one set of predictions, the study's beside.

    A threshold is one on P(positive class): for `ok` a casting passes when P(ok_front) is above it,
    as in the study.
    """
    found = run_results.load(store, sweep, run_id)
    counted = dict(
        zip(THRESHOLDS, found.counted([_on_defect(t, positive) for t in THRESHOLDS]), strict=True)
    )
    rows = []
    for row, cells in found.rows():
        figures, finished = cells["figures"].iloc[0], _finished(found, cells)
        for threshold in THRESHOLDS:
            each = _at(counted[threshold], finished, positive)
            rows.append(
                {"row": row, "threshold": threshold, "n": len(each), **_mean_sd(each)}
                | _published(figures, threshold)
            )
    return Table(
        title=f"{sweep}: test images at five thresholds on P({'ok_front' if positive == 'ok' else 'defective'})",
        notes=run_results.notes(found, positive),
        frame=pd.DataFrame(rows),
    )


def trainings(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Each training at each of five thresholds, the study's training of that number beside."""
    found = run_results.load(store, sweep, run_id)
    counted = dict(
        zip(THRESHOLDS, found.counted([_on_defect(t, positive) for t in THRESHOLDS]), strict=True)
    )
    rows = []
    for row, cells in found.rows():
        finished = _finished(found, cells)
        for threshold in THRESHOLDS:
            each = zip(finished["seed"], finished["fold"], finished["figures"], strict=True)
            for (seed, fold, study), measured in zip(
                each, _at(counted[threshold], finished, positive), strict=True
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
        notes=run_results.notes(found, positive),
        frame=pd.DataFrame(rows),
    )


TABLES: dict[str, Callable[..., Table]] = {
    "comparison": comparison,
    "pairs": effects.all_pairs,
    "effects": effects.effects,
    "timing": timings.timing,
    "thresholds": thresholds,
    "trainings": trainings,
}

VIEWED = ("comparison", "thresholds", "trainings")
"""The tables whose figures depend on which class is the positive one."""


def _row(
    found: Answers, kind: str, row: str, cells: pd.DataFrame, positive: Positive
) -> dict[str, Any]:
    first, done = cells.iloc[0], found.numbers(cells, READ)
    counted, of_leaked = _counts(done[:, :4]), _counts(done[:, 4:8])
    measured = [_metrics(counts, positive) for counts in counted]
    shown = {
        name: _known(np.array([values[name] for values in measured], np.float64)) for name in SHOWN
    }
    validation, epoch_s = _known(done[:, 8]), _known(done[:, 9])
    leaked = _sum(of_leaked)
    clean = _minus(_sum(counted), leaked)
    n_images = sum(sum(vars_of(counts)) for counts in counted)
    low, high = (
        statistics.wilson(round(_right(counted) / len(done)), round(n_images / len(done)))
        if counted
        else (None, None)
    )
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
        "escape_upper": max(
            (statistics.upper_bound(c.fn, c.tp + c.fn) for c in counted if c.tp + c.fn),
            default=np.nan,
        ),
        "wilson_low": low,
        "wilson_high": high,
        "clean_accuracy": metrics.METRICS["accuracy"](clean),
        "leaked_accuracy": metrics.METRICS["accuracy"](leaked),
        "n_leaked": round(sum(vars_of(leaked)) / len(done)) if len(done) else 0,
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


def vars_of(counts: Counts) -> tuple[int, int, int, int]:
    """Return (tp, fp, tn, fn)."""
    return counts.tp, counts.fp, counts.tn, counts.fn


def _counts(columns: NDArray[np.float64]) -> list[Counts]:
    """Return the counts of trials, given as [n, 4] in the order of COUNTED; unknown is none."""
    return [Counts(*values) for values in np.nan_to_num(columns).astype(np.int64).tolist()]


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.nan


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


@lru_cache(maxsize=2**16)  # fifty thousand trainings at a threshold have few different counts
def _metrics(counts: Counts, positive: Positive) -> dict[str, float | None]:
    """Work the shown metrics out from counts, so that both views come from the same decisions; not to be changed."""
    viewed = counts if positive == "defective" else counts.swapped()
    return {
        name: metrics.METRICS[name](counts if name in metrics.OF_THE_DEFECT else viewed)
        for name in SHOWN
    }


def _intervals(
    frame: pd.DataFrame, compared: list[Compared]
) -> tuple[list[float], list[float], list[str]]:
    """Return each row's interval, and its letters among rows on the same images: a..

    in the first set, A.. next.
    """
    low, high, letters = [np.nan] * len(frame), [np.nan] * len(frame), [""] * len(frame)
    for position, alike in enumerate(compared):
        for i, bounds in zip(
            alike.indices, paired_tests.bootstrap_intervals(alike.right, alike.groups), strict=True
        ):
            low[i], high[i] = bounds
        if len(alike.indices) > 1 and position < 2:
            found = paired_tests.letters(alike.right, alike.groups)
            for i, letter in zip(alike.indices, found, strict=True):
                letters[i] = letter.upper() if position else letter
    return low, high, letters


def _finished(found: Answers, cells: pd.DataFrame) -> pd.DataFrame:
    return cells[[cell in found.trials.index for cell in cells["cell_id"]]]


def _at(
    counted: dict[str, tuple[Decided, Decided]], cells: pd.DataFrame, positive: Positive
) -> list[dict[str, float | None]]:
    """Measure each training of some cells, given what it decided at a threshold."""
    measured: list[dict[str, float | None]] = []
    for cell in cells["cell_id"]:
        if cell not in counted:
            measured.append(dict.fromkeys((*SHOWN, "clean_accuracy", "leaked_accuracy")))
            continue
        whole, leaked = (Counts(*decided) for decided in counted[cell])
        accuracy = metrics.METRICS["accuracy"]
        sides = {
            "clean_accuracy": accuracy(_minus(whole, leaked)),
            "leaked_accuracy": accuracy(leaked),
        }
        measured.append(_metrics(whole, positive) | sides)
    return measured


def _on_defect(threshold: float, positive: Positive) -> float:
    """Return the threshold on P(defective) that one on P(positive class) is."""
    return threshold if positive == "defective" else 1 - threshold


def _mean_sd(each: list[dict[str, float | None]]) -> dict[str, float]:
    """Return mean and sd over trainings, of what is known."""
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


def _test_notes(found: Answers, frame: pd.DataFrame, compared: list[Compared]) -> tuple[str, ...]:
    """Say what the figures can and cannot show."""
    notes = []
    kind = "photographs" if found.photographs is not None else "different images"
    if any(len(alike.indices) > 1 for alike in compared):
        counts = " and ".join(f"{len(np.unique(alike.groups))}" for alike in compared[:2])
        notes.append(f"Rows that share a letter cannot be told apart ({counts} {kind}, Holm, 5 %).")
    if len(compared) > 1:
        notes.append(
            "Rows with capital letters tested other images than those with small ones: compare within a set."
        )
    if frame["n"].max() == 1:
        notes.append(
            "One training a row: what another seed would give is unknown, and often moves a row by a point."
        )
    if frame["n_leaked"].max() > 0:
        notes.append(
            f"{frame['n_leaked'].max()} test images are byte-identical to training images: see clean and leaked."
        )
    if found.best is not None:
        notes.append(
            " ".join((f"* is the best on validation: {found.best.row}.", *found.best.ties))
        )
    return tuple(notes)
