"""What one run of a sweep asked for, and what its cells answered: the rows that every table starts from.

Comes in: a store, a sweep's name, perhaps a run. Goes out: Answers, with cells in the sweep's
order, the newest completed trial of each, and their test predictions; and the Table that every room
of tables fills. A cell is found by its id, wherever it was trained. Computes no metric.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from casting_tune.errors import UsageError, unknown
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

Positive = Literal["defective", "ok"]
Decided = tuple[int, int, int, int]
"""Numbers of images: tp, fp, tn, fn, the defect as the positive class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data frame with what a reader needs beside it.

    Attributes:
        title: what the rows are.
        notes: one sentence each; they stand above the rows.
        frame: shares in 0..1, seconds, counts; missing is NaN or None; study_* as the study prints them.
        verdict: what the rows have shown, in a sentence that stands below them; "" where the table has none.
    """

    title: str
    notes: tuple[str, ...]
    frame: pd.DataFrame
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The rows that decided the same images: their positions, [n_seeds, n] right decisions, [n] groups."""

    indices: list[int]
    right: list[NDArray[np.bool_]]
    groups: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best row of a run and its best training, both by validation alone; see `Answers.best`.

    Attributes:
        row: the row's label.
        cell_id: its best training.
        accuracy: the mean validation accuracy of the row's trainings.
        n_rows: rows with a completed training.
        ties: a sentence for each tie, of rows and of the row's trainings, that says how it was decided.
    """

    row: str
    cell_id: str
    accuracy: float
    n_rows: int
    ties: tuple[str, ...]


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
    def best(self) -> Best | None:
        """The best row and its best training, for every table, report and command; None without a completed training.

        The best row has the highest mean validation accuracy at threshold 0.5 over its completed
        trainings. Of equal rows it is the one with the lowest mean cross-entropy on the validation
        images; of rows that are equal in that too, the first in the sweep's order. The same rule
        chooses the best training among those of the row.
        """
        cells = self.asked.loc[self.asked["kind"] == "cell", ["row", "cell_id"]]
        done = cells.assign(
            accuracy=cells["cell_id"].map(self.trials["validation_accuracy"]).astype(float)
        ).dropna()
        if done.empty:
            return None
        means = done.groupby("row", sort=False)["accuracy"].mean()
        row, tied_rows = self._first(means, done.set_index("cell_id")["row"], "row")
        own = done[done["row"] == row].set_index("cell_id")["accuracy"]
        cell, tied_trainings = self._first(own, own.index.to_series(), "training of this row")
        return Best(
            row=row,
            cell_id=cell,
            accuracy=float(means[row]),
            n_rows=len(means),
            ties=(*tied_rows, *tied_trainings),
        )

    def _first(self, accuracy: pd.Series, of: pd.Series, what: str) -> tuple[str, tuple[str, ...]]:
        """Return the best by accuracy, then cross-entropy, then order; and a sentence if several are equal in accuracy.

        Args:
            accuracy: by name, in the sweep's order.
            of: the name that each cell_id belongs to.
            what: what a name is.
        """
        rounded = accuracy.round(
            12
        )  # the mean of the same values in another order may differ in the last digit
        equal = rounded.index[rounded == rounded.max()]
        if len(equal) == 1:
            return str(equal[0]), ()
        loss = self._validation_loss(of.index[of.isin(equal)])
        loss = loss.groupby(of).mean().reindex(equal).fillna(np.inf).round(12)
        lowest = loss.index[loss == loss.min()]
        n = len(equal) - 1
        how = f"has the lowest validation cross-entropy ({loss.min():.4g})"
        if len(lowest) > 1:
            how = "comes first in the sweep, since their validation cross-entropies are equal or unknown"
        plural = what.replace(" ", "s ", 1) if " " in what else f"{what}s"
        others = f"1 other {what} has" if n == 1 else f"{n} other {plural} have"
        return str(lowest[0]), (f"{others} the same validation accuracy; this one {how}.",)

    def _validation_loss(self, cell_ids: pd.Index) -> pd.Series:
        """Return the mean binary cross-entropy in nats on the validation images, by cell_id."""
        columns = ["cell_id", "attempt", "split", "y_true", "score"]
        rows: pd.DataFrame = self.store.read(
            "predictions", columns=columns, cell_ids=cell_ids
        ).to_pandas()
        attempt = rows["cell_id"].map(self.trials["attempt"])
        rows = rows[(rows["split"] == "validation") & (rows["attempt"] == attempt)]
        score = rows["score"].astype(float)
        likelihood = score.where(rows["y_true"] == 1, 1 - score).clip(1e-7, 1)
        return -likelihood.transform(np.log).groupby(rows["cell_id"]).mean()

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The test predictions of the completed trials, a cell's together: image, sha256, leaked, y_true, score.

        cell_id and sha256 are categories, since rows may be millions.
        """
        columns = ["cell_id", "attempt", "split", "image", "sha256", "leaked", "y_true", "score"]
        read = self.store.read(
            "predictions",
            columns=columns,
            cell_ids=self.trials.index,
            encoded=["cell_id", "split", "sha256"],
        )
        cells = read.column("cell_id").unify_dictionaries().to_pandas().cat
        attempt = self.trials["attempt"].reindex(cells.categories).to_numpy(np.float64)
        last = (
            read.column("attempt").to_numpy() == attempt[cells.codes]
        )  # one that was cut off may have left some too
        kept = last & (read.column("split").to_pandas() == "test").to_numpy()
        read = read.drop_columns(["attempt", "split"])
        if not kept.all():
            read = read.filter(kept)
        rows: pd.DataFrame = read.unify_dictionaries().to_pandas(
            split_blocks=True, self_destruct=True
        )
        apart = (
            np.diff(rows["cell_id"].cat.codes) < 0
        )  # the store's files are in the order of their cells, but for
        return (
            rows.sort_values("cell_id", kind="stable", ignore_index=True) if apart.any() else rows
        )  # two sweeps'

    @cached_property
    def _parts(self) -> dict[str, slice]:
        """Where each cell's predictions stand."""
        cells = self.predictions["cell_id"].cat
        ends = np.cumsum(np.bincount(cells.codes, minlength=len(cells.categories))).tolist()
        return {
            cell: slice(start, end)
            for cell, start, end in zip(cells.categories, [0, *ends], ends, strict=False)
        }

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        return {
            "image": self.predictions["image"].to_numpy(np.int64),
            "y_true": self.predictions["y_true"].to_numpy(np.uint8),
            "score": self.predictions["score"].to_numpy(np.float32),
            "leaked": self.predictions["leaked"].fillna(value=False).to_numpy(np.bool_),
        }

    def tested(self, cell_id: str) -> dict[str, NDArray[Any]]:
        """Return the test predictions of a cell's completed trial as arrays [n]: image, y_true, score, leaked."""
        part = self._parts.get(cell_id, slice(0, 0))
        return {name: column[part] for name, column in self._columns.items()}

    def counted(self, thresholds: Sequence[float]) -> list[dict[str, tuple[Decided, Decided]]]:
        """Return what each cell decided at thresholds on P(defective): of its test images, and of the leaked ones.

        A cell that has a score that is not finite, or no prediction, is left out. All cells are
        counted at once, and all thresholds: one by one, seven million predictions took a minute.
        """
        limits, where = np.unique(np.asarray(thresholds, np.float32), return_inverse=True)
        score, leaked, defective = (
            self._columns["score"],
            self._columns["leaked"],
            self._columns["y_true"] == 1,
        )
        reached = np.zeros(len(score), np.int8)  # how many of the limits, in ascending order
        for limit in limits:
            reached += score >= limit
        cells = self.predictions["cell_id"].cat
        kinds = (
            len(cells.categories),
            2,
            2,
            len(limits) + 1,
        )  # cell, leaked, defective, limits reached
        place = cells.codes.to_numpy(np.int32, copy=True)
        for n_kinds, kind in zip(kinds[1:], (leaked, defective, reached), strict=True):
            place *= n_kinds
            place += kind
        n = np.bincount(place, minlength=int(np.prod(kinds))).reshape(kinds)
        rejected = n[..., ::-1].cumsum(axis=3)[..., ::-1][..., 1:][
            ..., where
        ]  # [cells, 2, 2, thresholds]
        passed = n.sum(axis=3)[..., None] - rejected
        decided = np.stack(
            [rejected[:, :, 1], rejected[:, :, 0], passed[:, :, 0], passed[:, :, 1]], axis=-1
        )
        decided[:, 0] += decided[:, 1]  # of all images, not of those alone that are not leaked
        there = n.sum(axis=(1, 2, 3)) > 0
        there[cells.codes[~np.isfinite(score)]] = False
        known = np.flatnonzero(there).tolist()
        of_all, of_leaked = decided[:, 0].tolist(), decided[:, 1].tolist()
        return [
            {
                cells.categories[cell]: (tuple(of_all[cell][at]), tuple(of_leaked[cell][at]))
                for cell in known
            }
            for at in range(len(thresholds))
        ]

    def rows(self, kind: str = "cell") -> list[tuple[str, pd.DataFrame]]:
        """Return the rows of one kind in the sweep's order: label and the asked cells of each."""
        of_kind = self.asked[self.asked["kind"] == kind]
        return [(str(row), cells) for row, cells in of_kind.groupby("row", sort=False)]

    def completed(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the completed trials of some asked cells, in their order."""
        return self.trials.loc[[cell for cell in cells["cell_id"] if cell in self.trials.index]]

    def numbers(self, cells: pd.DataFrame, columns: tuple[str, ...]) -> NDArray[np.float64]:
        """Return numbers of the completed trials of some asked cells, in their order: [n, columns], NaN is unknown.

        Of hundreds of rows these are found in a hundredth of the time that frames of a hundred
        columns take.
        """
        if columns not in self._numbers:
            self._numbers[columns] = self.trials[list(columns)].to_numpy(
                np.float64, na_value=np.nan
            )
        done = [place for cell in cells["cell_id"] if (place := self._places.get(cell)) is not None]
        return self._numbers[columns][done]

    @cached_property
    def _numbers(self) -> dict[tuple[str, ...], NDArray[np.float64]]:
        return {}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {cell: place for place, cell in enumerate(self.trials.index)}

    def decisions(
        self, cells: pd.DataFrame, *, threshold: float = 0.5
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return what a row's trainings decided rightly: images [n] ascending, and right [n_seeds, n].

        The folds of one seed are put together, so that a seed speaks about every image once. Seeds
        of which a fold or a prediction is missing are left out, as are those that tested other
        images than the first; ([], [0, 0]) is a row without any.
        """
        done = [
            cell
            for cell in zip(cells["cell_id"], cells["seed"], strict=True)
            if cell[0] in self.trials.index
        ]
        n_folds, n_test = cells["fold"].nunique(), self.trials["n_test"]
        of_seed: dict[int, list[str]] = {}
        for cell, seed in done:
            of_seed.setdefault(int(seed), []).append(cell)
        first = np.empty(0, np.int64)
        right: list[NDArray[np.bool_]] = []
        for seed in sorted(of_seed):
            folds = [self.tested(cell) for cell in of_seed[seed]]
            image, y_true, score = (
                np.concatenate([fold[name] for fold in folds])
                for name in ("image", "y_true", "score")
            )
            whole = len(folds) == n_folds and len(image) == sum(
                n_test[cell] for cell in of_seed[seed]
            )
            if not whole or not np.isfinite(score).all():
                continue
            order = np.argsort(image, kind="stable")
            first = first if right else image[order]
            if np.array_equal(first, image[order]):
                right.append(((score >= np.float32(threshold)) == (y_true == 1))[order])
        return first, np.stack(right) if right else np.empty((0, 0), np.bool_)

    def compared(self, rows: list[pd.DataFrame]) -> tuple[list[Compared], tuple[str, ...]]:
        """Put rows together that decided the same images, in the order of their first rows; say what is missing."""
        decided = [self.decisions(cells) for cells in rows]
        sets: dict[bytes, list[int]] = {}
        for i, (images, right) in enumerate(decided):
            if len(right):
                sets.setdefault(images.tobytes(), []).append(i)
        absent = sum(
            any(map(self.trials.index.__contains__, cells["cell_id"])) for cells in rows
        ) - sum(map(len, sets.values()))
        lost = (
            (f"{absent} rows lack predictions in the store: they have no interval.",)
            if absent
            else ()
        )
        return [
            Compared(
                indices=indices,
                right=[decided[i][1] for i in indices],
                groups=self.groups(decided[indices[0]][0]),
                images=decided[indices[0]][0],
            )
            for indices in sets.values()
        ], lost

    def groups(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which photograph each image shows: [n].

        Without an audit, byte-identical images share a number.
        """
        audited = self.photographs
        if audited is not None:
            return audited.reindex(images.tolist()).to_numpy(np.int64)
        by_image = self.predictions.drop_duplicates("image").set_index("image")["sha256"]
        return np.asarray(pd.factorize(by_image.reindex(images.tolist()))[0], dtype=np.int64)

    @cached_property
    def photographs(self) -> pd.Series | None:
        """The audit's group of each image of this run's dataset, by image; None where there was no audit."""
        rows: pd.DataFrame = self.store.read(
            "images", columns=["dataset_id", "image", "group_id"]
        ).to_pandas()
        of_dataset = rows[rows["dataset_id"] == self.asked["dataset_id"].iloc[0]]
        return of_dataset.set_index("image")["group_id"] if len(of_dataset) else None

    @cached_property
    def twins(self) -> frozenset[int]:
        """The images of this run's dataset that show a photograph of train too, by the audit; empty without one."""
        rows: pd.DataFrame = self.store.read(
            "images", columns=["dataset_id", "image", "twin_in_train"]
        ).to_pandas()
        of_dataset = rows[rows["dataset_id"] == self.asked["dataset_id"].iloc[0]]
        return frozenset(of_dataset.loc[of_dataset["twin_in_train"].astype(bool), "image"].tolist())


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
            raise UsageError(
                f"There is no run in '{store.address}'. Start one: python -m casting_tune.sweep {sweep}"
            )
        raise UsageError(unknown("sweep in this store", sweep, known))
    if run_id is None:
        run_id = str(of_sweep.sort_values("asked_at", kind="stable")["run_id"].iloc[-1])
    asked = of_sweep[of_sweep["run_id"] == run_id].sort_values("position").reset_index(drop=True)
    if asked.empty:
        raise UsageError(unknown("run", run_id, sorted(set(of_sweep["run_id"]))))
    asked["figures"] = asked["study"].map(_figures)
    trials: pd.DataFrame = store.read("trials", cell_ids=asked["cell_id"]).to_pandas()
    return Answers(store, sweep, run_id, asked, newest(trials))


def newest(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the newest completed trial of each cell, indexed by cell_id."""
    done = trials[trials["status"] == "completed"].sort_values(["started_at", "attempt"])
    return done.drop_duplicates("cell_id", keep="last").set_index("cell_id")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as plain dicts in which a missing value is None.

    In a frame a missing text is NaN and a missing time NaT; both are true, and neither is None.
    """
    known = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


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
        notes.append(
            "The study's recall and F1 are those of ok_front: --positive ok_front shows ours in its view."
        )
    if first["quick"]:
        notes.append(
            "Quick run (small images, few epochs): it shows that all works, not which row is best."
        )
    if len(trials):
        n_test = sorted({int(n) for n in trials["n_test"]})
        span = f"{n_test[0]} to {n_test[-1]}" if len(n_test) > 1 else str(n_test[0])
        notes.append(
            f"Dataset {first['dataset_id']}, {span} test images a training; {device(trials)}."
        )
        shared = [
            f"{values[0]}{unit}" for values, unit in _settings(asked, trials) if len(values) == 1
        ]
        if shared:
            notes.append(f"Every row: {', '.join(shared)}.")
    left = int((~asked["cell_id"].isin(found.trials.index)).sum())
    if left:
        failed = found.store.failed()
        statuses = [
            failed.get(cell, "not run")
            for cell in asked["cell_id"]
            if cell not in found.trials.index
        ]
        counted = ", ".join(
            f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)
        )
        notes.append(f"{left} of {len(asked)} cells have no result: {counted}.")
    notes.append(f"Run {found.run_id}.")
    return tuple(notes)


def _settings(asked: pd.DataFrame, trials: pd.DataFrame) -> list[tuple[list[Any], str]]:
    """Return the different values of what a reader must know of a run's training, each with its unit."""
    cells = asked[asked["kind"] == "cell"]
    return [
        ([f"weights {name}" for name in cells["weights"].dropna().unique()], ""),
        (list(cells["image_px"].dropna().unique()), " px"),
        (list(trials["epochs"].dropna().unique()), " epochs"),
        (list(trials["precision"].dropna().unique()), ""),
    ]


def device(trials: pd.DataFrame) -> str:
    """Say on what some trials ran, and beside how many."""
    kinds = trials[["device", "n_threads", "n_at_once"]].drop_duplicates().itertuples(index=False)
    return "; ".join(
        f"{device}, {threads} threads, {at_once} at once" for device, threads, at_once in kinds
    )
