"""An image folder: which files, classes and splits it holds.

Comes in: a folder with train/ and test/, each with one folder a class, or with the two class
folders alone. Goes out: its files by path, each with split and label; a split is made where the
folder has none. Opens no file and knows no pixels.
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
    """What the folders say of one image file: `path` inside the root, `split` or "", `stamp` of bytes and time."""

    path: str
    split: str
    label: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Folder:
    """What a look at the folder gives, without opening a file: files by path, and a hash of paths, sizes and times."""

    files: list[File]
    positive: str
    negative: str
    times: str


def survey(root: Path, positive: str) -> Folder:
    """List the image files under `root` and check the layout."""
    try:
        if not root.is_dir():
            raise ImagesError(
                f"There is no image folder '{root}'. Give the one that holds train/ and test/."
            )
        top = _subfolders(root)
        splits = [name for name in top if name in ("train", "test")]
        if splits and top != ["test", "train"]:
            raise ImagesError(
                f"An image folder holds train/ and test/ and no other, or two class folders; '{root}' holds "
                f"{_listed(top)}."
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
            f"Cannot read '{error.filename}': {error.strerror}. Give a folder that can be read."
        ) from error
    files.sort(key=lambda file: file.path)
    return Folder(
        files, positive, negative, digest([f"{file.path}\0{file.stamp}" for file in files])
    )


def check_outside(root: Path | None, folder: Path, option: str) -> None:
    """Refuse to write into the image folder: a folder that is added there would count as a class.

    Args:
        root: the image folder; None where none is given.
        folder: the folder to write to; it need not exist.
        option: the option that names it.

    Raises:
        UsageError: `folder` is `root` or lies inside it.
    """
    if root is not None and folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{option} is inside the image folder '{root}': '{folder}'. Name a folder outside it with {option}."
        )


def made_split(labels: Sequence[int], sha256: Sequence[str]) -> list[str]:
    """Return "train" or "test" for each file: a tenth of each class is test, and exact copies stay together.

    Contents are taken in the order of a seeded hash, so that neither names nor neighbours move a
    casting.
    """
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(sha256):
        rows.setdefault(content, []).append(row)
    room = [max(1, round(labels.count(label) * _TEST_SHARE)) for label in (0, 1)]
    splits = ["train"] * len(labels)
    for content in sorted(rows, key=lambda content: digest([str(_SPLIT_SEED), content])):
        left = [
            room[label] - sum(labels[row] == label for row in rows[content]) for label in (0, 1)
        ]
        if min(left) >= 0:
            room = left
            for row in rows[content]:
                splits[row] = "test"
    return splits


def digest(parts: Sequence[str]) -> str:
    """Return the SHA-256 of some texts in their order."""
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _negative(root: Path, classes: dict[str, list[str]], *, positive: str) -> str:
    """Return the other class; refuse anything but the same two class folders in each split, one of them positive."""
    found = sorted({name for names in classes.values() for name in names})
    if not found:
        raise ImagesError(
            f"'{root}' holds no class folders. Two are needed: '{positive}' and one other."
        )
    for split, names in classes.items():
        if names != found:
            missing = _listed(set(found) - set(names))
            raise ImagesError(
                f"train/ and test/ hold the same classes; '{root / split}' lacks {missing}."
            )
    if len(found) != 2:
        raise ImagesError(
            f"Exactly two class folders are needed, one of them defective; '{root}' has {_listed(found)}."
        )
    if positive not in found:
        raise ImagesError(
            f"Unknown positive class '{positive}'. The classes of '{root}' are {_listed(found)}: name the bad one."
        )
    return next(name for name in found if name != positive)


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders inside, without hidden ones."""
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
                    f"A class folder holds images only; '{root / inside}' holds the folder '{one_line(entry.name)}'. "
                    "Move its images up, or move it away."
                )
            if entry.name.rpartition(".")[2].lower() not in SUFFIXES:
                continue
            path = f"{inside}/{entry.name}"
            if path.encode(errors="ignore").decode() != path:
                raise ImagesError(
                    f"Names are UTF-8, and that of '{one_line(path)}' is not: rename it."
                )
            stat = entry.stat()
            files.append(File(path, split, label, f"{stat.st_size}\0{stat.st_mtime_ns}"))
    if not files:
        raise ImagesError(
            f"The class folder '{root / inside}' holds no {', '.join(SUFFIXES)} file."
        )
    return files


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{one_line(name)}'" for name in sorted(names)) or "none"
