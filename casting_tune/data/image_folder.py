"""An image folder: its files, classes and splits.

Input: a folder with train/ and test/, each with one folder per class, or with two class folders.
Output: its files by path, each with split and label; a split is made if the folder has none. Opens
no file and knows no pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casting_tune.data.decode import SUFFIXES, one_line
from casting_tune.errors import ImagesError, UsageError

_TEST_SHARE = 0.1
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class File:
    """One image file.

    Attributes:
        path: relative to the image folder.
        split: "train", "test", or "" if the folder has no splits.
        label: 1 is defective.
        stamp: text of size and time.
    """

    path: str
    split: str
    label: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of an image folder, its two classes, and a hash of paths, sizes and times."""

    files: list[File]
    positive: str
    negative: str
    times: str


def survey(root: Path, positive: str) -> Folder:
    """List the image files under `root` and check the layout."""
    try:
        if not root.is_dir():
            raise ImagesError(
                f"Image folder not found: '{root}'. Give a folder with train/ and test/."
            )
        top = _subfolders(root)
        splits = [name for name in top if name in ("train", "test")]
        if splits and top != ["test", "train"]:
            raise ImagesError(
                f"An image folder must contain only train/ and test/, or two class folders; "
                f"'{root}' contains {_listed(top)}."
            )
        classes = {split: _subfolders(root / split) for split in splits or [""]}
        negative = _negative(root, classes, positive=positive)
        files = [
            file
            for split in classes
            for label, name in enumerate((negative, positive))
            for file in _listing(root, split, name, label=label)
        ]
    except OSError as error:
        raise ImagesError(
            f"Cannot read '{error.filename}': {error.strerror}. Use a readable folder."
        ) from error
    files.sort(key=lambda file: file.path)
    return Folder(
        files, positive, negative, digest([f"{file.path}\0{file.stamp}" for file in files])
    )


def check_outside(root: Path | None, folder: Path, option: str) -> None:
    """Raise UsageError if an output folder is inside the image folder, where it would be a class.

    Args:
        root: the image folder, or None.
        folder: the output folder; it need not exist.
        option: the option that sets it.
    """
    if root is not None and folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{option} is inside the image folder '{root}': '{folder}'. Use a folder outside it."
        )


def made_split(labels: Sequence[int], sha256: Sequence[str]) -> list[str]:
    """Return "train" or "test" per file: 10 % of each class is test; exact copies stay together.

    The order is that of a seeded hash of the contents, so names and other files do not matter.
    """
    files: dict[str, list[int]] = {}
    for i, content in enumerate(sha256):
        files.setdefault(content, []).append(i)
    missing = [max(1, round(labels.count(label) * _TEST_SHARE)) for label in (0, 1)]
    splits = ["train"] * len(labels)
    for content in sorted(files, key=lambda content: digest([str(_SPLIT_SEED), content])):
        left = [
            missing[label] - sum(labels[i] == label for i in files[content]) for label in (0, 1)
        ]
        if min(left) >= 0:
            missing = left
            for i in files[content]:
                splits[i] = "test"
    return splits


def digest(parts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in their order."""
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _negative(root: Path, classes: dict[str, list[str]], *, positive: str) -> str:
    """Return the other class; check that each split has the same two, one positive."""
    found = sorted({name for names in classes.values() for name in names})
    if not found:
        raise ImagesError(
            f"'{root}' has no class folders. Two are required: '{positive}' and one other."
        )
    for split, names in classes.items():
        if names != found:
            missing = _listed(set(found) - set(names))
            raise ImagesError(
                f"train/ and test/ must have the same classes; missing in '{root / split}': "
                f"{missing}."
            )
    if len(found) != 2:
        raise ImagesError(
            f"Exactly two class folders are required, one of them defective; '{root}' has "
            f"{_listed(found)}."
        )
    if positive not in found:
        raise ImagesError(
            f"Unknown positive class '{positive}'. The classes of '{root}' are {_listed(found)}. "
            "Set the defect folder with --positive NAME."
        )
    return next(name for name in found if name != positive)


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def _listing(root: Path, split: str, name: str, *, label: int) -> list[File]:
    """Return the image files of one class folder."""
    inside = Path(split, name).as_posix()
    files = []
    with os.scandir(root / inside) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                raise ImagesError(
                    f"A class folder must contain images only; '{root / inside}' contains the "
                    f"folder '{one_line(entry.name)}'. Move its images up, or move it away."
                )
            if entry.name.rpartition(".")[2].lower() not in SUFFIXES:
                continue
            path = f"{inside}/{entry.name}"
            if path.encode(errors="ignore").decode() != path:
                raise ImagesError(
                    f"The file name '{one_line(path)}' is not valid UTF-8. Rename the file."
                )
            stat = entry.stat()
            files.append(File(path, split, label, f"{stat.st_size}\0{stat.st_mtime_ns}"))
    if not files:
        raise ImagesError(f"The class folder '{root / inside}' has no {', '.join(SUFFIXES)} file.")
    return files


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{one_line(name)}'" for name in sorted(names)) or "none"
