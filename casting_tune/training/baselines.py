"""Scores without learning: the majority class, the nearest neighbour, a linear probe.

Input: packed images, labels, the image indices of train and test. Output: P(defective) of the test
images, as a trained network would give it. A network that is not better than these has shown
nothing. Knows no networks and no stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from casting_tune.data import photo_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray


BASELINES = {
    "majority": "majority class",
    "nearest_small": "nearest neighbour, 8 turns",
    "nearest_polar": "nearest neighbour, all turns",
    "linear_probe": "linear probe, random features",
}
"""A baseline's name -> its row in a table."""

MOST_PROBED = 50_000
"""Images that the linear probe learns from at most: 0.2 GB of features in float64.

A larger set is reduced to so many, chosen at random within each class.
"""

_SMALL_PX = 40
_STEP = 256  # train images compared at once with the test images
_FEW = 16  # the same, if each pair requires a transform
_SPAN = 4096  # test images compared at once: 200 MB of views; also train images unwrapped at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Scores of the test images by a baseline that has not seen their labels.

    Attributes:
        name: a name of `BASELINES`.
        about: its row in a table.
        score: [n_test] float32, P(defective) in [0, 1].
    """

    name: str
    about: str
    score: NDArray[np.float32]


def majority(labels_train: NDArray[np.uint8], n_test: int) -> Baseline:
    """Return the share of defects in train as every score: at 0.5 the larger class wins."""
    return _baseline("majority", np.full(n_test, labels_train.mean()))


def nearest(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    *,
    descriptor: Literal["small", "polar"],
) -> Baseline:
    """Return the one-nearest-neighbour rule (Cover & Hart 1967), with correlation as similarity.

    The score is 1/2 plus a quarter of the difference between the similarities to the nearest
    defective image and to the nearest good image. At threshold 0.5 it is the label of the nearest
    image of all.

    Args:
        images: [n, h, w] or [n, 3, h, w] uint8.
        labels: [n] uint8; only those of train are used.
        train: image indices of possible neighbours; both classes.
        test: image indices to score.
        descriptor: "small" compares 40x40 gray pixels over the 8 flips and quarter turns. "polar"
            compares images unwrapped about the centre of their part, over every turn and mirror.
    """
    compare = {"small": _small_likeness, "polar": _polar_likeness}[descriptor]
    best = np.full((len(test), 2), -1, dtype=np.float32)  # nearest good, nearest defective
    for start in range(0, len(test), _SPAN):
        span = slice(start, start + _SPAN)
        for rows, likeness in compare(images, train, test[span]):
            for label in (0, 1):
                of_label = likeness[:, labels[rows] == label]
                best[span, label] = np.maximum(best[span, label], of_label.max(axis=1, initial=-1))
    return _baseline(f"nearest_{descriptor}", 0.5 + (best[:, 1] - best[:, 0]) / 4)


def linear_probe(
    features_train: NDArray[np.float32],
    labels_train: NDArray[np.uint8],
    features_test: NDArray[np.float32],
) -> Baseline:
    """Return a logistic regression (L2, C = 1) on features [n, d], standardised by train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(features_train.astype(np.float64), labels_train)
    score = np.empty(len(features_test), np.float64)
    for start in range(0, len(score), MOST_PROBED):
        part = slice(start, start + MOST_PROBED)
        score[part] = probe.predict_proba(features_test[part].astype(np.float64))[:, 1]
    return _baseline("linear_probe", score)


def _baseline(name: str, score: NDArray[np.floating]) -> Baseline:
    return Baseline(name=name, about=BASELINES[name], score=score.astype(np.float32))


def _small_likeness(
    images: NDArray[np.uint8], train: NDArray[np.int64], test: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (train indices, their best correlations with test over flips and quarter turns)."""
    small = np.stack([_shrunk(images[row]) for row in test])  # [n_test, 40, 40]
    turned = [
        np.rot90(view, k, axes=(1, 2)) for view in (small, small[:, :, ::-1]) for k in range(4)
    ]
    views = np.concatenate([_unit(view) for view in turned])  # [8 n_test, 1600]
    for start in range(0, len(train), _STEP):
        rows = train[start : start + _STEP]
        train_views = _unit(np.stack([_shrunk(images[row]) for row in rows]))
        likeness: NDArray[np.float32] = (
            (views @ train_views.T).reshape(8, len(test), len(rows)).max(axis=0)
        )
        yield rows, likeness


def _polar_likeness(
    images: NDArray[np.uint8], train: NDArray[np.int64], test: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (train indices, their best circular correlations with test over turns and mirror)."""
    those = photo_groups.plain(photo_groups.unwrap(images, rows=test))
    for first in range(0, len(train), _SPAN):
        rows = train[first : first + _SPAN]
        spectra = photo_groups.plain(photo_groups.unwrap(images, rows=rows))
        for start in range(0, len(rows), _FEW):
            these = spectra[start : start + _FEW]
            yield rows[start : start + _FEW], photo_groups.similarity(these, those).T


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return [40, 40] gray levels, each the mean over its share of the image's area."""
    gray = photo_groups.luminance(image)
    return np.asarray(_shares(gray.shape[0]) @ gray @ _shares(gray.shape[1]).T, dtype=np.float32)


def _shares(side: int) -> NDArray[np.float32]:
    """Return [40, side]: weights of the pixels of a row in each of its 40 equal parts."""
    edges = np.linspace(0, side, _SMALL_PX + 1)[:, None]
    pixels = np.arange(side)[None, :]
    covered = np.clip(edges - pixels, 0, 1)  # share of each pixel before each edge
    return (np.diff(covered, axis=0) * (_SMALL_PX / side)).astype(np.float32)


def _unit(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [n, pixels] with mean 0 and length 1 per row; an image of one gray level is all 0."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-3), dtype=np.float32)
