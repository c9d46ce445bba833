"""What a store holds: its runs, and all that is known of one cell.

Comes in: a store, perhaps the beginning of a cell's id. Goes out: plain values. Trains nothing,
lays out no text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from casting_tune.analysis import paired_tests, run_results, statistics
from casting_tune.analysis.run_results import Answers
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

    `interval` says how it was made: over photographs, over different images, or exact and for
    independent castings.
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
    """All that a store knows of a cell; `epochs` are the last that were trained, each once."""

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
    """Return a row a run, the newest last: its id and time, its cells and how many of them are what, its best.

    The columns are sweep, run_id, asked_at, quick, cells; done, stopped (by a scheduler), failed,
    missing; best, best_validation. `best` is the best row (`answers.Answers.best`);
    `best_validation` is the mean validation accuracy of its done trainings, the newest of each
    cell.

    Raises:
        UsageError: the store holds no run, or none of that sweep.
    """
    asked: pd.DataFrame = store.read("cells").to_pandas()
    known = sorted(set(asked["sweep"]))
    if not known:
        raise UsageError(
            f"There is no run in '{store.address}'. Start one: python -m casting_tune.sweep backbone_grid"
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
    for (name, run_id), cells in asked.groupby(["sweep", "run_id"]):
        if sweep is None or name == sweep:
            best = Answers(store, str(name), str(run_id), cells.sort_values("position"), done).best
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


def find(store: Store, prefix: str) -> str:
    """Return the id of the one cell, trained or only asked for, that begins so.

    Raises:
        UsageError: no cell begins so, or several do.
    """
    known: set[str] = {
        cell
        for table in ("trials", "cells")
        for cell in store.read(table, columns=["cell_id"])[0].to_pylist()
    }
    found = sorted(cell for cell in known if cell.startswith(prefix))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"'{prefix}' begins the ids of {len(found)} cells. Write more of it: {', '.join(found[:5])}."
        )
    if not known:
        raise UsageError(
            f"There is no cell in '{store.address}'. Name another store with --results."
        )
    near = unknown("cell", prefix, known)
    raise UsageError(
        near
        if "Did you" in near
        else f"Unknown cell '{prefix}'. 'casting-tune list' names the runs."
    )


def show(store: Store, prefix: str) -> Shown:
    """Return all that is known of the cell whose id begins so. Raises UsageError as `find` does."""
    cell = find(store, prefix)
    trials = sorted(
        store.read("trials", cell_ids=[cell]).to_pylist(), key=lambda trial: trial["attempt"]
    )
    asked = store.read("cells").filter(pc.field("cell_id") == cell).to_pylist()
    done = [trial for trial in trials if trial["status"] == "completed"]
    shown = (done or trials or asked)[-1]
    epochs = sorted(
        store.read("epochs", cell_ids=[cell]).to_pylist(), key=lambda row: row["attempt"]
    )
    latest = {row["epoch"]: row for row in epochs}
    names = [name for folder in FOLDERS for name in store.names(folder)]
    return Shown(
        cell_id=cell,
        label=shown["label"],
        status=str(shown.get("status") or "not run"),
        sweeps=tuple(sorted({row["sweep"] for row in (*trials, *asked)})),
        dataset_id=shown["dataset_id"],
        settings={name: shown.get(name) for name in SETTINGS if shown.get(name) is not None}
        | {"toggles": [toggle for toggle in TOGGLES if shown.get(toggle)]},
        attempts=[{name: trial[name] for name in ATTEMPT} for trial in trials],
        epochs=[{name: latest[number][name] for name in EPOCH} for number in sorted(latest)],
        metrics=measured(store, done[-1]) if done else (),
        files=tuple(name for name in names if name.rpartition("/")[2].startswith(cell)),
    )


def measured(store: Store, trial: dict[str, Any]) -> tuple[Measured, ...]:
    """Return accuracy, escape rate and overkill rate of a completed trial at threshold 0.5, with 95 % intervals."""
    rows = predictions(store, str(trial["cell_id"]), attempt=int(trial["attempt"]))
    found = []
    for split in ("validation", "test"):
        part = rows[rows["split"] == split]
        wrong = (part["score"] >= 0.5) != (part["y_true"] == 1)
        if part.empty:
            continue
        kind, groups = photographs(store, str(trial["dataset_id"]), part)
        low, high = paired_tests.bootstrap_interval(~wrong.to_numpy()[None, :], groups)
        right = int((~wrong).sum())
        found.append(
            Measured(
                split=split,
                name="accuracy",
                k=right,
                n=len(part),
                low=low,
                high=high,
                interval=f"over {kind}",
            )
        )
        for name, label in (("escape rate", 1), ("overkill rate", 0)):
            of_class = wrong[part["y_true"] == label]
            k, n = int(of_class.sum()), len(of_class)
            low, high = statistics.clopper_pearson(k, n) if n else (0.0, 1.0)
            found.append(
                Measured(
                    split=split,
                    name=name,
                    k=k,
                    n=n,
                    low=low,
                    high=high,
                    interval="exact, a casting each",
                )
            )
    return tuple(found)


def predictions(store: Store, prefix: str, *, attempt: int | None = None) -> pd.DataFrame:
    """Return the predictions of a cell's completed trial, a row an image: split, image, path, y_true, score, and more.

    Raises:
        UsageError: no such cell, or one that has not completed.
    """
    cell = find(store, prefix)
    if attempt is None:
        trials = store.read("trials", columns=["attempt", "status"], cell_ids=[cell]).to_pylist()
        done = [int(trial["attempt"]) for trial in trials if trial["status"] == "completed"]
        if not done:
            raise UsageError(
                f"Cell {cell} has no completed trial, and so no predictions. See: casting-tune show {cell}"
            )
        attempt = max(done)
    rows: pd.DataFrame = store.read("predictions", cell_ids=[cell]).to_pandas()
    return rows[rows["attempt"] == attempt].reset_index(drop=True)


def photographs(
    store: Store, dataset_id: str, rows: pd.DataFrame
) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return which photograph each row's image shows, [n], and in a word what was counted; see `audits`."""
    audit: pd.DataFrame = store.read(
        "images", columns=["dataset_id", "image", "group_id"]
    ).to_pandas()
    of_dataset = audit[audit["dataset_id"] == dataset_id].set_index("image")["group_id"]
    if len(of_dataset):
        return "photographs", of_dataset.reindex(rows["image"]).to_numpy(np.int64)
    return "different images", np.asarray(pd.factorize(rows["sha256"])[0], dtype=np.int64)
