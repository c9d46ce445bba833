"""The Parquet store: all writing and reading of rows.

    results/cells/<sweep>/<run>[-<n>].parquet                 cells of a run, one row each
    results/epochs/<sweep>/<cell>-<attempt>-<epoch>.parquet   one row, written when the epoch ends
    results/images/<dataset>/audit-<version>.parquet          an audit, one row per image
    results/predictions/<sweep>/<cell>-<attempt>.parquet      validation and test, one row per image
    results/probes/<device>/<probe>.parquet                   measured cost of a network
    results/trials/<sweep>/<cell>-<attempt>.parquet           one row, written last: the commit

A file is built in memory, written whole, and never changed. A cell is done when trials/ has a row
of it with status completed. `results` is a folder or `s3://BUCKET/PREFIX`; a row that a bucket does
not accept waits in a spool on this machine. Knows no torch, Ray or pandas.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from casting_tune import machine
from casting_tune.errors import StoreError, unreadable
from casting_tune.store import cache, storage, table_file
from casting_tune.store.local import Folder, reason
from casting_tune.store.redact import scrub
from casting_tune.store.s3 import SCHEME, Bucket, is_remote, is_temporary
from casting_tune.store.schema import SCHEMAS
from casting_tune.store.spool import drain
from casting_tune.store.table_file import is_table_file

LOG = logging.getLogger(__name__)
REDACTED = ("error", "traceback", "command")
"""Columns whose text comes from a machine or a person, and may contain secrets."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")  # it cannot leave the table's folder


@dataclass(frozen=True, slots=True)
class Store:
    """A results folder, or a prefix of an S3 bucket.

    Two stores of the same address are the same store. Attempts, files that are no tables, locks
    and the spool are functions that take a store: `attempts`, `artifacts`, `locks`, `spool`.

    Example:
        >>> from casting_tune import Store
        >>> store = Store("results")
        >>> len(store.completed()), store.failed()
        (9, {})
    """

    address: Path | str

    def __post_init__(self) -> None:
        written = str(self.address)
        if not written or ("://" in written and not written.startswith(SCHEME)):
            raise StoreError(
                f"Invalid results address '{written}'. Use a folder or s3://BUCKET/PREFIX with "
                "--results."
            )
        if not written.startswith(SCHEME):
            object.__setattr__(self, "address", Path(self.address))

    @property
    def place(self) -> storage.Place:
        """The folder or bucket of the files."""
        return storage.at(self.address)

    @property
    def root(self) -> Path:
        """The folder of this machine for files that are no tables: packs, drawings, checkpoints.

        For a bucket it is a cache.
        """
        place = self.place
        return place.root if isinstance(place, Folder) else place.cache

    @property
    def spool_folder(self) -> Folder:
        """The folder of this machine for rows that the bucket did not accept."""
        return Folder(self.root / "spool")

    def shown(self, name: str) -> str:
        """Return the full address of a file, relative to the store, for a message."""
        return f"{str(self.address).rstrip('/')}/{name}"

    def absolute(self) -> Store:
        """Return the same store with an address that is valid in every working folder."""
        return Store(self.address.resolve()) if isinstance(self.address, Path) else self

    def write(self, table: str, sweep: str, name: str, rows: Sequence[dict[str, Any]]) -> PurePath:
        """Write rows as results/<table>/<sweep>/<name>.parquet, once.

        A missing column is NULL; an unknown column is an error. A file that a bucket does not
        accept waits in the spool; a later write or the next run writes it.

        Raises:
            StoreError: the file exists, the place cannot be written, a column is unknown, or a name
                is invalid.
        """
        schema = SCHEMAS[table]
        extra = {key for row in rows for key in row} - set(schema.names)
        if extra:
            raise StoreError(f"Table '{table}' has no column {sorted(extra)}.")
        for part in (sweep, name):
            if not _NAME.fullmatch(part):
                raise StoreError(
                    f"Invalid name of a store file: '{part}'. Use letters, digits, '_', '-', '.'."
                )
        kept = [row | {key: scrub(row[key]) for key in REDACTED if row.get(key)} for row in rows]
        return self.write_table(
            f"{table}/{sweep}/{name}.parquet", pa.Table.from_pylist(kept, schema=schema)
        )

    def write_table(self, file: str, rows: pa.Table) -> PurePath:
        """Write rows with their table's schema as a file, relative to the store.

        Raises:
            StoreError: as `write`.
        """
        place, content = self.place, table_file.serialised(rows)
        try:
            if isinstance(place, Bucket) and drain(self):
                # in its turn: a trial's row must not be written before its predictions
                self.spool_folder.put(file, content)
            else:
                place.put(file, content)
        except FileExistsError as error:
            raise StoreError(
                f"{self.shown(file)} already exists; store files are written once."
            ) from error
        except OSError as error:
            why = f"Cannot write {self.shown(file)}: {reason(error)}."
            if isinstance(place, Folder):
                raise StoreError(f"{why} Check free space and permissions.") from error
            self._spool(file, content, why)
            if not is_temporary(error):
                raise StoreError(
                    f"{why} It waits in {self.spool_folder.root}. Correct this; then repeat the "
                    "command."
                ) from error
        return place.path(file)

    def _spool(self, file: str, content: pa.Buffer, why: str) -> None:
        try:
            self.spool_folder.put(file, content)
        except OSError as error:
            raise StoreError(
                f"{why} Cannot write to {self.spool_folder.root} either: {reason(error)}."
            ) from error
        LOG.warning("%s It waits in %s.", why, self.spool_folder.root)

    def read(
        self,
        table: str,
        *,
        columns: list[str] | None = None,
        cell_ids: Iterable[str] | None = None,
        encoded: Sequence[str] = (),
    ) -> pa.Table:
        """Return a table's rows in the order of their files; a missing folder is no rows.

        Hundreds of files of a folder are read once and stored together in .cache, which can be
        deleted at any time.

        Args:
            table: name of the table.
            columns: to return; None is all.
            cell_ids: read files of these cells only; their names start with the cell's id.
            encoded: columns to return as dictionaries: seven million rows of text would take a
                gigabyte.

        Raises:
            StoreError: a file cannot be read, or was written by a newer version.
        """
        files = wanted = self._names(table)
        if cell_ids is not None:
            ids = set(cell_ids)
            wanted = [file for file in files if file.rpartition("/")[2].partition("-")[0] in ids]
        whole = SCHEMAS[table]
        fields = [_encoded(whole.field(name), encoded) for name in columns or whole.names]
        is_folder = isinstance(self.place, Folder)
        return cache.read(
            self.root / ".cache" / f"{table}.parquet" if is_folder else None,
            cache.Files(
                root=self.root,
                names=files,
                schema=whole,
                read_file=self.read_file,
                n_threads=machine.cpus() if is_folder else 16,  # a bucket: mostly waiting
            ),
            wanted,
            pa.schema(fields),
        )

    def read_file(self, file: str, schema: pa.Schema) -> pa.Table:
        """Return the rows of a file, relative to the store, with the columns of a schema.

        A column that the file does not have is NULL, or a setting's default.

        Raises:
            StoreError: it cannot be read, or was written by a newer version.
        """
        try:
            return table_file.read(self.place.source(file), schema, name=self.shown(file))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from error

    def check_equal(self, file: str, rows: pa.Table) -> None:
        """Raise StoreError unless a file, relative to the store, contains these rows."""
        if not self.read_file(file, rows.schema).equals(rows):
            raise StoreError(
                f"{self.shown(file)} does not contain the rows that were written. Check the disk."
            )

    def version(self, file: str) -> int:
        """Return the schema version of a file, relative to the store; 0 if it has none.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return table_file.version(self.place.source(file))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: str, error: Exception) -> StoreError:
        if isinstance(error, OSError) and is_remote(error):
            return StoreError(f"{self.address} does not respond: {reason(error)}. Try again.")
        if isinstance(error, PermissionError):
            return StoreError(unreadable(self.place.path(file), error))
        return StoreError(
            f"{self.shown(file)} cannot be read as a store file "
            f"({str(error).splitlines()[0][:200]}). Move it away with 'casting-tune store verify "
            f"--quarantine --results {self.address}'; its cell will run again."
        )

    def files(self, table: str) -> list[PurePath]:
        """Return the files of a table, in the order of their names.

        Of the audits of a dataset, only the newest version counts: each has one row per image.
        """
        return [self.place.path(name) for name in self._names(table)]

    def names(self, under: str) -> list[str]:
        """Return the names of all files below a folder, relative to the store, with hidden ones.

        Raises:
            StoreError: the place cannot be read.
        """
        try:
            return self.place.names(under)
        except OSError as error:
            raise StoreError(f"Cannot read {self.address}: {reason(error)}. Try again.") from error

    def _names(self, table: str) -> list[str]:
        names = [name for name in self.names(table) if is_table_file(name)]
        return table_file.newest_audits(names) if table == "images" else names

    def move(self, file: str, to: str) -> None:
        """Rename a file of the store.

        Raises:
            StoreError: the place cannot be written.
        """
        try:
            self.place.move(file, to)
        except OSError as error:
            raise StoreError(f"Cannot move {self.shown(file)}: {reason(error)}.") from error

    def completed(self) -> set[str]:
        """Return the ids of the completed cells."""
        trials = self.read("trials", columns=["cell_id", "status"])
        return set(trials.filter(pc.field("status") == "completed")["cell_id"].to_pylist())

    def failed(self) -> dict[str, str]:
        """Return the cells that ended without completing, each with its last status."""
        done = self.completed()
        trials = self.read("trials", columns=["cell_id", "status", "attempt"]).sort_by("attempt")
        ended = zip(trials["cell_id"].to_pylist(), trials["status"].to_pylist(), strict=True)
        return {cell: status for cell, status in ended if cell not in done}

    def check_writable(self) -> None:
        """Write and delete a test file, so that no trial is trained in vain; write spooled files.

        Raises:
            StoreError: the place cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.place.put(probe, pa.py_buffer(b"casting_tune"))
            self.place.delete(probe)
        except OSError as error:
            raise StoreError(
                f"The results folder '{self.address}' cannot be written: {reason(error)}. "
                "Use another one with --results."
            ) from error
        drain(self)


def _encoded(field: pa.Field, encoded: Sequence[str]) -> pa.Field:
    if field.name not in encoded:
        return field
    return field.with_type(pa.dictionary(pa.int32(), field.type))
