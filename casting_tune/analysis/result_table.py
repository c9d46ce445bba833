"""The Table that every table of results fills, and the notes that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from casting_tune.analysis import class_view

if TYPE_CHECKING:
    from casting_tune.analysis.run_results import RunResults

Positive = Literal["defective", "ok"]
QUICK = "Quick run (small images, few epochs): quick test only, do not use it to choose a model."


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data frame with its title, notes and verdict.

    Attributes:
        title: what the rows are.
        notes: one sentence each, shown above the rows.
        frame: shares in 0..1, seconds, counts; missing is NaN or None; study_* as published.
        verdict: the result in one sentence, shown below the rows; "" if the table has none.
    """

    title: str
    notes: tuple[str, ...]
    frame: pd.DataFrame
    verdict: str = ""


def notes(run: RunResults, positive: Positive) -> tuple[str, ...]:
    """Return the notes of every table: positive class, kind of run, dataset, what is missing."""
    first, cells = run.cells.iloc[0], run.cells
    is_study = any(cells["figures"])
    texts = [_positive(run, positive, is_study=is_study)]
    if positive == "defective" and not run.kind and is_study:
        texts.append(
            "Recall and F1 of the study are for ok_front: --positive ok_front shows ours in the "
            "same way."
        )
    if first["quick"]:
        texts.append(QUICK)
    texts += _training_notes(run)
    missing = cells.loc[~cells["cell_id"].isin(run.trials.index), "cell_id"]
    if len(missing):
        failed = run.store.failed()
        statuses = [failed.get(cell, "not run") for cell in missing]
        counts = ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))
        texts.append(f"{len(missing)} of {len(cells)} cells have no result: {counts}.")
    return (*texts, f"Run {run.run_id}.")


def _positive(run: RunResults, positive: Positive, *, is_study: bool) -> str:
    if run.kind:
        return f"Positive class: {run.kind}, against the good images; other defects do not count."
    if positive == "defective":
        return "Positive class: the defect."
    name = class_view.of_run(run).negative
    return (
        f"Positive class: {name}{', as in the study' if is_study else ''}; escape and overkill "
        "rates still refer to defects."
    )


def _training_notes(run: RunResults) -> list[str]:
    """Return the dataset and device of the completed cells, and the settings that all share."""
    cells = run.cells[run.cells["kind"] == "cell"]
    trials = run.completed(cells)
    if not len(trials):
        return []
    n_test = sorted({int(n) for n in trials["n_test"]})
    span = f"{n_test[0]} to {n_test[-1]}" if len(n_test) > 1 else str(n_test[0])
    dataset_id = run.cells.iloc[0]["dataset_id"]
    texts = [f"Dataset {dataset_id}, {span} test images per training; {device(trials)}."]
    shared = [f"{values[0]}{unit}" for values, unit in _settings(cells, trials) if len(values) == 1]
    if shared:
        texts.append(f"All rows: {', '.join(shared)}.")
    return texts


def _settings(cells: pd.DataFrame, trials: pd.DataFrame) -> list[tuple[list[Any], str]]:
    """Return the different values of the main settings of a run, each with its unit."""
    return [
        ([f"weights {name}" for name in cells["weights"].dropna().unique()], ""),
        (list(cells["image_px"].dropna().unique()), " px"),
        (list(trials["epochs"].dropna().unique()), " epochs"),
        (list(trials["precision"].dropna().unique()), ""),
    ]


def device(trials: pd.DataFrame) -> str:
    """Return the devices of some trials, with threads and trials at the same time."""
    kinds = trials[["device", "n_threads", "n_at_once"]].drop_duplicates().itertuples(index=False)
    return "; ".join(
        f"{device}, {threads} thread{'s' * (threads != 1)}, {at_once} at once"
        for device, threads, at_once in kinds
    )
