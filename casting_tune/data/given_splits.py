"""The split of each image: as the folder or list has it, with the missing parts drawn.

Input: image files with their split, and the hashes of their contents. Output: a split per image,
and sentences about what was changed. Reads no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from casting_tune.data import image_folder
from casting_tune.data.decode import one_line
from casting_tune.data.groups import joined
from casting_tune.data.image_folder import ImageFile
from casting_tune.data.splits import strata

_TEST_SHARE = 0.1
_SPLIT_SEED = 0
_SIDES = {0: "good", 1: "defective"}


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of all images.

    Attributes:
        of: "train", "validation" or "test" per image.
        made: whether the test split was drawn.
        notes: sentences for the user.
    """

    of: list[str]
    made: bool
    notes: tuple[str, ...]


def resolve(files: Sequence[ImageFile], sha256: Sequence[str], *, keep: bool) -> Splits:
    """Return the split of each image; draw what is missing.

    Without any split, and where train lacks a class unless `keep`, a stratified test split of all
    images is drawn; without test images, one of the train images. Validation images of one class
    are used for training, because thresholds cannot be chosen on them.

    Args:
        files: the usable images.
        sha256: of their contents.
        keep: keep the split although train lacks a class.
    """
    splits, notes = [file.split or "train" for file in files], []
    lacking = _lacking(files, splits, "train")
    if any(file.split for file in files) and lacking and not keep:
        notes.append(
            f"The train images have no {lacking} ones (the usual layout for anomaly detection): a "
            "stratified 10 % of all images is the test set instead. --keep-split keeps the split."
        )
        splits = ["train"] * len(files)
    if "validation" in splits and (lacking := _lacking(files, splits, "validation")):
        notes.append(
            f"The validation images have no {lacking} ones: they are used for training, and the "
            "validation images are drawn from train."
        )
        splits = ["train" if split == "validation" else split for split in splits]
    made = "test" not in splits
    if made:
        rows = [i for i, split in enumerate(splits) if split == "train"]
        drawn = made_split([files[i] for i in rows], [sha256[i] for i in rows])
        for i, split in zip(rows, drawn, strict=True):
            splits[i] = split
        if not notes:
            notes.append(
                "The folder has no test images: a stratified 10 % was selected (see the pack)."
            )
    if lacking := _lacking(files, splits, "test"):
        rate = "escape" if lacking == "defective" else "overkill"
        notes.append(f"The test images have no {lacking} ones: they give no {rate} rate.")
    tested, learned = (
        {file.kind for file, split in zip(files, splits, strict=True) if (split == "test") == test}
        for test in (True, False)
    )
    if unseen := sorted(tested - learned - {""}):
        names = ", ".join(f"'{one_line(name)}'" for name in unseen)
        notes.append(f"Kinds of defects without a training image: {names}.")
    return Splits(splits, made, tuple(notes))


def made_split(files: Sequence[ImageFile], sha256: Sequence[str]) -> list[str]:
    """Return "train" or "test" per file: 10 % of each kind is test.

    Exact copies, and images of one given group, stay together. The order is that of a seeded hash
    of the contents, so names and other files do not matter.
    """
    grouped = any(file.group for file in files)
    unit = joined(sha256, [file.group for file in files]).tolist()
    kinds = strata(
        np.array([file.label for file in files]), np.array([file.kind for file in files])
    ).tolist()
    units: dict[int, list[int]] = {}
    for i, number in enumerate(unit):
        units.setdefault(number, []).append(i)
    counts = Counter(kinds)
    # train and validation need one image each
    missing = {
        kind: min(max(1, round(n * _TEST_SHARE)), max(0, n - 2)) for kind, n in counts.items()
    }
    if "defective" in missing and len(missing) > 2:  # rare kinds next to common ones
        missing["defective"] = round(counts["defective"] * _TEST_SHARE)
    splits = ["train"] * len(files)
    ordered = sorted(units.values(), key=lambda images: _order(images, sha256))
    for images in ordered:
        left = Counter(missing)
        left.subtract(kinds[i] for i in images)
        before, after = (sum(map(abs, n.values())) for n in (missing, left))
        if min(left.values()) >= 0 or (grouped and after < before):
            missing = dict(left)
            for i in images:
                splits[i] = "test"
    if grouped:
        _add_missing_class(splits, [file.label for file in files], ordered)
    return splits


def _add_missing_class(
    splits: list[str], labels: Sequence[int], units: Sequence[Sequence[int]]
) -> None:
    """Move the smallest unit with images of a class to test where test has none of it.

    Large groups with images of many kinds may all miss the targets. Two images of each class stay.
    """
    for label in (0, 1):
        if any(labels[i] == label and splits[i] == "test" for i in range(len(labels))):
            continue
        train = Counter(labels[i] for i in range(len(labels)) if splits[i] == "train")
        fitting = [
            images
            for images in units
            if any(labels[i] == label for i in images)
            and all(train[y] - sum(labels[i] == y for i in images) >= 2 for y in (0, 1))
        ]
        for i in min(fitting, key=len, default=()):
            splits[i] = "test"


def _order(images: Sequence[int], sha256: Sequence[str]) -> str:
    return image_folder.digest([str(_SPLIT_SEED), min(sha256[i] for i in images)])


def _lacking(files: Sequence[ImageFile], splits: Sequence[str], split: str) -> str:
    """Return "good" or "defective" if a split has images of the other class only, else ""."""
    labels = {file.label for file, of in zip(files, splits, strict=True) if of == split}
    return _SIDES[1 - labels.pop()] if len(labels) == 1 else ""
