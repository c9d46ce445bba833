"""From the address of a store to the place of its files: a folder, or a prefix of an S3 bucket."""

from __future__ import annotations

import functools
from pathlib import Path

from casting_tune.store.local import Folder
from casting_tune.store.s3 import SCHEME, Bucket

Place = Folder | Bucket


@functools.lru_cache(maxsize=8)
def at(address: Path | str) -> Place:
    """Return the place of an address: a Bucket for `s3://bucket/prefix`, otherwise a Folder."""
    if str(address).startswith(SCHEME):
        return Bucket(str(address))
    return Folder(Path(address))
