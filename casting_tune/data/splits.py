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
    """

    validation_share: float
    seed: int
    train_images: int = 0
    test_images: int = 0


def split(
    labels: NDArray[np.uint8],
    splits: NDArray[np.str_],
    groups: NDArray[Any],
    settings: SplitSettings,
) -> Folds:
    """Draw validation images from the training images, stratified by label.

    Each draw has its own random generator: fewer test images change no training image. A smaller
    subset of one seed is part of every larger one.

    Args:
        labels: [n] uint8, 1 is defective.
        splits: [n] "train" or "test".
        groups: [n] text or numbers; a group is never in both train and validation.
        settings: the shares and numbers of images, and the seed.

    Raises:
        UsageError: a number is out of range, or a class would be missing on one side.
    """
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
    for_train, for_validation, for_test = (
        np.random.Generator(np.random.PCG64(stream))
        for stream in np.random.SeedSequence(settings.seed).spawn(3)
    )
    learned = _subset(
        labels, np.flatnonzero(splits == "train"), n_images=settings.train_images, rng=for_train
    )
    _check(labels[learned], "train", least=2, way_out="add images, or raise train_images")
    test = _subset(
        labels, np.flatnonzero(splits == "test"), n_images=settings.test_images, rng=for_test
    )
    _check(labels[test], "test", least=1, way_out="add images, or raise test_images")

    validated = _draw(
        labels[learned], groups[learned], share=share, rng=for_validation
    )  # [n_learned] bool
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


def grouped(
    labels: NDArray[np.uint8], groups: NDArray[Any], *, n_folds: int, fold: int, seed: int
) -> NDArray[np.str_]:
    """Divide all images into parts without common groups; part `fold` is "test".

    The parts have nearly the same number of images of each class (scikit-learn's
    StratifiedGroupKFold); every image is in the test set of exactly one fold.

    Args:
        labels: [n] uint8, 1 is defective.
        groups: [n] text or numbers; one per photograph.
        n_folds: parts, 2 or more.
        fold: in 0..n_folds-1.
        seed: of the shuffle of the groups.

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
    parts = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(
        labels, labels, groups
    )
    splits = np.full(len(labels), "train")
    splits[list(parts)[fold][1]] = "test"
    return splits


def _subset(
    labels: NDArray[np.uint8], rows: NDArray[np.int64], *, n_images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return at most `n_images` images, with the classes in proportion; 0 returns all."""
    shuffled = rng.permutation(rows)
    if n_images == 0 or n_images >= len(rows):
        return np.sort(rows)
    defective, good = shuffled[labels[shuffled] == 1], shuffled[labels[shuffled] == 0]
    n_defective = int(n_images * len(defective) / len(rows) + 0.5)
    return np.sort(np.concatenate([defective[:n_defective], good[: n_images - n_defective]]))


def _draw(
    labels: NDArray[np.uint8], groups: NDArray[Any], *, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mark whole groups until each class has its share, as nearly as the groups allow.

    The order of groups is random; a group is marked if both class counts together then are nearer
    to their targets. With groups of one image the targets are met exactly.
    """
    _, group = np.unique(groups, return_inverse=True)  # [n] 0..n_groups-1
    sizes = np.stack(
        [np.bincount(group[labels == y], minlength=int(group.max()) + 1) for y in (0, 1)], axis=1
    )
    missing = [max(1, int(share * int(total) + 0.5)) for total in sizes.sum(axis=0)]
    taken = np.zeros(len(sizes), dtype=np.bool_)
    for i in rng.permutation(len(sizes)):
        left = [missing[0] - int(sizes[i, 0]), missing[1] - int(sizes[i, 1])]
        if abs(left[0]) + abs(left[1]) < abs(missing[0]) + abs(missing[1]):
            taken[i], missing = True, left
    return taken[group]


def _check(labels: NDArray[np.uint8], side: str, *, least: int, way_out: str) -> None:
    """Raise UsageError if a side has too few images of a class."""
    for value, name in ((1, "defective"), (0, "good")):
        n = int((labels == value).sum())
        if n < least:
            raise UsageError(
                f"The {side} side requires at least {least} {name} image(s); got {n}: {way_out}."
            )
