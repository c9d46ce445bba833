"""The split and the class of each image of a folder, from its path.

Input: paths relative to the folder. Output: a Layout. Reads no file. The known layouts, each also
below one or more folders of its own:

    SPLIT/CLASS/...   SPLIT is train, validation or test in one of the spellings of SPLITS
    CLASS/SPLIT/...   the same with the folders in the other order
    CLASS/...         no split
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from casting_tune.data.decode import one_line
from casting_tune.errors import ImagesError

SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split that a folder name means, in lower case."""

_ORDER = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image is: its path, its split ("" if the folder has none) and its class."""

    path: str
    split: str
    name: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The images of a folder with split and class.

    Attributes:
        base: path of the folder that contains the splits or classes, "" for the folder itself; the
            paths of `places` are relative to it.
        places: one per image.
        outside: paths of the images that are in no class folder, relative to the folder itself.
        folders: names of the split folders, in the order train, validation, test.
    """

    base: str
    places: list[Place]
    outside: list[str]
    folders: tuple[str, ...]


def read(paths: Sequence[str], root: str) -> Layout:
    """Return the layout of the images of a folder.

    Args:
        paths: of the images, relative to the folder, with slashes.
        root: the folder's name for messages.

    Raises:
        ImagesError: the folder can be read in several ways, or has no class folders.
    """
    base, inside = _descended(paths)
    tops = _tops(inside)
    where = f"{root}/{base}".removesuffix("/")
    if not tops:
        raise ImagesError(
            f"'{where}' has no class folders. Put the images of each class into a folder of its "
            "own, or give a list of images (--data images.csv)."
        )
    depth = 0 if "train" in _splits(tops) else 1 if _is_class_first(inside) else None
    if depth is None:
        _check_unambiguous(tops, inside, where)
    placed = {path: _place(path, depth) for path in inside}
    places = [place for place in placed.values() if place is not None]
    used = {} if depth is None else {place.path.split("/")[depth] for place in places}
    return Layout(
        base=base.removesuffix("/"),
        places=places,
        outside=sorted({*paths} - {base + place.path for place in places}),
        folders=tuple(sorted(used, key=lambda name: (_ORDER.index(SPLITS[name.lower()]), name))),
    )


def _descended(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Go down while there is one folder only, which is no split; return its path and its images."""
    base, inside = "", list(paths)
    while len(tops := _tops(inside)) == 1 and not _splits(tops):
        base = f"{base}{tops[0]}/"
        inside = [path.removeprefix(f"{tops[0]}/") for path in inside if "/" in path]
    return base, inside


def _tops(paths: Iterable[str]) -> list[str]:
    return sorted({path.partition("/")[0] for path in paths if "/" in path})


def _splits(names: Iterable[str]) -> set[str]:
    return {SPLITS[name.lower()] for name in names if name.lower() in SPLITS}


def _is_class_first(paths: Iterable[str]) -> bool:
    """Return whether every image is CLASS/SPLIT/FILE, with two or more classes."""
    parts = [path.split("/") for path in paths]
    if not all(len(part) == 3 and part[1].lower() in SPLITS for part in parts):
        return False
    learned = {part[0] for part in parts if SPLITS[part[1].lower()] == "train"}
    return len(learned) > 1 and learned == {part[0] for part in parts}


def _place(path: str, depth: int | None) -> Place | None:
    """Return the place of an image; None if it is in no split or in no class folder.

    Args:
        path: of the image.
        depth: position of the split among its folders, None without splits.
    """
    folders = path.split("/")[:-1]
    if depth is None:
        return Place(path, "", folders[0]) if folders else None
    if len(folders) < 2 or folders[depth].lower() not in SPLITS:
        return None
    return Place(path, SPLITS[folders[depth].lower()], folders[1 - depth])


def _check_unambiguous(tops: Sequence[str], paths: Iterable[str], where: str) -> None:
    """Raise ImagesError if a folder without train/ has splits that cannot be its own."""
    if splits := [name for name in tops if name.lower() in SPLITS]:
        raise ImagesError(
            f"'{where}' has no train/ next to {_listed(splits)}. Add train/ with a folder for each "
            "class."
        )
    bases = set()
    for path in paths:
        folders = path.split("/")[:-1]
        for i, name in enumerate(folders):
            if SPLITS.get(name.lower()) == "train":
                bases.add("/".join(folders[:i]))
    if not bases:
        return
    found = _listed(f"{where}/{base}" for base in bases)
    others = [top for top in tops if not any(f"{base}/".startswith(f"{top}/") for base in bases)]
    rest = f", other images in {_listed(f'{where}/{top}' for top in others)}" if others else ""
    raise ImagesError(f"train/ and test/ lie in {found}{rest}: give one of them with --data.")


def _listed(names: Iterable[str]) -> str:
    shown = [f"'{one_line(name)}'" for name in sorted(names)]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
