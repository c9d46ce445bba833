"""What one run of a sweep asked for, and what its cells answered: the rows that every table starts from.

Comes in: a store, a sweep's name, perhaps a run. Goes out: Answers, with cells in the sweep's order, the one completed
trial of each, and their test predictions; and the Table that every room of tables fills. A cell is found by its id,
wherever it was trained. Computes no metric.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from casting_tune.errors import UsageError, unknown
from casting_tune.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

Positive = Literal["defective", "ok"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data frame with what a reader needs beside it.

    Attributes:
        title: what the rows are.
        notes: one sentence each; they stand above the rows.
        frame: shares in 0..1, seconds, counts; missing is NaN or None; study_* as the study prints them.
    """

    title: str
    notes: tuple[str, ...]
    frame: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The rows that decided the same images: their positions, [n_seeds, n] right decisions, [n] groups."""

    indices: list[int]
    right: list[NDArray[np.bool_]]
    groups: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """A run of a sweep and what the store knows of its cells.

    Attributes:
        asked: a row a cell in the sweep's order, the columns of `schema.CELLS` and `figures`, the study's as a dict.
        trials: the completed trials, the columns of `schema.TRIALS`, indexed by cell_id.
    """

    store: Store
    sweep: str
    run_id: str
    asked: pd.DataFrame
    trials: pd.DataFrame

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The test predictions of the completed trials: cell_id, image, sha256, leaked, y_true, score."""
        columns = ["cell_id", "attempt", "split", "image", "sha256", "leaked", "y_true", "score"]
        rows: pd.DataFrame = self.store.read("predictions", columns=columns, cell_ids=self.trials.index).to_pandas()
        attempt = rows["cell_id"].map(self.trials["attempt"])  # an attempt that was cut off may have left some too
        return rows[(rows["split"] == "test") & (rows["attempt"] == attempt)].drop(columns=["attempt", "split"])

    def rows(self, kind: str = "cell") -> list[tuple[str, pd.DataFrame]]:
        """Return the rows of one kind in the sweep's order: label and the asked cells of each."""
        of_kind = self.asked[self.asked["kind"] == kind]
        return [(str(row), cells) for row, cells in of_kind.groupby("row", sort=False)]

    def completed(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the completed trials of some asked cells, in their order."""
        return self.trials.loc[[cell for cell in cells["cell_id"] if cell in self.trials.index]]

    def decisions(self, cells: pd.DataFrame, *, threshold: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return what a row's trainings decided rightly: images [n] ascending, and right [n_seeds, n].

        The folds of one seed are put together, so that a seed speaks about every image once. Seeds of which a fold or
        a prediction is missing are left out, as are those that tested other images than the first; ([], [0, 0]) is a
        row without any.
        """
        done = self.completed(cells)
        n_folds = cells["fold"].nunique()
        right: dict[int, pd.Series] = {}
        for seed, of_seed in done.groupby("seed"):
            tested = self.predictions[self.predictions["cell_id"].isin(of_seed.index)].set_index("image")
            whole = len(of_seed) == n_folds and len(tested) == of_seed["n_test"].sum()
            if whole and np.isfinite(tested["score"]).all():
                decided = tested["score"].to_numpy(np.float32) >= np.float32(threshold)
                right[int(str(seed))] = pd.Series(decided == (tested["y_true"] == 1), index=tested.index).sort_index()
        if not right:
            return np.empty(0, np.int64), np.empty((0, 0), np.bool_)
        images = next(iter(right.values())).index
        alike = [values.to_numpy(bool) for values in right.values() if values.index.equals(images)]
        return images.to_numpy(np.int64), np.stack(alike)

    def compared(self, rows: list[pd.DataFrame]) -> tuple[list[Compared], tuple[str, ...]]:
        """Put rows together that decided the same images, in the order of their first rows; say what is missing."""
        decided = [self.decisions(cells) for cells in rows]
        sets: dict[tuple[int, ...], list[int]] = {}
        for i, (images, right) in enumerate(decided):
            if len(right):
                sets.setdefault(tuple(images.tolist()), []).append(i)
        absent = sum(len(self.completed(cells)) > 0 for cells in rows) - sum(map(len, sets.values()))
        lost = (f"{absent} rows lack predictions in the store: they have no interval.",) if absent else ()
        return [
            Compared(
                indices=indices,
                right=[decided[i][1] for i in indices],
                groups=self.groups(np.array(images, dtype=np.int64)),
                images=np.array(images, dtype=np.int64),
            )
            for images, indices in sets.items()
        ], lost

    def groups(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which photograph each image shows: [n]. Without an audit, byte-identical images share a number."""
        audited = self.photographs
        if audited is not None:
            return audited.reindex(images.tolist()).to_numpy(np.int64)
        by_image = self.predictions.drop_duplicates("image").set_index("image")["sha256"]
        return np.asarray(pd.factorize(by_image.reindex(images.tolist()))[0], dtype=np.int64)

    @cached_property
    def photographs(self) -> pd.Series | None:
        """The audit's group of each image of this run's dataset, by image; None where there was no audit."""
        rows: pd.DataFrame = self.store.read("images", columns=["dataset_id", "image", "group_id"]).to_pandas()
        of_dataset = rows[rows["dataset_id"] == self.asked["dataset_id"].iloc[0]].drop_duplicates("image")
        return of_dataset.set_index("image")["group_id"] if len(of_dataset) else None


def load(store: Store, sweep: str, run_id: str | None = None) -> Answers:
    """Return the answers of a run of a sweep; of its last run unless one is named.

    Raises:
        UsageError: the store holds no run of the sweep, or not that one.
    """
    runs: pd.DataFrame = store.read("cells").to_pandas()
    of_sweep = runs[runs["sweep"] == sweep]
    if of_sweep.empty:
        known = sorted(set(runs["sweep"]))
        if not known:
            raise UsageError(f"There is no run in '{store.address}'. Start one: python -m casting_tune.sweep {sweep}")
        raise UsageError(unknown("sweep in this store", sweep, known))
    if run_id is None:
        run_id = str(of_sweep.sort_values("asked_at", kind="stable")["run_id"].iloc[-1])
    asked = of_sweep[of_sweep["run_id"] == run_id].sort_values("position").reset_index(drop=True)
    if asked.empty:
        raise UsageError(unknown("run", run_id, sorted(set(of_sweep["run_id"]))))
    asked["figures"] = asked["study"].map(_figures)
    trials: pd.DataFrame = store.read("trials", cell_ids=asked["cell_id"]).to_pandas()
    done = trials[trials["status"] == "completed"].sort_values(["started_at", "attempt"])
    return Answers(store, sweep, run_id, asked, done.drop_duplicates("cell_id").set_index("cell_id"))


def _figures(text: Any) -> dict[str, float]:
    return dict(json.loads(text)) if isinstance(text, str) else {}


def notes(found: Answers, positive: Positive) -> tuple[str, ...]:
    """Say what every table of a run must say: the positive class, what kind of run, what is missing."""
    first, asked = found.asked.iloc[0], found.asked
    trials = found.completed(asked[asked["kind"] == "cell"])
    notes = [
        "Positive class: the defect."
        if positive == "defective"
        else "Positive class: ok_front, the study's view; escape and overkill stay those of the defect."
    ]
    if positive == "defective" and any(asked["figures"]):
        notes.append("The study's recall and F1 are those of ok_front: --positive ok_front shows ours in its view.")
    if first["quick"]:
        notes.append("Quick run (small images, few epochs): it shows that all works, not which row is best.")
    if len(trials):
        n_test = sorted({int(n) for n in trials["n_test"]})
        span = f"{n_test[0]} to {n_test[-1]}" if len(n_test) > 1 else str(n_test[0])
        notes.append(f"Dataset {first['dataset_id']}, {span} test images a training; {device(trials)}.")
        shared = [f"{values[0]}{unit}" for values, unit in _settings(asked, trials) if len(values) == 1]
        if shared:
            notes.append(f"Every row: {', '.join(shared)}.")
    left = int((~asked["cell_id"].isin(found.trials.index)).sum())
    if left:
        failed = found.store.failed()
        statuses = [failed.get(cell, "not run") for cell in asked["cell_id"] if cell not in found.trials.index]
        counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        notes.append(f"{left} of {len(asked)} cells have no result: {counted}.")
    notes.append(f"Run {found.run_id}.")
    return tuple(notes)


def _settings(asked: pd.DataFrame, trials: pd.DataFrame) -> list[tuple[list[Any], str]]:
    """Return the different values of what a reader must know of a run's training, each with its unit."""
    cells = asked[asked["kind"] == "cell"]
    return [
        ([f"weights {name}" for name in cells["weights"].unique()], ""),
        (list(cells["image_px"].unique()), " px"),
        (list(trials["epochs"].unique()), " epochs"),
        (list(trials["precision"].unique()), ""),
    ]


def device(trials: pd.DataFrame) -> str:
    """Say on what some trials ran, and beside how many."""
    kinds = trials[["device", "n_threads", "n_at_once"]].drop_duplicates().itertuples(index=False)
    return "; ".join(f"{device}, {threads} threads, {at_once} at once" for device, threads, at_once in kinds)
