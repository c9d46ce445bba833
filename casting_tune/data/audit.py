"""Finds data leaks and label problems: copies in train and test, label conflicts, odd images.

Input: a pack. Output: flags per image, a few numbers, and sentences for people. Opens no file and
changes no split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from casting_tune.data import cues, photo_groups
from casting_tune.data.groups import joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack
    from casting_tune.data.photo_groups import Photographs

FLAT_LEVELS = 1.0
"""An image with a smaller standard deviation of gray levels is constant; JPEG adds 0.5."""

ODD = 5.0
"""An image is an outlier above this root mean square, over its measures, of robust standard
deviations. Real and synthetic castings reach 2.1.
"""

_N_RINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Leaks and problems of an image set.

    Attributes:
        dataset_id: of the pack.
        group: [n] int64, the same number for images of one photograph (rotated or mirrored), for
            byte copies and for images of one given group (part, lot, camera).
        copy_in_train: [n] train has another file with the same bytes.
        twin_in_train: [n] train has another image of the same group.
        conflict: [n] its photograph has both labels.
        constant: [n] all pixels are equal or nearly equal.
        outlier: [n] brightness, contrast, grain and gray levels by distance from the middle differ
            from the rest.
        brightness_auc: AUC of mean brightness alone for the classes, 0.5 to 1.
        brightness_mean: class name to mean gray level, 0 to 255.
        threshold: similarity above which two images are one photograph, calibrated on this set.
        findings: sentences; the first is about the effect on a score.
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
    """Return leaks and problems of the images of a pack.

    Args:
        pack: train and test together.
        on_progress: called with (images compared, images in all).
    """
    _, copies = np.unique(pack.sha256, return_inverse=True)
    with threadpool_limits(1, user_api="blas"):  # photo_groups has its own threads
        # [n, 3 + _N_RINGS]: mean, standard deviation, grain, rings; [n, 3]: border, offsets
        measures, borders = _measures(pack)
        photographs = photo_groups.find(
            pack.images,
            pack.labels,
            short_px=_content(pack).min(axis=1),
            same=copies,
            on_progress=on_progress,
        )
    constant = measures[:, 1] < FLAT_LEVELS
    labels_of = np.zeros((int(photographs.group.max()) + 1, 2), dtype=np.bool_)
    labels_of[photographs.group, pack.labels] = True
    conflicted = np.asarray(labels_of.all(axis=1))
    group = photographs.group
    if pack.groups is not None:
        group = joined(group, pack.groups)
    brightness = measures[:, 0]
    result = Audit(
        dataset_id=pack.dataset_id,
        group=group,
        copy_in_train=_another_in_train(copies, pack.splits),
        twin_in_train=_another_in_train(group, pack.splits),
        conflict=conflicted[photographs.group],
        constant=constant,
        outlier=_is_outlier(measures, ~constant),
        brightness_auc=_separation(brightness, pack.labels),
        brightness_mean={
            name: float(brightness[pack.labels == label].mean())
            for label, name in ((1, pack.positive), (0, pack.negative))
        },
        threshold=photographs.threshold,
        findings=(),
    )
    found = cues.measure(pack, measures[:, :2], borders, group)
    findings = (*_findings(result, pack, photographs), *cues.sentences(found))
    return replace(result, findings=findings)


def _findings(result: Audit, pack: Pack, photographs: Photographs) -> Iterator[str]:
    """Yield the findings as sentences."""
    yield _leak(result, pack)
    yield _number_of_photographs(result, pack, photographs)
    if photographs.tightness < 0.5:
        yield (
            f"Only {photographs.tightness:.0%} of the pairs in a group are similar: groups are "
            "chains of different photographs."
        )
    if n := int(result.conflict.sum()):
        n_groups = len(np.unique(photographs.group[result.conflict]))
        n_bad = int(pack.labels[result.conflict].sum())
        yield (
            f"{n_groups} {_plural('photograph has', 'photographs have', n_groups)} both labels: "
            f"{n - n_bad} files as {pack.negative} and {n_bad} as {pack.positive}."
        )
    means = ", ".join(f"{name} {mean:.1f}" for name, mean in result.brightness_mean.items())
    yield (
        "Mean brightness alone separates the classes with AUC "
        f"{result.brightness_auc:.2f} ({means} of 255)."
    )
    if pack.images.ndim == 3:
        yield "All images are gray: changes of hue or saturation have no effect."
    if n := int(result.constant.sum()):
        yield (
            f"{n} {_plural('image has', 'images have', n)} only one gray level, or nearly: no "
            "casting is visible."
        )
    if n := int(result.outlier.sum()):
        yield (
            f"{n} {_plural('image differs', 'images differ', n)} from the rest in brightness, "
            "contrast, grain or gray levels by distance from the middle: check them."
        )


def _leak(result: Audit, pack: Pack) -> str:
    """Return the sentence about the effect of copies on a score."""
    test = pack.splits == "test"
    n, n_twins = int(test.sum()), int(result.twin_in_train[test].sum())
    n_copies = int(result.copy_in_train[test].sum())
    what = "a photograph" if pack.groups is None else "a photograph or given group"
    if not n_twins:
        return f"None of the {n} test images shows {what} that is also in train: no leak found."
    return (
        f"{n_twins} of the {n} test images show {what} that is also in train ({n_copies} "
        "byte for byte), so a score on this test set is too high for new castings: split by group."
    )


def _number_of_photographs(result: Audit, pack: Pack, photographs: Photographs) -> str:
    """Return the sentence about the number of photographs and the threshold."""
    by_label = [len(np.unique(photographs.group[pack.labels == label])) for label in (0, 1)]
    given = (
        f" With the given groups they are {int(result.group.max()) + 1} separate groups."
        if pack.groups is not None
        else ""
    )
    return (
        f"The {len(result.group)} images come from {int(photographs.group.max()) + 1} photographs "
        f"({by_label[0]} {pack.negative}, {by_label[1]} {pack.positive}), rotated or mirrored. Two "
        f"images count as one photograph above a similarity of {photographs.threshold:.2f}; the "
        f"best similarity of different photographs is {photographs.strangers:.2f} (median).{given} "
        f"How sure: a similarity from {photographs.threshold - photo_groups.UNSURE:.2f} to "
        f"{photographs.threshold + photo_groups.UNSURE:.2f} is undecided; there are "
        f"{photographs.n_merged} photographs if all such pairs show one, and "
        f"{photographs.n_separate} if none does."
    )


def _plural(one: str, many: str, n: int) -> str:
    return one if n == 1 else many


def _another_in_train(number: NDArray[np.int64], splits: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Mark images that have the same number as another image of train."""
    train = np.asarray(splits == "train")
    n_train = np.bincount(number[train], minlength=int(number.max()) + 1)
    marked: NDArray[np.bool_] = n_train[number] > train.astype(np.int64)
    return marked


def _content(pack: Pack) -> NDArray[np.float32]:
    """Return (height, width) of each image's content without the black border; [n, 2]."""
    packed = np.array(pack.images.shape[-2:])
    scale = (packed / pack.sizes).min(axis=1, keepdims=True)
    sides: NDArray[np.float32] = np.clip(np.rint(pack.sizes * scale), 1, packed).astype(np.float32)
    return sides


def _measures(pack: Pack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two measures of all images: [n, 3 + _N_RINGS] and [n, 3].

    The first are mean, standard deviation, grain and the means of the rings; the second the mean of
    the border and the offsets of the part's centre (see `cues.measure`).
    All are gray levels. Grain is the mean difference of neighbours. Ring widths are shares of the
    content's short side; rotation and mirroring do not change the pixels in a ring.
    """
    measures = np.empty((len(pack.images), 3 + _N_RINGS))
    borders = np.empty((len(pack.images), 3))
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
        borders[i] = _border(gray)
    return measures, borders


def _border(gray: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return the mean of the outer 5 %, and where the rest differs from it: offsets in x and y."""
    h, w = gray.shape
    edge = max(1, min(h, w) // 20)
    inner = gray[edge : h - edge, edge : w - edge]
    level = (float(gray.sum()) - float(inner.sum())) / max(1, gray.size - inner.size)
    weight = np.abs(gray - level)
    total = float(weight.sum())
    if total == 0:
        return level, 0.0, 0.0
    x = float(weight.sum(axis=0) @ np.arange(w)) / total / max(1, w - 1) - 0.5
    y = float(weight.sum(axis=1) @ np.arange(h)) / total / max(1, h - 1) - 0.5
    return level, x, y


def _is_outlier(measures: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark images ODD robust standard deviations (1.4826 MAD, Hampel 1974) from the medians.

    A spread below one gray level counts as one, so that a set of equal images has no outliers.
    """
    if not seen.any():
        return np.zeros(len(measures), dtype=np.bool_)
    middle = np.median(measures[seen], axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(measures[seen] - middle), axis=0), 1.0)
    far: NDArray[np.bool_] = np.sqrt(np.mean(((measures - middle) / spread) ** 2, axis=1)) > ODD
    return far


def _separation(values: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Return the AUC of values for the labels, or 1 minus it if that is larger."""
    from sklearn.metrics import roc_auc_score

    auc = float(roc_auc_score(labels, values))
    return max(auc, 1 - auc)
