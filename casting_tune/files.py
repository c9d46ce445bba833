"""Write a file or a folder whole: a reader sees the old or all of the new, never a part."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the path of a draft in the folder of `file`; then sync it and rename it to `file`.

    The folder is created if necessary. After an error, `file` is unchanged and the draft is
    removed. The name of a draft starts with a dot, so globs of other programs skip it.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(file)
    try:
        yield draft
        sync(draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty draft folder next to `folder`; then rename it to `folder`.

    The parent folder is created if necessary, and an empty `folder` is replaced. After an error the
    draft is removed.

    Raises:
        OSError: the parent cannot be written, or `folder` has files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(folder)
    draft.mkdir()
    try:
        yield draft
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(file: Path) -> Path:
    """Return an unused path in the folder of a file: a dot, the file's name, a random number."""
    return file.with_name(f".{file.name}.{uuid.uuid4().hex}")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
