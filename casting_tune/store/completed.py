"""A completed cell of the store as what it was made of: its row, its configuration, its images, its predictions.

Comes in: a store and a cell's id, or the beginning of one. Goes out: a Cell that can be trained
again or exported. Trains nothing and writes no row; knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from casting_tune.config import RECIPE, Predictions, TrialConfig, cell_id
from casting_tune.data import pack as packs
from casting_tune.data.pack import Pack
from casting_tune.errors import ImagesError, StoreError, UsageError, unknown
from casting_tune.store import audits
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A completed cell with all that its training took and gave.

    Attributes:
        row: its row of trials.
        config: its configuration, made of the row.
        pack: its images.
        groups: [n] the photograph of each image, for a grouped split; None otherwise.
        predictions: what the store holds of it.
    """

    row: dict[str, Any]
    config: TrialConfig
    pack: Pack
    groups: NDArray[np.int64] | None
    predictions: Predictions


def find(store: Store, cell: str) -> dict[str, Any]:
    """Return the row of the completed trial of a cell, the newest one where there are several.

    Raises:
        UsageError: no completed cell has an id that begins so, or several have.
    """
    done = (
        store.read("trials")
        .filter(pc.field("status") == "completed")
        .sort_by("started_at")
        .to_pylist()
    )
    known = dict.fromkeys(str(trial["cell_id"]) for trial in done)
    matching = [known_cell for known_cell in known if known_cell.startswith(cell)]
    if len(matching) > 1 or not cell:
        raise UsageError(f"'{cell}' begins the ids of {len(matching)} cells. Write more of it.")
    if not matching:
        none = f"The store '{store.address}' holds no completed cell."
        raise UsageError(unknown("completed cell", cell, known) if known else none)
    row: dict[str, Any] = next(trial for trial in reversed(done) if trial["cell_id"] == matching[0])
    return row


def predictions(store: Store, row: dict[str, Any]) -> pa.Table:
    """Return the rows of predictions that a trial wrote: none of an attempt that was cut off."""
    rows = store.read("predictions", cell_ids=[str(row["cell_id"])])
    return rows.filter(pc.field("attempt") == row["attempt"])


def config_of(row: dict[str, Any], *, weights_dir: Path | None = None) -> TrialConfig:
    """Return the configuration that a row of trials was trained from.

    A column that a later version added is NULL in older rows, and its setting was the default then.

    Args:
        row: of trials.
        weights_dir: the folder behind `local-dir:`, which the store does not keep.

    Raises:
        UsageError: the cell's weights came from a folder and it is not given, or the other way round.
        StoreError: the row is of another recipe, or its configuration does not give its key.
    """
    if row["recipe"] != RECIPE:
        raise StoreError(
            f"Cell {row['cell_id']} is of recipe {row['recipe']}, and this casting_tune trains recipe {RECIPE}: "
            f"use casting_tune {row['casting_tune']}, which wrote it."
        )
    given: dict[str, Any] = {
        f.name: row.get(f.name) for f in fields(TrialConfig) if row.get(f.name) is not None
    }
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    settings["toggles"] = tuple(toggle for toggle in TOGGLES if row[toggle])
    if row["weights"] == "local-dir":
        if weights_dir is None:
            raise UsageError(
                f"Cell {row['cell_id']} began from weights of a folder ({row['weights_id']}), and the store keeps no "
                "paths. Name it with --weights-dir."
            )
        settings["weights"] = f"local-dir:{weights_dir}"
    elif weights_dir is not None:
        raise UsageError(
            f"Cell {row['cell_id']} began from {row['weights']} weights, no folder's: drop --weights-dir."
        )
    config = TrialConfig(**settings)
    if cell_id(config, row["dataset_id"]) != row["cell_id"]:
        raise StoreError(
            f"The row of cell {row['cell_id']} does not give that key again: another version of casting_tune wrote it "
            f"({row['casting_tune']}), or it was changed."
        )
    return config


def load(
    store: Store,
    cell: str,
    *,
    images: Path | None = None,
    weights_dir: Path | None = None,
    pack_size: int | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Cell:
    """Return a completed cell with its images: those packed in the store, or those of a folder.

    Args:
        store: where the cell is.
        cell: its id, or the beginning of one.
        images: the folder of the images; None takes the pack that lies in the store.
        weights_dir: the folder behind `local-dir:` weights.
        pack_size, skip_bad: as the sweep was told, where a folder is given.
        on_progress: told (what, done, total).

    Raises:
        UsageError: no such cell, weights_dir is missing or of no use, or a pack's options without a folder.
        ImagesError: there is no pack, or the folder holds other images than the cell was trained on.
        StoreError: the row cannot be read as a configuration, or its predictions are gone.
    """
    row = find(store, cell)
    config = config_of(row, weights_dir=weights_dir)
    if images is None and (pack_size is not None or skip_bad):
        word = "--skip-bad" if skip_bad else "--pack-size"
        raise UsageError(
            f"{word} is about how a folder of images is packed: give it together with --data."
        )
    pack = _pack(
        store, row, images=images, pack_size=pack_size, skip_bad=skip_bad, on_progress=on_progress
    )
    groups = None
    if config.split == "grouped":
        told = _progress(on_progress, "comparing images")
        groups = audits.kept(pack, store, on_progress=told).group
        if audits.split_id(groups) != config.split_id:
            raise ImagesError(
                f"Cell {row['cell_id']} was trained on groups {config.split_id}, and the audit of these images gives "
                f"{audits.split_id(groups)}: another version of the audit made them."
            )
    rows = predictions(store, row)
    if rows.num_rows == 0:
        raise StoreError(
            f"The store holds no predictions of cell {row['cell_id']}: they were moved away or removed."
        )
    columns = {name: np.asarray(rows[name].to_pylist()) for name in ("image", "split", "leaked")}
    return Cell(
        row=row,
        config=config,
        pack=pack,
        groups=groups,
        predictions=Predictions(
            **columns,
            y_true=rows["y_true"].to_numpy(),
            score=rows["score"].to_numpy(),
        ),
    )


def _pack(
    store: Store,
    row: dict[str, Any],
    *,
    images: Path | None,
    pack_size: int | None,
    skip_bad: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> Pack:
    there = store.root / "packs" / row["dataset_id"]
    if images is None:
        if not there.is_dir():
            raise ImagesError(
                f"This machine has no pack of the images of cell {row['cell_id']} of '{store.address}'. "
                "Name their folder with --data."
            )
        return packs.open_pack(there)
    found = packs.pack(
        images,
        store.root / "packs",
        positive=row["positive"],
        size_px=pack_size,
        skip_bad=skip_bad,
        on_progress=_progress(on_progress, "packing images"),
    )
    if found.dataset_id != row["dataset_id"]:
        raise ImagesError(
            f"'{images}' is dataset {found.dataset_id}, and cell {row['cell_id']} was trained on {row['dataset_id']}: "
            "give its images, with the same --pack-size."
        )
    return found


def _progress(
    on_progress: Callable[[str, int, int], None] | None, what: str
) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None
