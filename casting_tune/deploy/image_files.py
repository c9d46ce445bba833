"""Find image files in folders. Imports no torch, timm, kornia, ray or pandas."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from casting_tune.data import decode
from casting_tune.errors import ImagesError, unreadable


def find(paths: Sequence[Path]) -> list[Path]:
    """Return the images of files and folders; those of a folder and its subfolders by name.

    Raises:
        ImagesError: a path does not exist or cannot be read, or there is no image.
    """
    files: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                files += below(path, on_error=_raise)
            elif path.exists():
                files.append(path)
            else:
                raise ImagesError(f"'{path}' does not exist. Give image files or folders.")
        except OSError as error:
            raise ImagesError(unreadable(error.filename or path, error)) from error
    if not files:
        names = ", ".join(repr(str(path)) for path in paths)
        raise ImagesError(f"No images found in {names} ({', '.join(decode.SUFFIXES)}).")
    return files


def below(folder: Path, *, on_error: Callable[[OSError], None] | None = None) -> list[Path]:
    """Return the sorted image files of a folder and its subfolders.

    Args:
        folder: where to search.
        on_error: called for a folder that cannot be read; None skips it.
    """
    suffixes = {f".{suffix}" for suffix in decode.SUFFIXES}
    files = (
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=on_error)
        for name in names
    )
    return sorted(
        file
        for file in files
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def stamp(file: Path) -> tuple[int, ...] | None:
    """Return values that change when a file changes; None if it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _raise(error: OSError) -> None:
    raise error
