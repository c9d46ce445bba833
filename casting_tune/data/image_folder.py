"""Reads a set of images: which files, with which class, kind, split and group.

Input: a folder or a list, and the names that the user gives. Output: a Listing. Opens no image and
knows no pixels. `layouts` understands folders, `image_list` lists, `class_names` good and defective
classes.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from casting_tune.data import class_names, image_list, layouts, walk
from casting_tune.data.class_names import Roles
from casting_tune.data.decode import SUFFIXES, one_line
from casting_tune.data.groups import joined
from casting_tune.data.image_list import Row
from casting_tune.data.walk import Skipped
from casting_tune.errors import ImagesError, UsageError

_NO_KIND = {"", "none", "-", "ok", "good", "normal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the user says that a set of images is read.

    Attributes:
        positive: the defect class, or the name that a pack has for all defects; None: by the names.
        good: the good classes; all others are kinds of defects.
        defect: the kinds of defects; all other classes are good.
        group_pattern: regular expression that finds the name of the group in a path: its groups,
            or the whole match.
        keep_split: keep the folder's split although its train images have one class only.
    """

    positive: str | None = None
    good: tuple[str, ...] = ()
    defect: tuple[str, ...] = ()
    group_pattern: str | None = None
    keep_split: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """All class names that the user gives."""
        return (*self.good, *self.defect, *((self.positive,) if self.positive else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One image file.

    Attributes:
        path: relative to the root of the listing.
        split: "train", "validation", "test", or "" if the set has no splits.
        label: 1 is defective.
        kind: the kind of the defect, "" for a good image.
        stamp: text of size and time.
        group: name of its part, photograph or lot; "" without one.
        columns: further columns of a list as a JSON object; "" without any.
    """

    path: str
    split: str
    label: int
    kind: str
    stamp: str
    group: str = ""
    columns: str = ""

    @property
    def facts(self) -> str:
        """All that is known without its content and time."""
        return "\0".join((self.path, self.split, str(self.label), self.kind, self.group))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images of a set.

    Attributes:
        root: the folder that contains the paths.
        files: in the order of their paths.
        positive: name of all defects together.
        negative: name of all good images together.
        times: hash of paths, sizes and times.
        notes: how the set was read, and what was skipped.
    """

    root: Path
    files: list[ImageFile]
    positive: str
    negative: str
    times: str
    notes: tuple[str, ...]


def survey(source: Path, reading: Reading) -> Listing:
    """Return the images of a folder or list.

    Raises:
        ImagesError: the folder or list cannot be read or understood.
        UsageError: options of `reading` are invalid.
    """
    try:
        if source.is_dir():
            return _of_folder(source, reading)
        if not (source.is_file() and image_list.is_list(source)):
            raise ImagesError(
                f"Image folder not found: '{source}'. Give a folder of images, or a list "
                f"({', '.join(image_list.LISTS)}), with --data."
            )
        return _of_list(source, reading)
    except OSError as error:
        raise ImagesError(
            f"Cannot read '{error.filename}': {error.strerror}. Use a readable folder."
        ) from error


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


def digest(parts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in their order."""
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _of_folder(root: Path, reading: Reading) -> Listing:
    walked = walk.walk(root, named=reading.named)
    if not walked.files:
        said = walk.sentence(walked.skipped)
        raise ImagesError(f"'{root}' has no images ({', '.join(SUFFIXES)}). {said}".strip())
    for file in walked.files:
        if file.path.encode(errors="ignore").decode() != file.path:
            raise ImagesError(
                f"The file name '{one_line(file.path)}' is not valid UTF-8. Rename the file."
            )
    layout = layouts.read([file.path for file in walked.files], str(root))
    skipped = list(walked.skipped)
    if layout.outside:
        skipped.append(
            Skipped("image outside the class folders", len(layout.outside), layout.outside[0])
        )
    base = f"{layout.base}/" if layout.base else ""
    stamps = {file.path: file.stamp for file in walked.files}
    rows = [
        Row(path=place.path, split=place.split, name=place.name, stamp=stamps[base + place.path])
        for place in layout.places
    ]
    splits = "/".join(one_line(name) for name in layout.folders) or "class folders without a split"
    read_as = f"{splits} in '{one_line(layout.base)}'" if layout.base else splits
    rows, spelling = _one_spelling(rows)
    said = " ".join(filter(None, (spelling, walk.sentence(skipped))))
    roles = _roles(root, rows, reading, said)
    return _listing(root / layout.base, rows, roles, reading, read_as=read_as, said=said)


def _of_list(file: Path, reading: Reading) -> Listing:
    root, rows = image_list.read(file)
    rows, spelling = _one_spelling(rows)
    roles = _roles(file, rows, reading, spelling)
    wrong = [
        f"'{one_line(row.path)}' has kind '{one_line(row.kind)}'"
        for row in rows
        if row.name in roles.good and row.kind.lower() not in {*_NO_KIND, row.name.lower()}
    ]
    if wrong:
        raise ImagesError(
            f"'{file}': {len(wrong)} good images have a kind of defect: {'; '.join(wrong[:50])}. "
            "Correct label or kind."
        )
    splits = [name for name in ("train", "validation", "test") if name in {r.split for r in rows}]
    read_as = f"list of {len(rows)} images with {'/'.join(splits) if splits else 'no split'}"
    return _listing(root, rows, roles, reading, read_as=read_as, said=spelling)


def _one_spelling(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Give classes whose names differ in letter case only the most frequent one, and say so."""
    counts = Counter(row.name for row in rows)
    spelling: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (counts[name], name)):
        spelling[name.casefold()] = name
    other = sorted(name for name in counts if spelling[name.casefold()] != name)
    if not other:
        return [*rows], ""
    pairs = ", ".join(f"'{one_line(n)}' = '{one_line(spelling[n.casefold()])}'" for n in other)
    return [replace(row, name=spelling[row.name.casefold()]) for row in rows], (
        f"Class names that differ in capital letters only are one class: {pairs}."
    )


def _roles(source: Path, rows: Iterable[Row], reading: Reading, said: str) -> Roles:
    """Return which classes are good; what was skipped may explain why a class is missing."""
    counts = Counter(row.name for row in rows)
    try:
        return class_names.roles(
            counts,
            positive=reading.positive,
            good=reading.good,
            defect=reading.defect,
        )
    except ImagesError as error:
        reason = said if len(counts) < 2 else ""
        raise ImagesError(f"'{source}': {error} {reason}".strip()) from error


def _listing(
    root: Path, rows: Sequence[Row], roles: Roles, reading: Reading, *, read_as: str, said: str
) -> Listing:
    """Return the images with their roles and groups, and sentences about how they were read."""
    rows = sorted(rows, key=lambda row: row.path)
    groups, grouping = _groups(rows, reading.group_pattern)
    defects = set(roles.defects)
    files = [
        ImageFile(
            path=row.path,
            split=row.split,
            label=int(row.name in defects),
            kind=(row.kind or row.name) if row.name in defects else "",
            stamp=row.stamp,
            group=group,
            columns=row.columns,
        )
        for row, group in zip(rows, groups, strict=True)
    ]
    n_classes = len(roles.good) + len(roles.defects)
    by_name = " (by their names)" if roles.inferred else ""
    notes = (
        f"Read as: {read_as}, {n_classes} classes, {roles.sentence()}{by_name}.",
        said,
        grouping,
    )
    return Listing(
        root=root,
        files=files,
        positive=roles.positive,
        negative=roles.negative,
        times=digest([f"{file.facts}\0{file.columns}\0{file.stamp}" for file in files]),
        notes=tuple(note for note in notes if note),
    )


def _groups(rows: Sequence[Row], pattern: str | None) -> tuple[list[str], str]:
    """Return the group of each image by the list and the pattern, and a sentence about them."""
    names = [row.group for row in rows]
    if pattern is not None:
        found = _matched(rows, pattern)
        if any(names):
            together = joined(names, found).tolist()
            names = [
                str(number) if name or match else ""
                for number, name, match in zip(together, names, found, strict=True)
            ]
        else:
            names = found
    if not any(names):
        return names, ""
    alone = [row.path for row, name in zip(rows, names, strict=True) if not name]
    rest = f"; {len(alone)} images without one (such as '{one_line(alone[0])}')" if alone else ""
    return names, f"Groups: {len({*names} - {''})} given{rest}."


def _matched(rows: Iterable[Row], pattern: str) -> list[str]:
    """Return what the pattern finds in each path, "" where it does not match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"--group-pattern is not a regular expression: '{pattern}' ({error}). Correct it, for "
            r"example --group-pattern 'part(\d+)_'."
        ) from error
    names, example = [], ""
    for row in rows:
        match = compiled.search(row.path)
        example = example or row.path
        parts = (match.groups("") or (match[0],)) if match else ()
        names.append("/".join(parts) if any(parts) else "")
    if not any(names):
        raise UsageError(
            f"--group-pattern '{pattern}' matches no path, for example '{one_line(example)}'. "
            "Correct it."
        )
    return names
