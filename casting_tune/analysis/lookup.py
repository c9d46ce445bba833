"""The contents of a store: its runs, and everything about one cell.

Input: a store, perhaps the name of a cell. Output: plain values. Trains nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from casting_tune.analysis import bootstrap, cell_names, image_groups, run_results
from casting_tune.analysis.run_results import RunResults
from casting_tune.errors import UsageError, unknown
from casting_tune.store import schema
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES

SETTINGS = (*(name for name in schema.SETTINGS if name not in TOGGLES), "augmentation")
EPOCH = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "train_s",
)
ATTEMPT = (
    "attempt",
    "status",
    "started_at",
    "duration_s",
    "device",
    "n_threads",
    "error",
    "traceback",
)
FOLDERS = ("trials", "predictions", "epochs", "weights", "checkpoints")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A rate of a completed cell: k of n, and its 95 % interval.

    `interval` is what it counts: photographs, or different images. Low and high are NaN if they are
    too few.
    """

    split: str
    name: str
    k: int
    n: int
    low: float
    high: float
    interval: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Everything in a store about a cell; `epochs` are the last that were trained, each once."""

    cell_id: str
    label: str
    status: str
    sweeps: tuple[str, ...]
    dataset_id: str
    settings: dict[str, Any]
    attempts: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    metrics: tuple[Measured, ...]
    files: tuple[str, ...]


def runs(store: Store, sweep: str | None = None) -> pd.DataFrame:
    """Return one row per run, the newest last: id, time, cells by state, best row.

    The columns are sweep, run_id, asked_at, quick, cells; done, stopped (by a scheduler), failed,
    missing; best, best_validation. `best` is the best row (`RunResults.best`); `best_validation` is
    the mean validation accuracy of its completed trainings.

    Raises:
        UsageError: the store holds no run, or none of that sweep.

    Example:
        >>> from casting_tune import Store, runs
        >>> runs(Store("results"))[["sweep", "done", "missing"]]
          sweep  done  missing
        0  tiny     9        0
    """
    requested: pd.DataFrame = store.read("cells").to_pandas()
    known = sorted(set(requested["sweep"]))
    if not known:
        raise UsageError(
            f"No runs in '{store.address}'. Start one: python -m casting_tune.sweep backbone_grid"
        )
    if sweep is not None and sweep not in known:
        raise UsageError(unknown("sweep in this store", sweep, known))
    columns = ["cell_id", "status", "started_at", "attempt", "validation_accuracy"]
    done = run_results.newest(store.read("trials", columns=columns).to_pandas())
    states = {
        cell: "stopped" if status == "stopped" else "failed"
        for cell, status in store.failed().items()
    }
    states |= dict.fromkeys(done.index, "done")
    rows = []
    for (name, run_id), cells in requested.groupby(["sweep", "run_id"]):
        if sweep is None or name == sweep:
            best = RunResults(
                store, str(name), str(run_id), cells.sort_values("position"), done
            ).best
            counts = Counter(states.get(cell, "missing") for cell in cells["cell_id"])
            rows.append(
                {
                    "sweep": name, "run_id": run_id, "asked_at": cells["asked_at"].iloc[0],
                    "quick": bool(cells["quick"].iloc[0]), "cells": len(cells),
                    **{state: counts[state] for state in ("done", "stopped", "failed", "missing")},
                    "best": best.row if best else None,
                    "best_validation": best.accuracy if best else None,
                }
            )  # fmt: skip
    return pd.DataFrame(rows).sort_values("asked_at", ignore_index=True)


def cells(store: Store, sweep: str, run_id: str | None = None) -> pd.DataFrame:
    """Return one row per cell of a run: cell_id, label, status, validation_accuracy.

    Raises:
        UsageError: sweep or run not found in the store.
    """
    run = run_results.load(store, sweep, run_id)
    listed = run.cells[["cell_id", "label"]].reset_index(drop=True)
    failed = store.failed()
    done = run.trials["validation_accuracy"]
    listed["status"] = [
        "completed" if cell in done.index else failed.get(cell, "not run")
        for cell in listed["cell_id"]
    ]
    listed["validation_accuracy"] = listed["cell_id"].map(done).astype(float)
    return listed


def show(store: Store, name: str) -> Shown:
    """Return everything about a cell; see `cell_names.find` for names and errors."""
    cell = cell_names.find(store, name)
    trials = sorted(
        store.read("trials", cell_ids=[cell]).to_pylist(), key=lambda trial: trial["attempt"]
    )
    requested = store.read("cells").filter(pc.field("cell_id") == cell).to_pylist()
    done = [trial for trial in trials if trial["status"] == "completed"]
    shown = (done or trials or requested)[-1]
    epochs = sorted(
        store.read("epochs", cell_ids=[cell]).to_pylist(), key=lambda row: row["attempt"]
    )
    latest = {row["epoch"]: row for row in epochs}
    names = [name for folder in FOLDERS for name in store.names(folder)]
    return Shown(
        cell_id=cell,
        label=shown["label"],
        status=str(shown.get("status") or "not run"),
        sweeps=tuple(sorted({row["sweep"] for row in (*trials, *requested)})),
        dataset_id=shown["dataset_id"],
        settings={name: shown.get(name) for name in SETTINGS if shown.get(name) is not None}
        | {"toggles": [toggle for toggle in TOGGLES if shown.get(toggle)]},
        attempts=[{name: trial[name] for name in ATTEMPT} for trial in trials],
        epochs=[{name: latest[number][name] for name in EPOCH} for number in sorted(latest)],
        metrics=measured(store, done[-1]) if done else (),
        files=tuple(name for name in names if name.rpartition("/")[2].startswith(cell)),
    )


def measured(store: Store, trial: dict[str, Any]) -> tuple[Measured, ...]:
    """Return accuracy, escape and overkill rate of a completed trial with 95 % intervals.

    At threshold 0.5, for validation and test.
    """
    rows = predictions(store, str(trial["cell_id"]), attempt=int(trial["attempt"]))
    rates = []
    for split in ("validation", "test"):
        part = rows[rows["split"] == split]
        if part.empty:
            continue
        kind, groups = photographs(store, str(trial["dataset_id"]), part)
        defective = (part["y_true"] == 1).to_numpy()
        wrong = (part["score"] >= 0.5).to_numpy() != defective
        counted = {
            "accuracy": (~wrong, groups),
            "escape rate": (wrong[defective], groups[defective]),
            "overkill rate": (wrong[~defective], groups[~defective]),
        }
        for name, (hits, own) in counted.items():
            low, high = bootstrap.row_interval(hits[None], own) if hits.size else (0.0, 1.0)
            rates.append(
                Measured(
                    split=split,
                    name=name,
                    k=int(hits.sum()),
                    n=hits.size,
                    low=low,
                    high=high,
                    interval=f"over {len(np.unique(own))} {kind}",
                )
            )
    return tuple(rates)


def predictions(store: Store, name: str, *, attempt: int | None = None) -> pd.DataFrame:
    """Return the predictions of a completed cell, one row per image: split, path, y_true, score.

    Args:
        store: holds the predictions.
        name: of the cell; see `cell_names.find`.
        attempt: of the cell; by default the last completed one.

    Raises:
        UsageError: cell not found or not completed.

    Example:
        >>> from casting_tune import Store, predictions
        >>> store = Store("results")
        >>> rows = predictions(store, min(store.completed()))
        >>> sorted(set(rows["split"])), bool(rows["score"].between(0, 1).all())
        (['test', 'validation'], True)
    """
    cell = cell_names.find(store, name)
    if attempt is None:
        trials = store.read("trials", columns=["attempt", "status"], cell_ids=[cell]).to_pylist()
        done = [int(trial["attempt"]) for trial in trials if trial["status"] == "completed"]
        if not done:
            raise UsageError(
                f"Cell {cell} has no completed trial, so it has no predictions. "
                f"See: casting-tune show {cell}"
            )
        attempt = max(done)
    rows: pd.DataFrame = store.read("predictions", cell_ids=[cell]).to_pandas()
    return rows[rows["attempt"] == attempt].reset_index(drop=True)


def photographs(
    store: Store, dataset_id: str, rows: pd.DataFrame
) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return what the groups are, and the group of the image of each row, [n]; see `audits`."""
    groups = image_groups.photo_groups(store, dataset_id)
    if groups is not None:
        return "photographs", np.array([groups[image] for image in rows["image"]], np.int64)
    return "different images", np.asarray(pd.factorize(rows["sha256"])[0], dtype=np.int64)
