"""Copy a store of an older schema to a new store with the current schema.

Input: a store and the address of a new one. Output: the new store with the same rows; the old one
is unchanged.
"""

from __future__ import annotations

from casting_tune.errors import UsageError
from casting_tune.store.schema import SCHEMAS
from casting_tune.store.spool import settle
from casting_tune.store.store import Store
from casting_tune.store.table_file import is_table_file

ORDER = ("images", "probes", "cells", "epochs", "predictions", "trials")
"""Trials last, as in a trial: after an interrupted migration, the cells are not done."""


def migrate(old: Store, new: Store) -> dict[str, int]:
    """Copy every row of a store to a new one, and compare both.

    Returns:
        The number of files per table.

    Raises:
        UsageError: the new store has files.
        StoreError: a file cannot be read or written, the rows differ, or spooled rows cannot be
            written to their bucket.
    """
    settle(old)
    for table in SCHEMAS:
        if new.names(table):
            raise UsageError(f"--out '{new.address}' already contains a store. Use a new folder.")
    new.check_writable()
    written = {}
    for table in ORDER:
        files = [file for file in old.names(table) if is_table_file(file)]
        for file in files:
            rows = old.read_file(file, SCHEMAS[table])
            new.write_table(file, rows)
            new.check_equal(file, rows)
        written[table] = len(files)
    return written
