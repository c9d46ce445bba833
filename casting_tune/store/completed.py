"""A completed cell of the store with its row, configuration, images and predictions.

Input: a store and a cell's id, or the first characters of one. Output: a Cell, which can be trained
again or exported. Trains nothing, writes no row and knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from casting_tune.config import RECIPE, Predictions, TrialConfig, cell_id
from casting_tune.data import manifests, pixel_rules
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
    """A completed cell with the input and the results of its training.

    Attributes:
        row: its row of trials.
        config: its configuration, from the row.
        pack: its images.
        groups: [n] the group of each image, for a grouped split; None otherwise.
        predictions: from the store.
    """

    row: dict[str, Any]
    config: TrialConfig
    pack: Pack
    groups: NDArray[np.int64] | None
    predictions: Predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """A folder of images, with `pack_size` and `skip_bad` as in the sweep."""

    folder: Path
    pack_size: int | None = None
    skip_bad: bool = False


def image_source(
    folder: Path | None, *, pack_size: int | None, skip_bad: bool
) -> ImageSource | None:
    """Return the images of the options --data, --pack-size and --skip-bad; None without --data.

    Raises:
        UsageError: an option of packing without a folder.
    """
    if folder is not None:
        return ImageSource(folder=folder, pack_size=pack_size, skip_bad=skip_bad)
    if pack_size is not None or skip_bad:
        option = "--skip-bad" if skip_bad else "--pack-size"
        raise UsageError(f"{option} requires --data: it changes how a folder of images is packed.")
    return None


def find(store: Store, cell: str) -> dict[str, Any]:
    """Return the row of the newest completed trial of a cell.

    Raises:
        UsageError: no id of a completed cell starts with `cell`, or several do.
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
        raise UsageError(f"'{cell}' matches {len(matching)} cells. Give more characters.")
    if not matching:
        none = f"The store '{store.address}' has no completed cell."
        raise UsageError(unknown("completed cell", cell, known) if known else none)
    row: dict[str, Any] = next(trial for trial in reversed(done) if trial["cell_id"] == matching[0])
    return row


def predictions(store: Store, row: dict[str, Any]) -> pa.Table:
    """Return the rows of predictions of a trial, without those of interrupted attempts."""
    rows = store.read("predictions", cell_ids=[str(row["cell_id"])])
    return rows.filter(pc.field("attempt") == row["attempt"])


def config_of(row: dict[str, Any], *, weights_dir: Path | None = None) -> TrialConfig:
    """Return the configuration of a trial.

    A column that a newer version added is NULL in older rows; its setting was the default then.

    Args:
        row: of trials.
        weights_dir: the folder of `local-dir:` weights, whose path is not stored.

    Raises:
        UsageError: the cell's weights came from a folder and it is not given, or vice versa.
        StoreError: the row has another recipe, or its configuration does not give its key.
    """
    if row["recipe"] != RECIPE:
        raise StoreError(
            f"Cell {row['cell_id']} has recipe {row['recipe']}; this casting_tune trains recipe "
            f"{RECIPE}. Use casting_tune {row['casting_tune']}, which wrote it."
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
                f"Cell {row['cell_id']} was trained from weights of a folder "
                f"({row['weights_id']}), whose path is not stored. Give it with --weights-dir."
            )
        settings["weights"] = f"local-dir:{weights_dir}"
    elif weights_dir is not None:
        raise UsageError(
            f"Cell {row['cell_id']} was trained from {row['weights']} weights, not from a folder. "
            "Remove --weights-dir."
        )
    config = TrialConfig(**settings)
    if cell_id(config, row["dataset_id"]) != row["cell_id"]:
        raise StoreError(
            f"The row of cell {row['cell_id']} does not match its id: another version of "
            f"casting_tune ({row['casting_tune']}) wrote it, or it was changed."
        )
    return config


def load(
    store: Store,
    cell: str,
    *,
    images: ImageSource | None = None,
    weights_dir: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Cell:
    """Return a completed cell with its images: the pack in the store, or a folder.

    Args:
        store: the results.
        cell: its id, or the first characters of one.
        images: the folder of the images; None uses the pack in the store.
        weights_dir: the folder of `local-dir:` weights.
        on_progress: called with (what, done, total).

    Raises:
        UsageError: no such cell, or weights_dir is missing or not used.
        ImagesError: no pack, or the folder has other images than the cell was trained on.
        StoreError: the row is not a valid configuration, or its predictions are missing.
    """
    row = find(store, cell)
    config = config_of(row, weights_dir=weights_dir)
    pack = _pack(store, row, images, on_progress)
    groups = None
    if config.split == "grouped":
        groups = _groups(store, row, pack, _progress(on_progress, "comparing images"))
    return Cell(
        row=row, config=config, pack=pack, groups=groups, predictions=_predictions(store, row)
    )


def _groups(
    store: Store, row: dict[str, Any], pack: Pack, on_progress: Callable[[int, int], None] | None
) -> NDArray[np.int64]:
    """Return the groups of a grouped split; check that they are those of the training."""
    groups = audits.stored_audit(pack, store, on_progress=on_progress).group
    found = audits.split_id(groups)
    if found != row["split_id"]:
        raise ImagesError(
            f"Cell {row['cell_id']} was trained with groups {row['split_id']}; the audit of these "
            f"images gives {found}. Another version of the audit made them."
        )
    return groups


def _predictions(store: Store, row: dict[str, Any]) -> Predictions:
    rows = predictions(store, row)
    if rows.num_rows == 0:
        raise StoreError(
            f"The predictions of cell {row['cell_id']} are missing in the store: they were moved "
            "or removed."
        )
    columns = {name: np.asarray(rows[name].to_pylist()) for name in ("image", "split", "leaked")}
    return Predictions(**columns, y_true=rows["y_true"].to_numpy(), score=rows["score"].to_numpy())


def _pack(
    store: Store,
    row: dict[str, Any],
    images: ImageSource | None,
    on_progress: Callable[[str, int, int], None] | None,
) -> Pack:
    folder = store.root / "packs" / row["dataset_id"]
    if images is None:
        if not folder.is_dir():
            raise ImagesError(
                f"The images of cell {row['cell_id']} of '{store.address}' are not packed on this "
                "machine. Give their folder with --data."
            )
        return packs.open_pack(folder)
    pack = packs.pack(
        images.folder,
        store.root / "packs",
        reading=manifests.reading_of(folder, row["positive"]),
        pixels=pixel_rules.from_text(row.get("pixels"), size_px=images.pack_size),
        skip_bad=images.skip_bad,
        on_progress=_progress(on_progress, "packing images"),
    )
    if pack.dataset_id != row["dataset_id"]:
        raise ImagesError(
            f"'{images.folder}' is dataset {pack.dataset_id}; cell {row['cell_id']} was trained on "
            f"{row['dataset_id']}. Give its images, with the same --pack-size."
        )
    return pack


def _progress(
    on_progress: Callable[[str, int, int], None] | None, what: str
) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None
