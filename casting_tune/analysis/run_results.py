"""The cells of one run of a sweep and their results: the input of every table.

Input: a store, a sweep's name, perhaps a run. Output: RunResults, with cells in the order of the
sweep, the newest completed trial of each, and their test predictions. A cell is found by its id,
whichever sweep trained it. Computes no metric.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.analysis import best_row, image_groups
from casting_tune.analysis.best_row import Best
from casting_tune.errors import UsageError, unknown
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RunResults:
    """A run of a sweep and the results of its cells in the store.

    Attributes:
        cells: one row per cell in the order of the sweep: the columns of `schema.CELLS`, and
            `figures`, the published figures as a dict.
        trials: the completed trials: the columns of `schema.TRIALS`, indexed by cell_id.
        kind: of the defects, only those of this kind count; "" counts all. See `class_view.view`.
    """

    store: Store
    sweep: str
    run_id: str
    cells: pd.DataFrame
    trials: pd.DataFrame
    kind: str = ""

    @cached_property
    def best(self) -> Best | None:
        """The best row and its best training, the same in every table, report and command.

        The best row has the highest mean validation accuracy at threshold 0.5 over its completed
        trainings. Of equal rows it is the one with the lowest mean cross-entropy on the validation
        images; if that is equal too, the first in the order of the sweep. The same rule chooses
        the best training of the row. None without a completed training.
        """
        return best_row.choose(self)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The test predictions of the completed trials: image, sha256, leaked, y_true, score, kind.

        The rows of a cell are together. cell_id, sha256 and kind are categories, since there may be
        millions of rows.
        """
        columns = [
            "cell_id", "attempt", "split", "image", "sha256", "leaked", "y_true", "score", "kind",
        ]  # fmt: skip
        read = self.store.read(
            "predictions",
            columns=columns,
            cell_ids=self.trials.index,
            encoded=["cell_id", "split", "sha256", "kind"],
        )
        cells = read.column("cell_id").unify_dictionaries().to_pandas().cat
        attempt = self.trials["attempt"].reindex(cells.categories).to_numpy(np.float64)
        # an interrupted attempt may have left predictions too
        last = read.column("attempt").to_numpy() == attempt[cells.codes]
        kept = last & (read.column("split").to_pandas() == "test").to_numpy()
        read = read.drop_columns(["attempt", "split"])
        if not kept.all():
            read = read.filter(kept)
        rows: pd.DataFrame = read.unify_dictionaries().to_pandas(
            split_blocks=True, self_destruct=True
        )
        if self.kind:
            rows = rows[(rows["y_true"] == 0) | (rows["kind"] == self.kind)].reset_index(drop=True)
        # files of the store are in the order of their cells, unless two sweeps wrote them
        if (np.diff(rows["cell_id"].cat.codes) < 0).any():
            return rows.sort_values("cell_id", kind="stable", ignore_index=True)
        return rows

    @cached_property
    def _parts(self) -> dict[str, slice]:
        """The positions of the predictions of each cell."""
        cells = self.predictions["cell_id"].cat
        ends = np.cumsum(np.bincount(cells.codes, minlength=len(cells.categories))).tolist()
        return {
            cell: slice(start, end)
            for cell, start, end in zip(cells.categories, [0, *ends], ends, strict=False)
        }

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of `predictions` as arrays: image, y_true, score, leaked.

        An image is leaked if train has a byte copy of it or, once the dataset is audited, another
        image of its photograph.
        """
        return {
            "image": self.predictions["image"].to_numpy(np.int64),
            "y_true": self.predictions["y_true"].to_numpy(np.uint8),
            "score": self.predictions["score"].to_numpy(np.float32),
            "leaked": self._copied | self._has_sibling,
        }

    @cached_property
    def _copied(self) -> NDArray[np.bool_]:
        return self.predictions["leaked"].fillna(value=False).to_numpy(np.bool_)

    @cached_property
    def _has_sibling(self) -> NDArray[np.bool_]:
        """Whether the photograph of each prediction is also in train; grouped splits have none."""
        official = self.trials["split"] == "official"
        cells = self.predictions["cell_id"].cat
        is_official = official.reindex(cells.categories, fill_value=False).to_numpy(np.bool_)
        if not (self.twins and is_official.any()):
            return np.zeros(len(self.predictions), np.bool_)
        of_twins = np.isin(self.predictions["image"].to_numpy(np.int64), sorted(self.twins))
        return is_official[cells.codes] & of_twins

    @cached_property
    def n_leaked(self) -> tuple[int, int]:
        """The leaked test images of this run, and those of them with a byte copy in train."""
        leaked, copied = self.columns["leaked"], self._copied
        image = self.columns["image"]
        return len(np.unique(image[leaked])), len(np.unique(image[copied]))

    def tested(self, cell_id: str) -> dict[str, NDArray[Any]]:
        """Return the test predictions of a cell as arrays [n]: image, y_true, score, leaked."""
        part = self._parts.get(cell_id, slice(0, 0))
        return {name: column[part] for name, column in self.columns.items()}

    def kinds(self, cell_id: str) -> NDArray[np.object_]:
        """Return the kind of defect of the test images of a cell, [n]; None is unknown."""
        part = self.predictions["kind"].iloc[self._parts.get(cell_id, slice(0, 0))]
        return part.astype(object).where(part.notna(), None).to_numpy()

    def rows(self, kind: str = "cell") -> list[tuple[str, pd.DataFrame]]:
        """Return the rows of one kind in the order of the sweep: the label and cells of each."""
        of_kind = self.cells[self.cells["kind"] == kind]
        return [(str(row), cells) for row, cells in of_kind.groupby("row", sort=False)]

    def completed(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the completed trials of some cells, in their order."""
        return self.trials.loc[[cell for cell in cells["cell_id"] if cell in self.trials.index]]

    def numbers(self, cells: pd.DataFrame, columns: tuple[str, ...]) -> NDArray[np.float64]:
        """Return columns of the completed trials of some cells as [n, columns]; NaN is unknown.

        A hundred times as fast as `completed` for hundreds of rows.
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

    def groups(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the photograph that each image shows: [n].

        Without an audit, byte-identical images share a number.
        """
        if self.photo_groups is not None:
            return np.array([self.photo_groups[image] for image in images.tolist()], np.int64)
        by_image = self.predictions.drop_duplicates("image").set_index("image")["sha256"]
        return np.asarray(pd.factorize(by_image.reindex(images.tolist()))[0], dtype=np.int64)

    @cached_property
    def dataset_id(self) -> str:
        """The dataset of this run."""
        return str(self.cells["dataset_id"].iloc[0])

    @cached_property
    def photo_groups(self) -> dict[int, int] | None:
        """The photograph of each image of the dataset; None without an audit."""
        return image_groups.photo_groups(self.store, self.dataset_id)

    @cached_property
    def twins(self) -> frozenset[int]:
        """The images of the dataset that show a photograph of train too; empty without an audit."""
        return image_groups.twins(self.store, self.dataset_id)


def load(store: Store, sweep: str, run_id: str | None = None) -> RunResults:
    """Return the results of a run of a sweep; by default of its last run.

    Raises:
        UsageError: sweep or run not found in the store.
    """
    runs: pd.DataFrame = store.read("cells").to_pandas()
    of_sweep = runs[runs["sweep"] == sweep]
    if of_sweep.empty:
        known = sorted(set(runs["sweep"]))
        if not known:
            raise UsageError(
                f"No runs in '{store.address}'. Start one: python -m casting_tune.sweep {sweep}"
            )
        raise UsageError(unknown("sweep in this store", sweep, known))
    if run_id is None:
        run_id = str(of_sweep.sort_values("asked_at", kind="stable")["run_id"].iloc[-1])
    cells = of_sweep[of_sweep["run_id"] == run_id].sort_values("position").reset_index(drop=True)
    if cells.empty:
        raise UsageError(unknown("run", run_id, sorted(set(of_sweep["run_id"]))))
    cells["figures"] = cells["study"].map(_figures)
    trials: pd.DataFrame = store.read("trials", cell_ids=cells["cell_id"]).to_pandas()
    return RunResults(store, sweep, run_id, cells, newest(trials))


def newest(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the newest completed trial of each cell, indexed by cell_id."""
    done = trials[trials["status"] == "completed"].sort_values(["started_at", "attempt"])
    return done.drop_duplicates("cell_id", keep="last").set_index("cell_id")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as plain dicts in which a missing value is None.

    In a frame a missing text is NaN and a missing time is NaT: both are true and not None.
    """
    known = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def _figures(text: Any) -> dict[str, float]:
    return dict(json.loads(text)) if isinstance(text, str) else {}
