"""The spool: files that a bucket did not accept wait in a folder of this machine."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pyarrow as pa

from casting_tune.errors import StoreError
from casting_tune.store.local import Folder
from casting_tune.store.table_file import is_table_file

if TYPE_CHECKING:
    from casting_tune.store.store import Store


def drain(store: Store) -> list[str]:
    """Write the spooled files of this machine to the bucket; return the files that still wait.

    Trials come last. If another file has the same name, the spooled one goes to quarantine/, so
    that none is lost.
    """
    place, spool = store.place, store.spool_folder
    if isinstance(place, Folder) or not spool.root.is_dir():
        return []
    files = [file for file in spool.names("") if is_table_file(file)]
    waiting = sorted(files, key=lambda file: (file.startswith("trials/"), file))
    for done, file in enumerate(waiting):
        try:
            content = pa.py_buffer((spool.root / file).read_bytes())
            try:
                place.put(file, content, patience_s=0)
            except FileExistsError:
                place.put(f"quarantine/{file}~{uuid.uuid4().hex[:8]}", content, patience_s=0)
        except FileNotFoundError:
            continue  # another process of this machine has written it
        except OSError:
            return waiting[done:]
        spool.delete(file)
    return []


def settle(store: Store) -> None:
    """Write all spooled files of this machine to the bucket.

    Raises:
        StoreError: the bucket does not accept one of them.
    """
    waiting = drain(store)
    if waiting:
        raise StoreError(
            f"{len(waiting)} files could not be written to {store.address} and wait in "
            f"{store.spool_folder.root}. The next run writes them, or run: casting-tune store "
            f"verify --results {store.address}"
        )
