"""A store in a folder: reads, writes, lists and locks its files.

Input: names relative to the folder ("trials/s/a-1.parquet") and whole contents. Output: contents,
lists of names, and a lock. A file appears whole under a new name or not at all. Knows no tables,
schemas or trials.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from casting_tune import files
from casting_tune.failpoints import step

LOG = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""Errors of flock(2) on a file system without locks."""


class Locked(Exception):
    """Another process has the lock; the text names that process."""


class Folder:
    """A folder of this machine, or one that is mounted here."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> PurePath:
        """Return a file's full path."""
        return self.root / name

    def names(self, under: str) -> list[str]:
        """Return the sorted names of all files below a folder; [] if the folder does not exist."""
        top = os.path.join(self.root, under)  # noqa: PTH118  (strings: often 100,000 names)
        below = len(str(self.root)) + 1
        return sorted(
            os.path.join(folder, file)[below:]  # noqa: PTH118
            for folder, _, found in os.walk(top, onerror=_raise)
            for file in found
        )

    def folders(self, under: str) -> list[str]:
        """Return the sorted names of the folders in a folder; [] if the folder does not exist."""
        top = self.root / under
        if not top.is_dir():
            return []
        return sorted(f"{under}/{entry.name}" for entry in os.scandir(top) if entry.is_dir())

    def existing(self, names: Sequence[str]) -> list[str]:
        """Return those names that are files, in the same order; no other file is looked at."""
        return [name for name in names if _is_file(os.path.join(self.root, name))]  # noqa: PTH118

    def source(self, name: str) -> Any:
        """Return what a Parquet reader opens."""
        return str(self.root / name)

    def put(self, name: str, content: pa.Buffer) -> None:
        """Create a file: write a draft, sync it, and link it, which fails if the name exists.

        Raises:
            FileExistsError: the name exists.
            OSError: the folder cannot be written.
        """
        target = self.root / name
        step(f"put {name}: begin")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = files.draft_of(target)
        try:
            with draft.open("wb") as file:
                step(f"put {name}: opened")
                file.write(content)
                step(f"put {name}: written")
                file.flush()
                os.fsync(file.fileno())
            step(f"put {name}: synced")
            os.link(draft, target)
            step(f"put {name}: linked")
        finally:
            draft.unlink(missing_ok=True)
        files.sync(target.parent)
        step(f"put {name}: end")

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        (self.root / name).unlink(missing_ok=True)

    def move(self, name: str, to: str) -> None:
        """Rename a file; the new name must not exist."""
        target = self.root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        step(f"move {name}: begin")
        os.link(self.root / name, target)
        step(f"move {name}: linked")
        (self.root / name).unlink()
        step(f"move {name}: end")

    @contextlib.contextmanager
    def lock(self, name: str, owner: str, on_lost: Callable[[], object]) -> Iterator[None]:
        """Lock a name; the operating system unlocks it when the process ends, and not before.

        A file system without locks (Lustre mounted without flock, some FUSE) locks nothing, and a
        warning says so: two processes may then train a cell twice, but no file is overwritten.

        filelock is not used: from 3.16 on a process that waits empties the file, which names the
        owner, and the file of every cell would stay.

        Raises:
            Locked: another process has the lock.
        """
        import fcntl

        del on_lost
        file = self.root / f".running-{name}"
        while True:
            with file.open("a+") as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    opened.seek(0)
                    raise Locked(opened.read()) from error
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    LOG.warning(
                        "The file system of '%s' has no locks. Do not run the same sweep twice at "
                        "the same time.",
                        self.root,
                    )
                if not _is_same(opened.fileno(), file):
                    continue  # its last owner removed it between open and lock
                opened.truncate(0)
                opened.write(owner)
                opened.flush()
                step(f"hold {name}")
                try:
                    yield
                finally:
                    # the whole folder may be gone: another error reports that
                    with contextlib.suppress(NotADirectoryError):
                        file.unlink(missing_ok=True)
                return


def reason(error: OSError) -> str:
    """Return in one line why a file could not be read or written."""
    return str(error.strerror or error).splitlines()[0].partition("; Details")[0][:200]


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_file(file: str) -> bool:
    """Return whether a file exists; a folder that cannot be searched is an error."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
