"""Finds what would flatter a result: copies across splits, photographs of two labels, empty and odd images, brightness.

In comes a pack; out go flags for each image, a few numbers, and sentences for a person. Opens no
file and changes no split: what is done about a finding is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from casting_tune.data import photo_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack
    from casting_tune.data.photo_groups import Photographs

FLAT_LEVELS = 1.0
"""An image whose gray levels spread by less than this (standard deviation, of 255) is constant; JPEG adds about 0.5."""

ODD = 5.0
"""An image is an outlier at this many robust standard deviations, as the root mean square over its
measures; castings, real and drawn, reach 2.1.
"""

_N_RINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an image set would do to a score.

    Attributes:
        dataset_id: of the pack.
        group: [n] int64, images of one photograph under any turn and mirror, or byte copies, share a number.
        copy_in_train: [n] another file, byte for byte the same, stands in train.
        twin_in_train: [n] another image of the same group stands in train.
        conflict: [n] its group carries both labels.
        constant: [n] every pixel is the same, or nearly.
        outlier: [n] brightness, contrast, grain and gray levels by distance from the middle are unlike the set's.
        brightness_auc: AUC with which mean brightness alone separates the classes, 0.5 to 1.
        brightness_mean: class name to mean gray level, 0 to 255.
        threshold: likeness above which two images are one photograph, calibrated on this set.
        findings: sentences; the first says what all this means for a score.
    """

    dataset_id: str
    group: NDArray[np.int64]
    copy_in_train: NDArray[np.bool_]
    twin_in_train: NDArray[np.bool_]
    conflict: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    outlier: NDArray[np.bool_]
    brightness_auc: float
    brightness_mean: dict[str, float]
    threshold: float
    findings: tuple[str, ...]


def audit(pack: Pack, *, on_progress: Callable[[int, int], None] | None = None) -> Audit:
    """Return what the images of a pack would do to a score.

    Args:
        pack: train and test together.
        on_progress: called with (images compared, images in all).
    """
    _, copies = np.unique(pack.sha256, return_inverse=True)
    with threadpool_limits(
        1, user_api="blas"
    ):  # `photographs` has threads of its own: see startup.BLAS_THREADS
        measures = _measures(pack)  # [n, 3 + _N_RINGS]: mean, standard deviation, grain, rings
        found = photo_groups.find(
            pack.images,
            pack.labels,
            short_px=_content(pack).min(axis=1),
            same=copies,
            on_progress=on_progress,
        )
    constant = measures[:, 1] < FLAT_LEVELS
    labels_of = np.zeros((int(found.group.max()) + 1, 2), dtype=np.bool_)
    labels_of[found.group, pack.labels] = True
    conflicted = np.asarray(labels_of.all(axis=1))
    brightness = measures[:, 0]
    result = Audit(
        dataset_id=pack.dataset_id,
        group=found.group,
        copy_in_train=_another_in_train(copies, pack.splits),
        twin_in_train=_another_in_train(found.group, pack.splits),
        conflict=conflicted[found.group],
        constant=constant,
        outlier=_unlike(measures, ~constant),
        brightness_auc=_separation(brightness, pack.labels),
        brightness_mean={
            name: float(brightness[pack.labels == label].mean())
            for label, name in ((1, pack.positive), (0, pack.negative))
        },
        threshold=found.threshold,
        findings=(),
    )
    return _told(result, pack, found)


def _told(result: Audit, pack: Pack, found: Photographs) -> Audit:
    """Return the audit with its findings."""
    told = [_of_score(result, pack), _of_photographs(result, pack, found)]
    if found.tightness < 0.5:
        told.append(
            f"Only {found.tightness:.0%} of the pairs inside a group are alike themselves: the groups are chains, and "
            "hold more than single photographs."
        )
    if n := int(result.conflict.sum()):
        n_groups = len(np.unique(result.group[result.conflict]))
        n_bad = int(pack.labels[result.conflict].sum())
        told.append(
            f"{n_groups} {_plural('photograph carries', 'photographs carry', n_groups)} both labels: {n - n_bad} files "
            f"as {pack.negative} and {n_bad} as {pack.positive}."
        )
    first, second = result.brightness_mean
    told.append(
        f"Mean brightness alone separates the classes with AUC {result.brightness_auc:.2f} "
        f"({first} {result.brightness_mean[first]:.1f}, {second} {result.brightness_mean[second]:.1f} of 255)."
    )
    if pack.images.ndim == 3:
        told.append("Every image is gray: what changes hue or saturation changes nothing.")
    if n := int(result.constant.sum()):
        told.append(
            f"{n} {_plural('image is', 'images are', n)} of one gray level, or nearly: no casting can be seen there."
        )
    if n := int(result.outlier.sum()):
        told.append(
            f"{n} {_plural('image is', 'images are', n)} unlike the rest in brightness, contrast, grain or gray "
            "levels by distance from the middle: look at them."
        )
    return replace(result, findings=tuple(told))


def _of_score(result: Audit, pack: Pack) -> str:
    """Return the sentence that says what the copies mean for a score."""
    test = pack.splits == "test"
    n, n_twins = int(test.sum()), int(result.twin_in_train[test].sum())
    n_copies = int(result.copy_in_train[test].sum())
    if not n_twins:
        return f"None of the {n} test images shows a photograph that stands in train: copies do not flatter a score."
    return (
        f"{n_twins} of the {n} test images show a photograph that stands in train too ({n_copies} byte for byte), so a "
        "score on this test set measures memory of known photographs, and says little of new castings: split by group."
    )


def _of_photographs(result: Audit, pack: Pack, found: Photographs) -> str:
    """Return the sentence that says how many photographs there are, and how they were told apart."""
    by_label = [len(np.unique(result.group[pack.labels == label])) for label in (0, 1)]
    return (
        f"The {len(result.group)} images come from {int(result.group.max()) + 1} photographs ({by_label[0]} "
        f"{pack.negative}, {by_label[1]} {pack.positive}), turned or mirrored; two images are taken for one photograph "
        f"above a likeness of {found.threshold:.2f}, and strangers reach {found.strangers:.2f} at best (median)."
    )


def _plural(one: str, many: str, n: int) -> str:
    return one if n == 1 else many


def _another_in_train(number: NDArray[np.int64], splits: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Mark the images that share their number with a training image other than themselves."""
    train = np.asarray(splits == "train")
    n_train = np.bincount(number[train], minlength=int(number.max()) + 1)
    marked: NDArray[np.bool_] = n_train[number] > train.astype(np.int64)
    return marked


def _content(pack: Pack) -> NDArray[np.float32]:
    """Return (height, width) of each image's content inside its packed square, which is black around it; [n, 2]."""
    packed = np.array(pack.images.shape[-2:])
    scale = (packed / pack.sizes).min(axis=1, keepdims=True)
    sides: NDArray[np.float32] = np.clip(np.rint(pack.sizes * scale), 1, packed).astype(np.float32)
    return sides


def _measures(pack: Pack) -> NDArray[np.float64]:
    """Return mean, standard deviation, grain and the mean of each ring about the middle; [n, 3 + _N_RINGS].

    All are gray levels. Grain is the mean step between neighbours. Rings are shares of the
    content's short side; no turn or mirror changes what lies in them.
    """
    measures = np.empty((len(pack.images), 3 + _N_RINGS))
    rings: dict[tuple[int, int], NDArray[np.int64]] = {}
    for i, (h, w) in enumerate(_content(pack).astype(np.int64).tolist()):
        top, left = (pack.images.shape[-2] - h) // 2, (pack.images.shape[-1] - w) // 2
        gray = photo_groups.luminance(pack.images[i, ..., top : top + h, left : left + w])
        if (h, w) not in rings:
            y, x = np.ogrid[:h, :w]
            r = np.hypot(y - (h - 1) / 2, x - (w - 1) / 2) / (min(h, w) / 2)
            rings[h, w] = np.minimum((r * _N_RINGS).astype(np.int64), _N_RINGS).ravel()
        ring = rings[h, w]
        total = np.bincount(ring, weights=gray.ravel(), minlength=_N_RINGS + 1)
        grain = (np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean()) / 2
        means = total / np.maximum(np.bincount(ring, minlength=_N_RINGS + 1), 1)
        measures[i] = gray.mean(), gray.std(), grain, *means[:_N_RINGS]
    return measures


def _unlike(measures: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark images whose measures lie ODD robust standard deviations (1.4826 MAD, Hampel 1974) from the medians.

    A spread below one gray level counts as one, so that a set of equal images has no outliers.
    """
    if not seen.any():
        return np.zeros(len(measures), dtype=np.bool_)
    middle = np.median(measures[seen], axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(measures[seen] - middle), axis=0), 1.0)
    far: NDArray[np.bool_] = np.sqrt(np.mean(((measures - middle) / spread) ** 2, axis=1)) > ODD
    return far


def _separation(values: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Return how well values alone separate the labels: the AUC from ranks (Mann & Whitney 1947), or 1 minus it."""
    from scipy.stats import rankdata

    n_bad = int(labels.sum())
    n_good = len(labels) - n_bad
    wins = float(rankdata(values)[labels == 1].sum()) - n_bad * (n_bad + 1) / 2
    auc = wins / (n_bad * n_good)
    return max(auc, 1 - auc)
