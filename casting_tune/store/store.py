"""The Parquet store: all writing and reading of rows.

    results/cells/<sweep>/<run>[-<n>].parquet                 what a run of a sweep asked for, one row a cell
    results/epochs/<sweep>/<cell>-<attempt>-<epoch>.parquet   one row an epoch, written when the epoch ends
    results/images/<dataset>/audit-<version>.parquet          what an audit found, one row an image; the newest is read
    results/predictions/<sweep>/<cell>-<attempt>.parquet      one row an image of the validation and test sets
    results/probes/<device>/<probe>.parquet                   what a few steps of a network told of its cost
    results/trials/<sweep>/<cell>-<attempt>.parquet           one row a trial: written last, it is the commit

A file is built in memory, put in its place whole, and never changed after. A cell is done when
trials/ holds a row of it with status completed. `results` is a folder or `s3://BUCKET/PREFIX`; a
row that a bucket does not take waits in a spool on this machine. Knows no torch, Ray or pandas.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from casting_tune.errors import StoreError, unreadable
from casting_tune.store import cache, storage
from casting_tune.store.redact import scrub
from casting_tune.store.schema import DEFAULTS, SCHEMA_VERSION, SCHEMAS, VERSION_KEY
from casting_tune.store.storage import Bucket, Folder, Held, Lost

LOG = logging.getLogger(__name__)
SCRUBBED = ("error", "traceback", "command")
"""Columns whose text comes from a machine or a person, and may hold what no store may keep."""
_OF_CELL = re.compile(r"(\w+)-(\d+)(?:-\d+)?")  # <cell>-<attempt>, and the epoch in epochs
_AUDIT = re.compile(r"(images/[^/]+)/audit-(\d+)\.parquet")
_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}"
)  # of a folder or file below a table: never above it


@dataclass(frozen=True, slots=True)
class Store:
    """A results folder, or a prefix of an S3 bucket.

    Two stores of the same address are the same store.
    """

    address: Path | str

    def __post_init__(self) -> None:
        written = str(self.address)
        if not written or ("://" in written and not written.startswith(storage.SCHEME)):
            raise StoreError(
                f"A store is a folder or s3://BUCKET/PREFIX, not '{written}'. Name one with --results."
            )
        if not written.startswith(storage.SCHEME):
            object.__setattr__(self, "address", Path(self.address))

    @property
    def _place(self) -> Folder | Bucket:
        return storage.at(self.address)

    @property
    def root(self) -> Path:
        """The folder of this machine for what is no row: packs, drawings, checkpoints.

        A bucket's is a cache.
        """
        place = self._place
        return place.root if isinstance(place, Folder) else place.cache

    def shown(self, name: str) -> str:
        """Return the address of a file, named as `names` does, for a message: in a bucket it starts with s3://."""
        return f"{str(self.address).rstrip('/')}/{name}"

    def absolute(self) -> Store:
        """Return the same store by an address that holds in every working folder."""
        return Store(self.address.resolve()) if isinstance(self.address, Path) else self

    def write(self, table: str, sweep: str, name: str, rows: Sequence[dict[str, Any]]) -> PurePath:
        """Write rows as results/<table>/<sweep>/<name>.parquet, once.

        A column that a row lacks is NULL; a column that the schema lacks is an error. What a bucket
        does not take waits in the spool, and is put by a later write or when the next run starts.

        Raises:
            StoreError: a file of that name is there, the place cannot be written, a column is unknown, or a name would
                lead out of the table.
        """
        schema = SCHEMAS[table]
        extra = {key for row in rows for key in row} - set(schema.names)
        if extra:
            raise StoreError(f"Table '{table}' has no column {sorted(extra)}.")
        for part in (sweep, name):
            if not _NAME.fullmatch(part):
                raise StoreError(
                    f"'{part}' cannot name a store file: letters, digits, '_', '-' and '.' can."
                )
        kept = [row | {key: scrub(row[key]) for key in SCRUBBED if row.get(key)} for row in rows]
        return self.write_table(
            f"{table}/{sweep}/{name}.parquet", pa.Table.from_pylist(kept, schema=schema)
        )

    def write_table(self, file: str, rows: pa.Table) -> PurePath:
        """Write rows that have their table's schema as a file, named as `names` does.

        Raises:
            StoreError: as `write`.
        """
        place, content = self._place, serialised(rows)
        try:
            if isinstance(place, Bucket) and self.drain():
                self._spool.put(
                    file, content
                )  # in its turn: a trial's row never overtakes its predictions
            else:
                place.put(file, content)
        except FileExistsError as error:
            raise StoreError(
                f"{self.shown(file)} is there already; store files are written once."
            ) from error
        except OSError as error:
            why = f"Cannot write {self.shown(file)}: {storage.reason(error)}."
            if isinstance(place, Folder):
                raise StoreError(f"{why} Free or unlock the results folder.") from error
            try:
                self._spool.put(file, content)
            except OSError as full:
                raise StoreError(
                    f"{why} Nor can {self._spool.root} hold it: {storage.reason(full)}."
                ) from full
            LOG.warning("%s It waits in %s.", why, self._spool.root)
            if not storage.passing(error):
                raise StoreError(
                    f"{why} It waits in {self._spool.root}; the same command goes on."
                ) from error
        return place.path(file)

    @property
    def _spool(self) -> Folder:
        return Folder(self.root / "spool")

    def drain(self) -> list[str]:
        """Put what waits in this machine's spool, if the bucket answers now; return what waits still.

        Trials come last. Where another file took the name meanwhile, the spooled one goes to
        quarantine/: none is lost.
        """
        place = self._place
        if isinstance(place, Folder) or not self._spool.root.is_dir():
            return []
        files = [file for file in self._spool.names("") if self.is_table_file(file)]
        waiting = sorted(files, key=lambda file: (file.startswith("trials/"), file))
        for done, file in enumerate(waiting):
            try:
                content = pa.py_buffer((self._spool.root / file).read_bytes())
                try:
                    place.put(file, content, patience_s=0)
                except FileExistsError:
                    place.put(f"quarantine/{file}~{uuid.uuid4().hex[:8]}", content, patience_s=0)
            except FileNotFoundError:
                continue  # another process of this machine drained it
            except OSError:
                return waiting[done:]
            self._spool.delete(file)
        return []

    def settle(self) -> None:
        """See that nothing waits in this machine's spool.

        Raises:
            StoreError: something does, and the bucket does not take it.
        """
        waiting = self.drain()
        if waiting:
            raise StoreError(
                f"{len(waiting)} files could not be put into {self.address} and wait in {self._spool.root}. The next "
                f"run puts them, or: casting-tune store verify --results {self.address}"
            )

    def read(
        self,
        table: str,
        *,
        columns: list[str] | None = None,
        cell_ids: Iterable[str] | None = None,
        encoded: Sequence[str] = (),
    ) -> pa.Table:
        """Return a table's rows, the files in the order of their names; an absent folder is no rows.

        With `cell_ids`, only files of those cells are read (their names begin with the cell's id).
        Columns in `encoded` are dictionaries: seven million rows of text would fill a gigabyte.
        Hundreds of files of a folder are read once and kept together in its .cache, which can be
        thrown away.

        Raises:
            StoreError: a file cannot be read, or was written by a later version.
        """
        files = wanted = self._names(table)
        if cell_ids is not None:
            ids = set(cell_ids)
            wanted = [file for file in files if file.rpartition("/")[2].partition("-")[0] in ids]
        whole = SCHEMAS[table]
        schema = pa.schema(
            [_encoded(whole.field(name), encoded) for name in columns or whole.names]
        )
        place = self._place
        return cache.read(
            self.root / ".cache" / f"{table}.parquet" if isinstance(place, Folder) else None,
            files,
            wanted,
            schema,
            root=self.root,
            whole=whole,
            read_file=self.read_file,
            at_once=os.cpu_count() or 1
            if isinstance(place, Folder)
            else 16,  # of a bucket: waiting, not work
        )

    def read_file(self, file: str, schema: pa.Schema) -> pa.Table:
        """Return the rows of a file, named as `names` does; a column of a later version is NULL in older files.

        A setting is its default there, as in the key of a cell: what a later version made a setting
        was fixed before.

        Raises:
            StoreError: it cannot be read, or was written by a later version.
        """
        try:
            with pq.ParquetFile(
                self._place.source(file), page_checksum_verification=True
            ) as parquet:
                held = parquet.schema_arrow
                version, there = version_of(held), set(held.names)
                wanted = (
                    None
                    if held.equals(schema)
                    else [name for name in schema.names if name in there]
                )
                # a thread each for a hundred columns of one row would take three times as long
                rows = parquet.read(columns=wanted, use_threads=False)
            if version <= SCHEMA_VERSION:
                if rows.schema.equals(
                    schema
                ):  # to put a hundred columns together again takes as long as to read them
                    return rows.replace_schema_metadata(schema.metadata)
                lacking = {
                    name: pa.repeat(
                        pa.scalar(DEFAULTS.get(name), schema.field(name).type), rows.num_rows
                    )
                    for name in schema.names
                    if name not in there
                }
                columns = {
                    name: lacking[name] if name in lacking else rows[name] for name in schema.names
                }
                return pa.table(columns, schema=schema)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from error
        raise later(self.shown(file), version)

    def check_equal(self, file: str, rows: pa.Table) -> None:
        """Raise StoreError unless a file, named as `names` does, holds these rows."""
        if not self.read_file(file, rows.schema).equals(rows):
            raise StoreError(
                f"{self.shown(file)} does not hold the rows that were written to it. Check the disk."
            )

    def version(self, file: str) -> int:
        """Return the schema version of a file, named as `names` does; 0 where it says none.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with pq.ParquetFile(self._place.source(file)) as parquet:
                return version_of(parquet.schema_arrow)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: str, error: Exception) -> StoreError:
        if isinstance(error, OSError) and storage.remote(error):
            return StoreError(
                f"{self.address} does not answer: {storage.reason(error)}. Try again."
            )
        if isinstance(error, PermissionError):
            return StoreError(unreadable(self._place.path(file), error))
        return StoreError(
            f"{self.shown(file)} cannot be read as a store file ({str(error).splitlines()[0][:200]}). Move it "
            f"away with 'casting-tune store verify --quarantine --results {self.address}'; its cell will run again."
        )

    @staticmethod
    def is_table_file(name: str) -> bool:
        """Say whether a name, as `names` gives it, is one that readers of a table open."""
        parts = name.split("/")
        return (
            len(parts) == 3
            and parts[2].endswith(".parquet")
            and not any(part.startswith(".") for part in parts)
        )

    def files(self, table: str) -> list[PurePath]:
        """Return the files that hold a table's rows, in the order of their names.

        Of the audits of a dataset, only the newest version is read: each has one row per image.
        """
        return [self._place.path(name) for name in self._names(table)]

    def names(self, under: str) -> list[str]:
        """Return the names of all files below a folder of the store, relative to it, dot names too.

        Raises:
            StoreError: the bucket does not answer.
        """
        try:
            return self._place.names(under)
        except OSError as error:
            raise StoreError(
                f"Cannot read {self.address}: {storage.reason(error)}. Try again."
            ) from error

    def _names(self, table: str) -> list[str]:
        names = [name for name in self.names(table) if self.is_table_file(name)]
        return _newest_audits(names) if table == "images" else names

    def move(self, file: str, to: str) -> None:
        """Give a file of the store another name.

        Raises:
            StoreError: the place cannot be written.
        """
        try:
            self._place.move(file, to)
        except OSError as error:
            raise StoreError(f"Cannot move {self.shown(file)}: {storage.reason(error)}.") from error

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

    def attempts_since(self, cell_id: str, attempt: int, *, epochs: int) -> range:
        """Return the attempts of a cell that left anything after a known one; its `stop` is the next one's number.

        The names of a cell's files follow from attempt and epoch, so ten thousand other cells in
        the store cost nothing. Between a sweep's start, when all files were listed, and its end no
        attempt is taken out of the middle: `store verify --quarantine` waits for it.

        Args:
            cell_id: the cell.
            attempt: 0, or one that was the cell's last when the sweep began.
            epochs: of its configuration.
        """
        self.drain()
        after, stop = attempt + 1, attempt + 1
        while self._left(cell_id, stop, epochs):
            stop += 1
        return range(after, stop)

    def _left(self, cell_id: str, attempt: int, epochs: int) -> bool:
        """Say whether an attempt left a file in any table, or one that waits in the spool."""
        for place in (self._place, self._spool):
            for table in ("trials", "predictions", "epochs"):
                if self._of_cell(place, table, cell_id, range(attempt, attempt + 1), epochs):
                    return True
        return False

    def read_cell(
        self,
        table: str,
        cell_id: str,
        attempts: range,
        *,
        epochs: int,
        columns: list[str] | None = None,
    ) -> pa.Table:
        """Return the rows that some attempts of a cell have in trials, predictions or epochs, without a listing.

        Raises:
            StoreError: a file cannot be read, or was written by a later version.
        """
        whole = SCHEMAS[table]
        schema = pa.schema([whole.field(name) for name in columns or whole.names])
        files = self._of_cell(self._place, table, cell_id, attempts, epochs)
        return pa.concat_tables(
            [schema.empty_table(), *(self.read_file(file, schema) for file in files)]
        )

    def _of_cell(
        self, place: Folder | Bucket, table: str, cell_id: str, attempts: range, epochs: int
    ) -> list[str]:
        """Return the names of the files that some attempts of a cell have in a table, in the order of attempts."""
        if not attempts:
            return []
        stems = [f"{cell_id}-{attempt}" for attempt in attempts]
        if table == "epochs":
            stems = [f"{stem}-{epoch}" for stem in stems for epoch in range(1, epochs + 1)]
        try:
            folders = place.folders(table)
            return place.there([f"{folder}/{stem}.parquet" for stem in stems for folder in folders])
        except OSError as error:
            raise StoreError(
                f"Cannot read {self.address}: {storage.reason(error)}. Try again."
            ) from error

    def next_attempt(self, cell_id: str) -> int:
        """Return the number of a cell's next attempt, from 1, whatever an earlier one left behind: lists every file."""
        self.drain()
        of_cell = re.compile(rf"[^/]+/[^/]+/{re.escape(cell_id)}-(\d+)[-.]")
        names = (
            name for table in ("epochs", "predictions", "trials") for name in self.names(table)
        )
        found = (of_cell.match(name) for name in [*names, *self._spool.names("")])
        return max((int(match[1]) for match in found if match), default=0) + 1

    def checkpoint(self, cell_id: str) -> Path:
        """Return where a cell's checkpoint lies on this machine while it trains: read by no query."""
        return self.root / "checkpoints" / f"{cell_id}.pt"

    def weights(self, cell_id: str, *, best: bool = False) -> Path:
        """Return where a completed cell's weights lie if they were kept: of its last epoch, or of its best."""
        return self.root / "weights" / f"{cell_id}{'-best' if best else ''}.safetensors"

    def fetch(self, file: Path) -> Path:
        """Bring a file below `root` here whole, as another machine may have put it last; return the file.

        Raises:
            StoreError: the bucket does not answer.
        """
        place, name = self._place, file.relative_to(self.root).as_posix()
        if isinstance(place, Bucket):
            try:
                place.fetch(name, file)
            except OSError as error:
                raise StoreError(
                    f"Cannot fetch {self.shown(name)}: {storage.reason(error)}. Try again."
                ) from error
        return file

    def share(self, file: Path) -> None:
        """Put a file below `root` where other machines can fetch it: a bucket takes it whole, a folder has it.

        A bucket that does not answer gets the next one: this machine has the file, and no other
        machine needs it before the bucket answers again.
        """
        place = self._place
        if isinstance(place, Bucket):
            with contextlib.suppress(OSError):
                place.share(file.relative_to(self.root).as_posix(), file)

    def drop(self, file: Path) -> None:
        """Remove a file below `root` here and where it was shared; one that is gone already is no error."""
        place = self._place
        if isinstance(place, Bucket):
            with contextlib.suppress(OSError):  # it is in nobody's way
                place.delete(file.relative_to(self.root).as_posix())
        file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(self, sweep: str, on_lost: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Hold a sweep for this process, so that two drivers do not train the same cells.

        `on_lost` is called, in a thread, if the hold has passed on because a bucket could not be
        reached.

        Raises:
            StoreError: another process holds it, with its host and number; or has taken it over, at the end.
        """
        try:
            with self._held(sweep, f"sweep '{sweep}'", on_lost):
                yield
        except Held as held:
            raise StoreError(
                f"Sweep '{sweep}' is being run in this store by {held}. Wait for it, or stop it."
            ) from held

    @contextlib.contextmanager
    def _held(self, name: str, what: str, on_lost: Callable[[], object]) -> Iterator[None]:
        """Hold a lock of the place; what goes wrong with it is a StoreError, and Held if another has it."""
        with contextlib.ExitStack() as stack:
            try:
                hold = self._place.hold(
                    name, f"process {os.getpid()} on {platform.node()}", on_lost
                )
                stack.enter_context(hold)
            except OSError as error:
                raise StoreError(
                    f"Cannot hold {what} in {self.address}: {storage.reason(error)}."
                ) from error
            try:
                yield
                stack.close()
            except Lost as lost:
                raise StoreError(
                    f"This process could not reach {self.address} for {storage.LEASE_S:.0f} s, and {what} is being run "
                    f"by {lost} now. Let that end; then the same command goes on."
                ) from lost

    def attempts(self) -> dict[str, int]:
        """Return the number of the last attempt of every cell that left anything."""
        last: dict[str, int] = {}
        for table in ("epochs", "predictions", "trials"):
            for file in self.files(table):
                named = _OF_CELL.fullmatch(file.stem)
                if named:  # `store verify` names a file that is somebody's else
                    last[named[1]] = max(last.get(named[1], 0), int(named[2]))
        return last

    def completed_since(self, cell_id: str, attempt: int, *, epochs: int) -> dict[str, Any] | None:
        """Return the row of the completed trial that a cell got after an attempt, None without one."""
        since = self.attempts_since(cell_id, attempt, epochs=epochs)
        rows = self.read_cell("trials", cell_id, since, epochs=epochs).to_pylist()
        return next((row for row in rows if row["status"] == "completed"), None)

    def claim(
        self, cell_id: str, on_lost: Callable[[], object] = lambda: None
    ) -> Callable[[], None] | None:
        """Hold a cell for this process while it is trained, and return what lets go of it; None: another holds it.

        `on_lost` is as in `running`; what lets go of it raises StoreError then.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._held(f"cell-{cell_id}", f"cell {cell_id}", on_lost))
            except Held:
                return None
            except OSError as error:
                raise StoreError(
                    f"Cannot hold a cell in {self.address}: {storage.reason(error)}."
                ) from error
            return stack.pop_all().close

    def check_writable(self) -> None:
        """Write to the place once, so that no trial trains for a row that cannot be kept; put what waits in the spool.

        Raises:
            StoreError: the folder cannot be made, or the place cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._place.put(probe, pa.py_buffer(b"casting_tune"))
            self._place.delete(probe)
        except OSError as error:
            raise StoreError(
                f"The results folder '{self.address}' cannot be written: {storage.reason(error)}. "
                "Name another with --results."
            ) from error
        self.drain()


def serialised(table: pa.Table) -> pa.Buffer:
    """Return a table as the content of a store file: with a checksum a page, compressed if it has several rows.

    One row of a hundred columns is written, and read, in two thirds of the time without what only
    many rows gain from: dictionaries, statistics, compression. Arrow's own copy of the schema says
    nothing that Parquet's does not.
    """
    buffer, one = pa.BufferOutputStream(), table.num_rows == 1
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="none" if one else "zstd",
        use_dictionary=not one,
        write_statistics=not one,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(table.schema.metadata or {})
    return buffer.getvalue()


def version_of(schema: pa.Schema) -> int:
    """Return the schema version of a store file; 0 where it says none."""
    return int((schema.metadata or {}).get(VERSION_KEY, b"0"))


def later(file: str, version: int) -> StoreError:
    """Return the error of a file of a later schema, of which nobody here knows what its columns mean."""
    return StoreError(
        f"{file} was written by a later casting_tune (schema {version}). Update casting_tune."
    )


def _newest_audits(names: Sequence[str]) -> list[str]:
    """Return the names without the audits of which the same dataset has a later version."""
    versions = [
        (found[1], int(found[2])) if (found := _AUDIT.fullmatch(name)) else (name, 0)
        for name in names
    ]
    newest: dict[str, int] = {}
    for dataset, version in versions:
        newest[dataset] = max(version, newest.get(dataset, version))
    return [
        name
        for name, (dataset, version) in zip(names, versions, strict=True)
        if version == newest[dataset]
    ]


def _encoded(field: pa.Field, encoded: Sequence[str]) -> pa.Field:
    return (
        field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in encoded else field
    )
