"""Gives the workers of a node one file of the packed images, on its disk.

Input: a pack whose images are a file of the driver. Output in a worker: the same pack, with its
images memory-mapped: from the file at the same path, from an earlier copy, or from a copy that is
fetched from the driver's node once. Ray's object store stays free for other things. Knows no
tasks, trials or stores.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casting_tune import files
from casting_tune.data.pack import Pack
from casting_tune.data.pixel_source import file_of
from casting_tune.errors import ResourcesError

LOG = logging.getLogger(__name__)
BLOCK, N_BLOCKS = 2**16, 64
"""A file is identified by its size and this many blocks of it, at equal distances: 4 MiB."""
CHUNK = 32 * 2**20
"""Bytes that travel at once from the driver's node."""

Read = Callable[[int, int], bytes]
"""(offset, n_bytes) -> bytes of the driver's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of the driver, and how to recognise a copy of it.

    Attributes:
        file: its path on the driver's node.
        n_bytes: its size.
        digest: see `digest`.
        node: Ray's id of the driver's node.
    """

    file: Path
    n_bytes: int
    digest: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackFile:
    """A pack as it travels to the workers: everything but the pixels, and the file of these."""

    pack: Pack
    source: Source


def sent(pack: Pack, *, node: str) -> PackFile:
    """Return a pack without pixels, for workers; its images must be a file.

    Args:
        pack: opened from its folder.
        node: Ray's id of the node of this process.
    """
    file = file_of(pack.images)
    assert file is not None
    file = file.resolve()
    source = Source(file=file, n_bytes=file.stat().st_size, digest=digest(file), node=node)
    return PackFile(
        pack=replace(pack, images=np.empty((0, *pack.images.shape[1:]), np.uint8)), source=source
    )


def opened(pack: Pack | PackFile) -> Pack:
    """Return the pack in a worker; of a PackFile, with the images of this node's file.

    Raises:
        ResourcesError: the disk of this node is too small for a copy, or cannot be written.
    """
    if isinstance(pack, Pack):
        return pack
    file = _here(pack.source)
    return replace(pack.pack, images=np.load(file, mmap_mode="r", allow_pickle=False))


def digest(file: Path) -> str:
    """Return 16 hexadecimal digits over the size of a file and blocks at equal distances.

    A pack is written once under the hash of its content, so a file of the same size that differs
    between the blocks is damaged, not another pack.
    """
    n_bytes = file.stat().st_size
    found = hashlib.sha256(str(n_bytes).encode())
    last = max(0, n_bytes - BLOCK)
    with file.open("rb", buffering=0) as opened_file:
        for offset in sorted({round(i * last / (N_BLOCKS - 1)) for i in range(N_BLOCKS)}):
            found.update(os.pread(opened_file.fileno(), BLOCK, offset))
    return found.hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _here(source: Source) -> Path:
    """Return this node's file of a source, once per process."""
    return node_file(source, _copies(), read=lambda: _driver_reader(source))


def _copies() -> Path:
    """Return the folder of this machine for copies."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "casting_tune" / "packs"


def node_file(source: Source, copies: Path, *, read: Callable[[], Read]) -> Path:
    """Return a file of this node with the content of the source.

    It is the file at the source's path if this node sees it there, or the copy in `copies`. If
    there is none, one process of the node fetches it while the others wait.

    Args:
        source: the driver's file.
        copies: folder of this node.
        read: called if the file must be fetched; gives the function that reads it.

    Raises:
        ResourcesError: the disk is too small, or the folder cannot be written.
    """
    if _agrees(source.file, source):
        return source.file
    copy = copies / f"{source.digest}.npy"
    try:
        with _locked(copies / f".{source.digest}.lock"):
            if not _agrees(copy, source):
                _fetch(source, copy, read())
    except OSError as error:
        raise ResourcesError(
            f"The packed images cannot be copied to '{copy}': {error.strerror or error}. Set "
            "XDG_CACHE_HOME on this node to a folder that can be written."
        ) from error
    return copy


def _agrees(file: Path, source: Source) -> bool:
    """Return whether a file exists here and has the content of the source."""
    try:
        return file.stat().st_size == source.n_bytes and digest(file) == source.digest
    except OSError:
        return False


def _fetch(source: Source, copy: Path, read: Read) -> None:
    """Write the copy of a source; a reader sees all of it or nothing."""
    free = shutil.disk_usage(copy.parent).free
    if free < source.n_bytes:
        raise ResourcesError(
            f"The packed images need {source.n_bytes / 2**30:.2f} GiB on each node; "
            f"'{copy.parent}' has {free / 2**30:.2f} GiB free. Free disk space, or set "
            "XDG_CACHE_HOME on this node to a folder on a larger disk."
        )
    LOG.info("fetching %.2f GiB of packed images from the driver", source.n_bytes / 2**30)
    with files.replacing(copy) as draft:
        with draft.open("wb") as out:
            for offset in range(0, source.n_bytes, CHUNK):
                out.write(read(offset, min(CHUNK, source.n_bytes - offset)))
        if not _agrees(draft, source):
            raise OSError("the copy differs from the driver's file")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Wait until no other process of this node holds the lock; it ends with its process."""
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened_file:
        fcntl.flock(opened_file, fcntl.LOCK_EX)
        yield


def _driver_reader(source: Source) -> Read:
    """Return a function that reads the source in a task on the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(source.node, soft=False)
    task: Any = ray.remote(num_cpus=0, scheduling_strategy=there)(_chunk)
    file = str(source.file)

    def read(offset: int, n_bytes: int) -> bytes:
        content: bytes = ray.get(task.remote(file, offset, n_bytes))
        return content

    return read


def _chunk(file: str, offset: int, n_bytes: int) -> bytes:
    with Path(file).open("rb", buffering=0) as opened_file:
        return os.pread(opened_file.fileno(), n_bytes, offset)
