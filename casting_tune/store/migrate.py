"""Writes a store of an older schema anew under the schema of today.

Comes in: a store and the address of a new one. Goes out: the new store, with the same rows; the old
one is not touched.
"""

from __future__ import annotations

from casting_tune.errors import UsageError
from casting_tune.store.schema import SCHEMAS
from casting_tune.store.store import Store

ORDER = ("images", "probes", "cells", "epochs", "predictions", "trials")
"""Trials last, as in a trial: a migration that breaks off leaves a store whose cells are not done."""


def migrate(old: Store, new: Store) -> dict[str, int]:
    """Write every row of a store into a new one under today's schema, read both and hold them against each other.

    Returns how many files of each table were written.

    Raises:
        UsageError: the new store holds files already.
        StoreError: a file cannot be read or written, or the rows differ; rows of this machine wait for their bucket.
    """
    old.settle()
    for table in SCHEMAS:
        if new.names(table):
            raise UsageError(
                f"--out '{new.address}' holds a store already. Name a folder that is not there yet."
            )
    new.check_writable()
    written = {}
    for table in ORDER:
        files = [file for file in old.names(table) if old.is_table_file(file)]
        for file in files:
            rows = old.read_file(file, SCHEMAS[table])
            new.write_table(file, rows)
            new.check_equal(file, rows)
        written[table] = len(files)
    return written
