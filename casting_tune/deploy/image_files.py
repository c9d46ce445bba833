"""Find image files in folders. Imports no torch, timm, kornia, ray or pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from casting_tune.data import decode, walk
from casting_tune.errors import ImagesError, unreadable


def find(paths: Sequence[Path], *, say: Callable[[str], None] | None = None) -> list[Path]:
    """Return the images of files and folders; those of a folder and its subfolders by name.

    Args:
        paths: files and folders.
        say: called with a sentence about the files of a folder that are skipped.

    Raises:
        ImagesError: a path does not exist or cannot be read, or there is no image.
    """
    files: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                walked = walk.walk(path)
                files += [path / file.path for file in walked.files]
                if say is not None and walked.skipped:
                    say(f"{path}: {walk.sentence(walked.skipped)}")
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


def below(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders; unreadable folders are skipped.

    Files that look like masks are included: what a file is must not change when another arrives.
    """
    walked = walk.walk(folder, with_masks=True, on_error=lambda _: None)
    return [folder / file.path for file in walked.files]


def stamp(file: Path) -> tuple[int, ...] | None:
    """Return values that change when a file changes; None if it does not exist."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
