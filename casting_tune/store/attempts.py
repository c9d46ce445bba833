"""The attempts of a cell: which exist, and their rows, found without a list of the whole store.

An attempt is one training of a cell; its number, from 1, is in the names of its files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from casting_tune.errors import StoreError
from casting_tune.store.local import reason
from casting_tune.store.schema import SCHEMAS
from casting_tune.store.spool import drain

if TYPE_CHECKING:
    from casting_tune.store.storage import Place
    from casting_tune.store.store import Store

_TABLES = ("trials", "predictions", "epochs")
_OF_CELL = re.compile(r"(\w+)-(\d+)(?:-\d+)?")  # <cell>-<attempt>, and the epoch in epochs


def last_attempts(store: Store) -> dict[str, int]:
    """Return the number of the last attempt of every cell that has files."""
    last: dict[str, int] = {}
    for table in _TABLES:
        for file in store.files(table):
            match = _OF_CELL.fullmatch(file.stem)
            if match:  # `store verify` reports other files
                last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return last


def next_attempt(store: Store, cell_id: str) -> int:
    """Return the number of a cell's next attempt, from 1; lists every file."""
    drain(store)
    of_cell = re.compile(rf"[^/]+/[^/]+/{re.escape(cell_id)}-(\d+)[-.]")
    names = [name for table in _TABLES for name in store.names(table)]
    matches = (of_cell.match(name) for name in [*names, *store.spool_folder.names("")])
    return max((int(match[1]) for match in matches if match), default=0) + 1


def attempts_since(store: Store, cell_id: str, attempt: int, *, epochs: int) -> range:
    """Return the attempts of a cell after a known one; `stop` is the number of the next one.

    The names of a cell's files follow from attempt and epoch, so other cells in the store cost
    nothing. During a sweep no attempt is removed: `store verify --quarantine` waits for its end.

    Args:
        store: the results.
        cell_id: the cell.
        attempt: 0, or the cell's last attempt when the sweep began.
        epochs: of its configuration.
    """
    drain(store)
    after, stop = attempt + 1, attempt + 1
    while _has_files(store, cell_id, stop, epochs):
        stop += 1
    return range(after, stop)


def read_cell(
    store: Store,
    table: str,
    cell_id: str,
    attempts: range,
    *,
    epochs: int,
    columns: list[str] | None = None,
) -> pa.Table:
    """Return the rows of some attempts of a cell in trials, predictions or epochs.

    Raises:
        StoreError: a file cannot be read, or was written by a newer version.
    """
    whole = SCHEMAS[table]
    schema = pa.schema([whole.field(name) for name in columns or whole.names])
    files = _files(store, store.place, table, _stems(table, cell_id, attempts, epochs))
    return pa.concat_tables(
        [schema.empty_table(), *(store.read_file(file, schema) for file in files)]
    )


def completed_since(
    store: Store, cell_id: str, attempt: int, *, epochs: int
) -> dict[str, Any] | None:
    """Return the row of the completed trial of a cell after an attempt, or None."""
    since = attempts_since(store, cell_id, attempt, epochs=epochs)
    rows = read_cell(store, "trials", cell_id, since, epochs=epochs).to_pylist()
    return next((row for row in rows if row["status"] == "completed"), None)


def _has_files(store: Store, cell_id: str, attempt: int, epochs: int) -> bool:
    """Return whether an attempt has a file in any table or in the spool."""
    only = range(attempt, attempt + 1)
    return any(
        _files(store, place, table, _stems(table, cell_id, only, epochs))
        for place in (store.place, store.spool_folder)
        for table in _TABLES
    )


def _stems(table: str, cell_id: str, attempts: range, epochs: int) -> list[str]:
    """Return the names of the files of some attempts in a table, without folder and suffix."""
    stems = [f"{cell_id}-{attempt}" for attempt in attempts]
    if table == "epochs":
        return [f"{stem}-{epoch}" for stem in stems for epoch in range(1, epochs + 1)]
    return stems


def _files(store: Store, place: Place, table: str, stems: list[str]) -> list[str]:
    """Return the existing files of these names in a table, in the order of the names."""
    if not stems:
        return []
    try:
        folders = place.folders(table)
        return place.existing([f"{folder}/{stem}.parquet" for stem in stems for folder in folders])
    except OSError as error:
        raise StoreError(f"Cannot read {store.address}: {reason(error)}. Try again.") from error
