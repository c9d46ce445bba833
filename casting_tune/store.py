"""The Parquet store: one explicit schema a table; all writing and reading of rows.

    results/cells/<sweep>/<run>.parquet                       what a run of a sweep asked for, one row a cell
    results/epochs/<sweep>/<cell>-<attempt>-<epoch>.parquet   one row an epoch, written when the epoch ends
    results/images/<dataset>/audit-<version>.parquet          what an audit found, one row an image
    results/predictions/<sweep>/<cell>-<attempt>.parquet      one row an image of the validation and test sets
    results/trials/<sweep>/<cell>-<attempt>.parquet           one row a trial: written last, it is the commit

A file is built in memory, put beside its place under a name that readers pass over, fsynced and renamed; it is never
changed after. A cell is done when trials/ holds a row of it with status completed. Knows no torch, Ray or pandas.
"""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from casting_tune.augment import MAGNITUDES, TOGGLES
from casting_tune.errors import StoreError
from casting_tune.trial import TrialConfig

SCHEMA_VERSION = 1

_MEASURED = (
    "accuracy", "recall", "precision", "f1", "specificity", "escape_rate", "overkill_rate",
    "average_precision", "auroc",
)  # fmt: skip
_COUNTED = ("tp", "fp", "tn", "fn")
_STUDY_VIEW = ("recall", "precision", "f1")


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(fields), metadata={"casting_tune.schema_version": str(SCHEMA_VERSION)})


_TEXT, _INT, _REAL, _FLAG, _TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")

TRIALS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("sweep", _TEXT), ("label", _TEXT), ("status", _TEXT), ("error", _TEXT),
    ("backbone", _TEXT), ("weights", _TEXT), ("weights_id", _TEXT), ("dense", _INT), ("dropout", _REAL),
    ("augmentation", _TEXT), *((toggle, _FLAG) for toggle in TOGGLES),
    *((magnitude, _REAL) for magnitude in MAGNITUDES),
    ("image_px", _INT), ("in_channels", _INT), ("batch_size", _INT), ("epochs", _INT), ("seed", _INT),
    ("split", _TEXT), ("split_id", _TEXT), ("n_folds", _INT), ("fold", _INT),
    ("validation_share", _REAL), ("split_seed", _INT),
    ("train_images", _INT), ("test_images", _INT), ("base_lr", _REAL), ("weight_decay", _REAL),
    ("warmup_share", _REAL), ("lr_schedule", _TEXT), ("precision", _TEXT), ("layout", _TEXT),
    ("recipe", _INT), ("dataset_id", _TEXT), ("positive", _TEXT),
    ("n_train", _INT), ("n_validation", _INT), ("n_test", _INT),
    *((f"{split}_{name}", _REAL) for split in ("validation", "test") for name in _MEASURED),
    *((f"{split}_{name}", _INT) for split in ("validation", "test", "test_leaked") for name in _COUNTED),
    *((f"test_{name}_ok", _REAL) for name in _STUDY_VIEW),
    ("epoch_s", _REAL), ("step_s", _REAL), ("image_s", _REAL), ("n_steps", _INT),
    ("latency_one_s", _REAL), ("latency_batch_s", _REAL), ("latency_batch_images", _INT),
    ("peak_memory_bytes", _INT), ("n_parameters", _INT), ("n_statistics", _INT),
    ("device", _TEXT), ("n_threads", _INT), ("n_at_once", _INT),
    ("python", _TEXT), ("torch", _TEXT), ("timm", _TEXT), ("kornia", _TEXT), ("ray", _TEXT), ("casting_tune", _TEXT),
    ("git_commit", _TEXT), ("started_at", _TIME), ("duration_s", _REAL), ("resumed_from", _INT),
    ("micro_batch", _INT),
)  # fmt: skip
"""One row a trial. Metrics are shares in 0..1 at threshold 0.5, the defect as the positive class; `test_*_ok` is the
study's view of the same decisions, `test_leaked_*` counts the test images of which a byte-identical copy was trained or
validated on. `latency_*` are medians; `resumed_from` is the epoch after which this attempt went on, 0 from the start;
`micro_batch` is how many images at most went through the network at once, NULL the whole batch. NULL is unknown."""

EPOCHS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("sweep", _TEXT), ("epoch", _INT), ("n_images", _INT), ("n_steps", _INT),
    ("learning_rate", _REAL), ("train_loss", _REAL), ("validation_loss", _REAL), ("validation_accuracy", _REAL),
    ("train_s", _REAL), ("validation_s", _REAL), ("ended_at", _TIME),
)  # fmt: skip

PREDICTIONS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("split", _TEXT), ("image", _INT), ("path", _TEXT), ("sha256", _TEXT),
    ("leaked", _FLAG), ("y_true", pa.uint8()), ("score", pa.float32()),
)  # fmt: skip

IMAGES = _schema(
    ("dataset_id", _TEXT), ("image", _INT), ("path", _TEXT), ("sha256", _TEXT), ("split", _TEXT),
    ("y_true", pa.uint8()), ("group_id", _INT), ("copy_in_train", _FLAG), ("twin_in_train", _FLAG),
    ("conflict", _FLAG), ("constant", _FLAG), ("outlier", _FLAG), ("finding", _TEXT),
)  # fmt: skip
"""One row an image, written by an audit; `group_id` numbers the photographs. The audit's sentences stand in `finding`
of its first rows."""

CELLS = _schema(
    ("run_id", _TEXT), ("sweep", _TEXT), ("asked_at", _TIME), ("position", _INT), ("cell_id", _TEXT), ("row", _TEXT),
    ("label", _TEXT), ("backbone", _TEXT), ("augmentation", _TEXT), ("batch_size", _INT), ("image_px", _INT),
    ("weights", _TEXT), ("seed", _INT), ("fold", _INT), ("dataset_id", _TEXT), ("quick", _FLAG), ("command", _TEXT),
    ("kind", _TEXT), ("study", _TEXT),
)  # fmt: skip

"""`kind` is cell, baseline or timing; `study` is JSON, the study's published figures by name, where there are any."""

DEFAULTS = {f.name: f.default for f in fields(TrialConfig) if f.default is not MISSING and f.name in TRIALS.names}
SCHEMAS = {"trials": TRIALS, "epochs": EPOCHS, "predictions": PREDICTIONS, "cells": CELLS, "images": IMAGES}


@dataclass(frozen=True, slots=True)
class Store:
    """A results folder. Two stores of the same folder are the same store."""

    root: Path

    def write(self, table: str, sweep: str, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        """Write rows as results/<table>/<sweep>/<name>.parquet, once.

        A column that a row lacks is NULL; a column that the schema lacks is an error.

        Raises:
            StoreError: a file of that name is there, the folder cannot be written, or a column is unknown.
        """
        schema = SCHEMAS[table]
        extra = {key for row in rows for key in row} - set(schema.names)
        if extra:
            raise StoreError(f"Table '{table}' has no column {sorted(extra)}.")
        buffer = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd", write_page_checksum=True
        )
        place = self.root / table / sweep / f"{name}.parquet"
        try:
            _put(place, buffer.getvalue())
        except FileExistsError as error:
            raise StoreError(f"{place} is there already; store files are written once.") from error
        except OSError as error:
            raise StoreError(f"Cannot write {place}: {error.strerror}. Free or unlock the results folder.") from error
        return place

    def read(self, table: str, *, columns: list[str] | None = None, cell_ids: Iterable[str] | None = None) -> pa.Table:
        """Return a table's rows, the files in the order of their names; an absent folder is no rows.

        With `cell_ids`, only files of those cells are opened (their names begin with the cell's id).
        """
        files = self.files(table)
        if cell_ids is not None:
            wanted = set(cell_ids)
            files = [file for file in files if file.name.partition("-")[0] in wanted]
        schema = SCHEMAS[table]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        parts = [_read(file, schema) for file in files]
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def files(self, table: str) -> list[Path]:
        """Return a table's files in the order of their names."""
        return sorted((self.root / table).glob("*/*.parquet"))

    def completed(self) -> set[str]:
        """Return the ids of the cells that are done."""
        trials = self.read("trials", columns=["cell_id", "status"])
        return set(trials.filter(pc.field("status") == "completed")["cell_id"].to_pylist())

    def failed(self) -> dict[str, str]:
        """Return the cells that ended without completing, each with its last status."""
        done = self.completed()
        trials = self.read("trials", columns=["cell_id", "status", "attempt"]).sort_by("attempt")
        ended = zip(trials["cell_id"].to_pylist(), trials["status"].to_pylist(), strict=True)
        return {cell: status for cell, status in ended if cell not in done}

    def next_attempt(self, cell_id: str) -> int:
        """Return the number of a cell's next attempt, from 1, whatever an earlier one left behind."""
        files = (
            file for table in ("epochs", "predictions", "trials") for file in self.root.glob(f"{table}/*/{cell_id}-*")
        )
        return max((int(file.stem.split("-")[1]) for file in files), default=0) + 1

    def checkpoint(self, cell_id: str) -> Path:
        """Return where a cell's checkpoint lies while it trains: beside the tables, read by no query."""
        return self.root / "checkpoints" / f"{cell_id}.pt"

    def weights(self, cell_id: str, *, best: bool = False) -> Path:
        """Return where a completed cell's weights lie if they were kept: of its last epoch, or of its best."""
        return self.root / "weights" / f"{cell_id}{'-best' if best else ''}.safetensors"

    @contextlib.contextmanager
    def running(self, sweep: str) -> Iterator[None]:
        """Hold a sweep for this process, so that two drivers do not train the same cells.

        The operating system lets go of it when the process ends, however it ends.

        Raises:
            StoreError: another process holds it, with its host and number.
        """
        import fcntl

        file = self.root / f".running-{sweep}"
        with file.open("a+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                held.seek(0)
                raise StoreError(
                    f"Sweep '{sweep}' is being run in this store by {held.read()}. Wait for it, or stop it."
                ) from error
            held.truncate(0)
            held.write(f"process {os.getpid()} on {platform.node()}")
            held.flush()
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Make the folder and write to it once, so that no trial trains for a row that cannot be kept.

        Raises:
            StoreError: the folder cannot be made or written.
        """
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"The results folder '{self.root}' cannot be written: {error.strerror}. Name another with --results."
            ) from error


def _put(place: Path, content: pa.Buffer) -> None:
    """Make a file appear whole: temporary name, fsync, then a link that fails if the name is taken."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.parent / f".{place.name}.{uuid.uuid4().hex}"  # pandas, pyarrow and DuckDB's globs pass over dots
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, place)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    """Return a file's rows; a column that a later version added is NULL in files written before.

    A setting is its default there, as in the key of a cell: what a later version made a setting was fixed before.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            version = (parquet.schema_arrow.metadata or {}).get(b"casting_tune.schema_version", b"0")
            there = set(parquet.schema_arrow.names)
            rows = parquet.read(columns=[name for name in schema.names if name in there])
        lacking = {
            name: pa.repeat(pa.scalar(DEFAULTS.get(name), schema.field(name).type), rows.num_rows)
            for name in schema.names
            if name not in there
        }
        table = pa.table(
            {name: lacking[name] if name in lacking else rows[name] for name in schema.names}, schema=schema
        )
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise StoreError(
            f"{file} cannot be read as a store file ({reason}). Move it away; its cell will run again."
        ) from error
    if int(version) > SCHEMA_VERSION:
        raise StoreError(f"{file} was written by a later casting_tune (schema {int(version)}). Update casting_tune.")
    return table
