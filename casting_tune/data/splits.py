"""Divides the images into train, validation and test; copies of one casting stay together.

Input: columns of a pack (labels, splits, and a group per image) and a seed. Output: image indices.
Train and validation have no group in common. The test images are those of the folder test, unless
`grouped` divides all images so that train and test have no group in common. Knows no pixels, files
or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casting_tune.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Image indices of the pack, ascending; the three sides have no image in common.

    Attributes:
        train: [n_train] int64.
        validation: [n_validation] int64.
        test: [n_test] int64.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """Which images `split` draws; `split` checks the values.

    Attributes:
        validation_share: share of the training images of each class for validation, in (0, 1).
        seed: not negative.
        train_images: maximum for train and validation together, stratified; 0 is all.
        test_images: maximum for test, stratified; 0 is all.
        draw_validation: whether the validation images are drawn from train and validation
            together; else they are those of the split "validation".
    """

    validation_share: float
    seed: int
    train_images: int = 0
    test_images: int = 0
    draw_validation: bool = True


def strata(
    labels: NDArray[Any], kinds: NDArray[np.str_] | None, *, least: int = 3
) -> NDArray[np.str_]:
    """Return the part of the set that each image represents in a stratified draw.

    Args:
        labels: [n] 1 is defective.
        kinds: [n] kind of each defect; None if there is one kind only.
        least: a kind with fewer images is drawn together with the other rare kinds.

    Returns:
        [n] "good", "defective" for rare kinds, or ":KIND".
    """
    parts = np.where(np.asarray(labels) == 1, "defective", "good").astype(object)
    if kinds is not None:
        names, counts = np.unique(kinds[labels == 1], return_counts=True)
        for name in names[counts >= least]:
            parts[kinds == name] = f":{name}"
    return parts.astype(np.str_)


def split(
    labels: NDArray[np.uint8],
    splits: NDArray[np.str_],
    groups: NDArray[Any],
    settings: SplitSettings,
    *,
    kinds: NDArray[np.str_] | None = None,
) -> Folds:
    """Draw validation images from the training images, stratified by label and kind of defect.

    Each draw has its own random generator: fewer test images change no training image. A smaller
    subset of one seed is part of every larger one.

    Args:
        labels: [n] uint8, 1 is defective.
        splits: [n] "train", "validation" or "test".
        groups: [n] text or numbers; a group is never in both train and a drawn validation.
        settings: the shares and numbers of images, and the seed.
        kinds: [n] kind of each defect, "" for good images; None if there is one kind.

    Raises:
        UsageError: a number is out of range, a class would be missing in train or validation, or
            test would have no image.
    """
    _check_settings(settings)
    for_train, for_validation, for_test = (
        np.random.Generator(np.random.PCG64(stream))
        for stream in np.random.SeedSequence(settings.seed).spawn(3)
    )
    kinds = np.where(labels == 1, "defective", "") if kinds is None else kinds
    learned = _subset(
        kinds,
        np.flatnonzero(splits != "test"),
        n_images=settings.train_images,
        least=2,
        rng=for_train,
    )
    test = _subset(
        kinds,
        np.flatnonzero(splits == "test"),
        n_images=settings.test_images,
        least=1,
        rng=for_test,
    )
    if not len(test):
        raise UsageError("The test side requires at least 1 image; got 0: add images.")
    if settings.draw_validation:
        way_out = "add images, or raise train_images"
        _check(labels[learned], "train", least=2, way_out=way_out)
        parts = strata(labels[learned], kinds[learned])
        validated = _draw(
            parts, groups[learned], share=settings.validation_share, rng=for_validation
        )  # [n_learned] bool
    else:
        validated = splits[learned] == "validation"
    folds = Folds(train=learned[~validated], validation=learned[validated], test=test)
    _check(
        labels[folds.train],
        "train",
        least=1,
        way_out="lower validation_share, or use smaller groups",
    )
    _check(
        labels[folds.validation],
        "validation",
        least=1,
        way_out="raise validation_share, or use smaller groups",
    )
    return folds


def _check_settings(settings: SplitSettings) -> None:
    share = settings.validation_share
    if not 0 < share < 1:
        raise UsageError(f"validation_share must be greater than 0 and less than 1; got {share}.")
    for name, value in (
        ("split_seed", settings.seed),
        ("train_images", settings.train_images),
        ("test_images", settings.test_images),
    ):
        if value < 0:
            raise UsageError(f"{name} must be 0 or more; got {value}.")


def grouped(
    labels: NDArray[np.uint8],
    groups: NDArray[Any],
    *,
    n_folds: int,
    fold: int,
    seed: int,
    kinds: NDArray[np.str_] | None = None,
) -> NDArray[np.str_]:
    """Divide all images into parts without common groups; part `fold` is "test".

    The folds have nearly the same number of images of each class (scikit-learn's
    StratifiedGroupKFold); every image is in the test set of exactly one fold.

    Args:
        labels: [n] uint8, 1 is defective.
        groups: [n] text or numbers; one per photograph or given group.
        n_folds: parts, 2 or more.
        fold: in 0..n_folds-1.
        seed: of the shuffle of the groups.
        kinds: [n] kind of each defect; None if there is one kind. Kinds with fewer groups than
            folds are divided together.

    Returns:
        [n] "train" or "test".

    Raises:
        UsageError: fewer groups of a class than parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for value, name in ((1, "defective"), (0, "good")):
        n_groups = len(np.unique(groups[labels == value]))
        if n_groups < n_folds:
            raise UsageError(
                f"{n_folds} folds require at least {n_folds} photographs of {name} castings; "
                f"there are {n_groups}."
            )
    parts = strata(labels, kinds, least=n_folds)
    common, counts = np.unique(parts[labels == 1], return_counts=True)
    if (counts < n_folds).any():  # the rare kinds together are still too few
        parts[parts == "defective"] = common[np.argmax(counts)]
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(
        parts, parts, groups
    )
    splits = np.full(len(labels), "train")
    splits[list(folds)[fold][1]] = "test"
    return splits


def _subset(
    kinds: NDArray[np.str_],
    rows: NDArray[np.int64],
    *,
    n_images: int,
    least: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return at most `n_images` images, with the kinds in proportion; 0 returns all.

    Of very rare defects, `least` images stay.
    """
    shuffled = rng.permutation(rows)
    if n_images == 0 or n_images >= len(rows):
        return np.sort(rows)
    defective, good = shuffled[kinds[shuffled] != ""], shuffled[kinds[shuffled] == ""]
    n_defective = int(n_images * len(defective) / len(rows) + 0.5)
    n_defective = max(n_defective, min(least, len(defective)))
    # by position within the kind: every start of this order has the kinds in proportion
    position = np.empty(len(defective))
    for kind in np.unique(kinds[defective]):
        same = kinds[defective] == kind
        position[same] = (np.arange(same.sum()) + 0.5) / same.sum()
    defective = defective[np.argsort(position, kind="stable")]
    return np.sort(np.concatenate([defective[:n_defective], good[: n_images - n_defective]]))


def _draw(
    parts: NDArray[np.str_], groups: NDArray[Any], *, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mark whole groups until each part of the set has its share, as the groups allow.

    The order of groups is random; a group is marked if the counts of all parts together then are
    nearer to their targets. With groups of one image the targets are met exactly.
    """
    _, group = np.unique(groups, return_inverse=True)  # [n] 0..n_groups-1
    names = np.unique(parts)
    sizes = np.stack(
        [np.bincount(group[parts == name], minlength=int(group.max()) + 1) for name in names],
        axis=1,
    )  # [n_groups, n_parts]
    missing = np.array([max(1, int(share * int(total) + 0.5)) for total in sizes.sum(axis=0)])
    if len(names) > 2 and "defective" in names:  # rare kinds next to common ones
        rare = int(np.flatnonzero(names == "defective")[0])
        missing[rare] = int(share * int(sizes[:, rare].sum()) + 0.5)
    taken = np.zeros(len(sizes), dtype=np.bool_)
    for i in rng.permutation(len(sizes)):
        left = missing - sizes[i]
        if np.abs(left).sum() < np.abs(missing).sum():
            taken[i], missing = True, left
    marked: NDArray[np.bool_] = taken[group]
    return marked


def _check(labels: NDArray[np.uint8], side: str, *, least: int, way_out: str) -> None:
    """Raise UsageError if a side has too few images of a class."""
    for value, name in ((1, "defective"), (0, "good")):
        n = int((labels == value).sum())
        if n < least:
            raise UsageError(
                f"The {side} side requires at least {least} {name} image(s); got {n}: {way_out}."
            )
