"""Files of a store that are no tables: checkpoints and weights, shared with other machines."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from casting_tune.errors import StoreError
from casting_tune.store.local import reason
from casting_tune.store.s3 import Bucket

if TYPE_CHECKING:
    from casting_tune.store.store import Store


def checkpoint(store: Store, cell_id: str) -> Path:
    """Return the path of a cell's checkpoint on this machine; it exists only during training."""
    return store.root / "checkpoints" / f"{cell_id}.pt"


def weights(store: Store, cell_id: str, *, best: bool = False) -> Path:
    """Return the path of the stored weights of a completed cell: of its last or its best epoch."""
    return store.root / "weights" / f"{cell_id}{'-best' if best else ''}.safetensors"


def fetch(store: Store, file: Path) -> Path:
    """Download a file below `root` if the store is a bucket that has it; return the file.

    Raises:
        StoreError: the bucket does not respond.
    """
    place, name = store.place, file.relative_to(store.root).as_posix()
    if isinstance(place, Bucket):
        try:
            place.fetch(name, file)
        except OSError as error:
            raise StoreError(
                f"Cannot fetch {store.shown(name)}: {reason(error)}. Try again."
            ) from error
    return file


def share(store: Store, file: Path) -> None:
    """Upload a file below `root` if the store is a bucket; other machines can then fetch it.

    An error is ignored: this machine has the file, the next call uploads it, and no other machine
    needs it while the bucket does not respond.
    """
    place = store.place
    if isinstance(place, Bucket):
        with contextlib.suppress(OSError):
            place.share(file.relative_to(store.root).as_posix(), file)


def drop(store: Store, file: Path) -> None:
    """Remove a file below `root` here and in the bucket; a missing one is no error."""
    place = store.place
    if isinstance(place, Bucket):
        with contextlib.suppress(OSError):  # a file that stays does no harm
            place.delete(file.relative_to(store.root).as_posix())
    file.unlink(missing_ok=True)
