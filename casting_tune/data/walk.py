"""Lists the image files below a folder, and counts by reason the files that it skips.

The only walker: packing, auditing, planning and predicting see the same files. Input: a folder.
Output: paths relative to it, and counts with examples. Opens no file and knows no classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from casting_tune.data.decode import SUFFIXES
from casting_tune.text import plain

HIDDEN, RESOURCES, SYSTEM = "hidden", "thumbnail or resource folder", "system file"
MASK, SUFFIX, TWICE = "mask", "not an image file", "linked folder already read"

_RESOURCE_FOLDERS = {
    "@eadir", ".appledouble", "__macosx", ".thumbnails", "thumbnails", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"}
_MASK_FOLDERS = {
    "ground_truth", "groundtruth", "gt", "mask", "masks", "label", "labels", "annotation",
    "annotations", "segmentation", "segmentations",
}  # fmt: skip
_MASK_STEM = re.compile(r"(.+?)[_-](?:mask|label|gt|seg|groundtruth)\d*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WalkedFile:
    """An image file: its posix path relative to the folder, and a text of its size and time."""

    path: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """The files that are skipped for one reason: how many, and the path of the first one."""

    reason: str
    n: int
    example: str


@dataclass(frozen=True, slots=True)
class Walked:
    """The image files of a folder by path, and what is skipped."""

    files: list[WalkedFile]
    skipped: tuple[Skipped, ...]


def walk(
    root: Path,
    *,
    named: Iterable[str] = (),
    with_masks: bool = False,
    on_error: Callable[[OSError], None] | None = None,
) -> Walked:
    """Return the image files below `root`; a linked folder is followed, each folder once.

    Args:
        root: the folder.
        named: folder names that are never masks or resources, because the user names them.
        with_masks: do not look for masks among the files.
        on_error: called for a folder that cannot be read; None raises the error.

    Raises:
        OSError: a folder cannot be read.
    """
    reader = _Reader(root, frozenset(named), on_error)
    reader.read("")
    masks = set() if with_masks else set(_masks(file.path for file in reader.files))
    for path in sorted(masks):
        reader.skip(MASK, path)
    files = sorted(
        (file for file in reader.files if file.path not in masks), key=lambda file: file.path
    )
    skipped = (Skipped(reason, len(paths), min(paths)) for reason, paths in reader.skipped.items())
    return Walked(files, tuple(sorted(skipped, key=lambda one: (-one.n, one.reason))))


def sentence(skipped: Iterable[Skipped]) -> str:
    """Return what is skipped as one sentence; "" if nothing is."""
    parts = [f"{one.n} {one.reason} (such as '{plain(one.example)[:200]}')" for one in skipped]
    return f"Skipped files: {'; '.join(parts)}." if parts else ""


class _Reader:
    """Collects the files of a folder and its subfolders."""

    def __init__(
        self, root: Path, named: frozenset[str], on_error: Callable[[OSError], None] | None
    ) -> None:
        self.root, self.named, self.on_error = root, named, on_error
        self.files: list[WalkedFile] = []
        self.skipped: dict[str, list[str]] = {}
        self._seen: set[tuple[int, int]] = set()

    def skip(self, reason: str, path: str) -> None:
        self.skipped.setdefault(reason, []).append(path)

    def read(self, folder: str) -> None:
        """Read one folder, given by its path relative to the root."""
        place = self.root / folder
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self.skip(TWICE, folder)
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if self.on_error is None:
                raise
            self.on_error(error)
            return
        if not found and folder:
            self.skip("empty folder", folder)
        # real folders first: a link to one of them must not take its place
        for entry in sorted(found, key=lambda entry: entry.is_symlink()):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                self._folder(path, entry.name)
            else:
                self._file(path, entry)

    def _folder(self, path: str, name: str) -> None:
        reason = "" if name in self.named else _folder_reason(name)
        if not reason:
            self.read(path)
            return
        for file in _below(self.root / path):
            self.skip(reason, f"{path}/{file}")

    def _file(self, path: str, entry: os.DirEntry[str]) -> None:
        name = entry.name
        suffix = name.rpartition(".")[2].lower() if "." in name else ""
        if name.lower() in _SYSTEM_FILES:
            self.skip(SYSTEM, path)
        elif name.startswith((".", "__")):
            self.skip(HIDDEN, path)
        elif suffix not in SUFFIXES:
            self.skip(f"{SUFFIX} (.{suffix})" if suffix else SUFFIX, path)
        else:
            try:
                status = entry.stat()
            except OSError:  # a link to a missing file: decoding it gives the reason
                self.files.append(WalkedFile(path, "missing"))
                return
            self.files.append(WalkedFile(path, f"{status.st_size}\0{status.st_mtime_ns}"))


def _folder_reason(name: str) -> str:
    lower = name.lower()
    if lower in _RESOURCE_FOLDERS:
        return RESOURCES
    if lower in _MASK_FOLDERS:
        return MASK
    return HIDDEN if name.startswith((".", "__")) else ""


def _below(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder that is skipped; links are not followed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _masks(paths: Iterable[str]) -> Iterator[str]:
    """Yield the masks that are next to their images.

    They are files such as `part_mask.png` next to `part.jpg`, and all PNG files of a folder if each
    has an image of the same name with another suffix.
    """
    folders: dict[str, list[PurePosixPath]] = {}
    for path in paths:
        pure = PurePosixPath(path)
        folders.setdefault(pure.parent.as_posix(), []).append(pure)
    for files in folders.values():
        stems = {file.stem for file in files}
        pngs = [file for file in files if file.suffix.lower() == ".png"]
        others = {file.stem for file in files if file.suffix.lower() != ".png"}
        pairs = bool(pngs) and all(file.stem in others for file in pngs)
        for file in files:
            match = _MASK_STEM.fullmatch(file.stem)
            if (match and match[1] in stems) or (pairs and file.suffix.lower() == ".png"):
                yield file.as_posix()
