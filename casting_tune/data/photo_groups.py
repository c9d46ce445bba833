"""Groups images of one photograph that was rotated, mirrored, shifted or saved again.

Input: the packed images, their labels and the sides of their content. Output: a group number per
image, the similarity above which two images are one photograph, and its calibration. Knows no
splits, files or scores.

An image is transformed to polar coordinates about its part's centre: a rotation is then a shift
along the angle, and a mirror reverses the angle. The similarity of two images is their best
circular correlation over both. Two exposures of one casting under the same light may count as one
photograph, which is right for a split into train and test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casting_tune import machine
from casting_tune.data.part_centre import OUTER, centre

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_RADII, N_ANGLES = 16, 128
N_WAVES = 32  # frequencies along the angle that are compared: 1 to 32 per rotation

INNER = 0.1
"""The smallest radius that is compared, as a share of the short side; the largest is OUTER."""

MARGIN = 3.4
"""Distance of the threshold from the median of the best similarities of different photographs, in
units of the distance from that median to the 90 % quantile. On the real images 3.4 keeps two
exposures of one casting together (131 groups; 146 at 4, 122 at 3); of 1,000 synthetic castings of
128 px it merges about 10.
"""

FLOOR, CEILING = 0.5, 0.8
"""Limits of the threshold: a few dozen images have too few different photographs, and 99 of 100
real images have another image of their group with similarity .90. On the real images the rule
without limits gives .499.
"""

UNSURE = 0.05
"""Half the width of the band of similarity about the threshold in which a pair is undecided. A
careful second grouping of the real images by another method (polar correlation and affine
registration) agrees with this one to an adjusted Rand index of .92.
"""

FLAT_LEVELS = 0.5
"""A map with a smaller standard deviation of gray levels along the angle is not compared."""

_SAMPLE = 1024  # images of the calibration
_STEP = 16  # images compared at once with _SPAN others: 5 MB of spectra fit in the CPU cache
_SPAN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """The groups of images.

    Attributes:
        group: [n] int64, 0.. in the order of the first image of each group.
        threshold: similarity above which two images are one photograph.
        strangers: median over images of the best similarity with an image of the other class.
        tightness: share of the pairs in groups that are above the threshold, NaN without pairs. A
            low value means that groups are chains: only neighbours are similar.
        n_merged, n_separate: number of groups if the undecided pairs (see UNSURE) were all one
            photograph, and if none was.
    """

    group: NDArray[np.int64]
    threshold: float
    strangers: float
    tightness: float
    n_merged: int
    n_separate: int


def find(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    short_px: NDArray[np.float32] | None = None,
    same: NDArray[np.int64] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Photographs:
    """Group the images by photograph: pairs above the calibrated threshold are connected.

    All pairs are compared, so time grows with n squared: the 7,348 real images take 16 s on one
    core, 9 s for the polar maps and 7 s for 27 million pairs.

    Args:
        images: [n, h, w] or [n, 3, h, w] uint8.
        labels: [n] uint8 with both classes; used to calibrate the threshold.
        short_px: [n] short side of each image's content without black borders.
        same: [n] images with the same number are one photograph regardless of pixels (byte copies).
        on_progress: called with (images done, images in all).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(images)
    spectra = whitened(unwrap(images, short_px=short_px))  # [n, N_RADII, N_WAVES] complex64
    strangers, threshold = _calibrated(spectra, labels)
    copies = _chains(np.arange(n) if same is None else same)
    parts, likeness = [], []
    for n_done, pairs, of_pairs in _linked(spectra, threshold - UNSURE):
        parts.append(pairs)
        likeness.append(of_pairs)
        if on_progress is not None:
            on_progress(n_done, n)
    alike, of_all = np.concatenate(parts, axis=1), np.concatenate(likeness)

    def components(above: float) -> tuple[int, NDArray[np.int64]]:
        edges = np.concatenate([copies, alike[:, of_all > above]], axis=1)
        count, number = connected_components(
            coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(n, n))
        )
        return count, number.astype(np.int64)

    _, found = components(threshold)
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[number].astype(np.int64)
    sizes = np.bincount(group)
    n_pairs = int((sizes * (sizes - 1) // 2).sum())
    return Photographs(
        group=group,
        threshold=threshold,
        strangers=strangers,
        tightness=int((of_all > threshold).sum()) / n_pairs if n_pairs else float("nan"),
        n_merged=components(threshold - UNSURE)[0],
        n_separate=components(threshold + UNSURE)[0],
    )


def unwrap(
    images: NDArray[np.uint8],
    *,
    rows: NDArray[np.int64] | None = None,
    short_px: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return polar maps of images about their part's centre: [n, N_RADII, N_ANGLES] gray levels.

    Half of the real castings are 5.7 px or more from the middle, and images of one group differ in
    that. With maps about the middle, the lowest best similarity of 149 test images with an image of
    their group in train falls from .89 to .71.

    Args:
        images: [n, h, w] or [n, 3, h, w] uint8.
        rows: indices of the images; None is all.
        short_px: [n] short side of each image's content; None is that of the image.
    """
    from scipy.ndimage import map_coordinates, uniform_filter

    wanted = np.arange(len(images)) if rows is None else rows
    short = (
        np.full(len(images), min(images.shape[-2:]), dtype=np.float32)
        if short_px is None
        else short_px
    )
    radii = np.linspace(INNER, OUTER, N_RADII)[:, None]
    angles = np.arange(N_ANGLES) * (2 * np.pi / N_ANGLES)
    # [N_RADII, N_ANGLES] shares of the short side
    down, right = radii * np.sin(angles), radii * np.cos(angles)
    maps = np.empty((len(wanted), N_RADII, N_ANGLES), dtype=np.float32)

    def work(i: int) -> None:
        gray, side = luminance(images[wanted[i]]), float(short[wanted[i]])
        y, x = centre(gray, side)
        odd = 2 * int(side / 120) + 1  # an even size would shift the image
        smooth = uniform_filter(gray, size=odd, mode="nearest")
        map_coordinates(
            smooth, [y + side * down, x + side * right], output=maps[i], order=1, mode="nearest"
        )

    with ThreadPoolExecutor(machine.cpus()) as threads:
        deque(threads.map(work, range(len(wanted))), maxlen=0)
    return maps


def luminance(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return [h, w] gray levels of an image [h, w] or [3, h, w], weighted as in ITU-R BT.601."""
    if image.ndim == 2:
        return image.astype(np.float32)
    return np.tensordot(
        np.array([0.299, 0.587, 0.114], dtype=np.float32), image.astype(np.float32), axes=1
    )


def plain(maps: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return spectra of polar maps along the angle, [n, N_RADII, N_WAVES], of norm 1 per image.

    `similarity` of these is the correlation of the maps, with the mean of each ring subtracted. The
    spectrum of a map that is constant along the angle is 0.
    """
    return _of_length_one(_spectra(maps))


def whitened(maps: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return spectra as `plain`, without the common part of all images.

    The mean of the set (a fixed background) is subtracted, and each frequency is scaled to the same
    strength over the set and then within the image, as in phase correlation (Kuglin & Hines 1975).
    Differences between photographs then count more than what all castings have in common.
    """
    spectra = _spectra(maps)
    flat = ~spectra.any(axis=(1, 2))
    spectra = spectra - spectra.mean(axis=0)
    for across in (0, 1):
        strength = np.sqrt(np.mean(np.abs(spectra) ** 2, axis=across, keepdims=True))
        spectra = spectra / np.maximum(strength, 1e-6)
    spectra[flat] = 0
    return _of_length_one(spectra)


def similarity(
    these: NDArray[np.complex64], those: NDArray[np.complex64], *, above: float = 0.0
) -> NDArray[np.float32]:
    """Return the best circular correlation of each pair over rotation and mirroring, in 0..1.

    Pairs that cannot exceed `above` are 0: the sum of the cross-spectrum's magnitudes is an upper
    bound of its transform, so no pair is missed, and 99 of 100 pairs need no transform.

    Returns:
        [n_these, n_those] float32.
    """
    from scipy.fft import irfft

    ahead = np.ascontiguousarray(those.transpose(2, 1, 0))  # [N_WAVES, N_RADII, n_those]
    behind = np.ascontiguousarray(these.transpose(2, 0, 1))  # [N_WAVES, n_these, N_RADII]
    best = np.zeros((len(these), len(those)), dtype=np.float32)
    for view in (behind.conj(), behind):  # unchanged, and mirrored
        cross = view @ ahead  # [N_WAVES, n_these, n_those]
        i, j = np.nonzero(2 * np.abs(cross).sum(axis=0) > above)
        padded = np.zeros((len(i), N_ANGLES // 2 + 1), dtype=np.complex64)
        padded[:, 1 : N_WAVES + 1] = cross[:, i, j].T
        peaks = irfft(padded, n=N_ANGLES, axis=-1).max(axis=-1, initial=0) * N_ANGLES
        best[i, j] = np.maximum(best[i, j], peaks)
    best[best <= above] = 0
    return best


def _calibrated(spectra: NDArray[np.complex64], labels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the median best similarity of different photographs, and the threshold.

    Images of different classes have the same product, light and background but are different
    photographs, except for the few photographs with both labels. So the best similarity of each
    image of a random sample with the other class shows what chance gives on this set. The threshold
    is computed in Fisher's z (1915): the median, plus MARGIN times the distance from the median to
    the 90 % quantile, a robust fit of the tail of a maximum (Gumbel 1958). Label conflicts make
    that tail longer, so at most twice the distance to the 75 % quantile counts. Similarities above
    CEILING are one photograph with two labels and are excluded. On the real images no pair with
    different labels exceeds .39, except for the one photograph with both labels.
    """
    rows = np.random.default_rng(0).permutation(len(labels))[:_SAMPLE]
    best = np.zeros(len(rows), dtype=np.float32)
    for label in (0, 1):
        mine, others = np.flatnonzero(labels[rows] == label), np.flatnonzero(labels != label)
        for start in range(0, len(others), _SPAN):
            those = spectra[others[start : start + _SPAN]]
            for part in (mine[at : at + _STEP] for at in range(0, len(mine), _STEP)):
                scores = similarity(spectra[rows[part]], those).max(axis=1)
                best[part] = np.maximum(best[part], scores)
    best = best[best < CEILING]
    if not best.size:
        return CEILING, CEILING
    middle, upper, high = np.quantile(np.arctanh(best.astype(np.float64)), (0.5, 0.75, 0.9))
    cut = float(np.tanh(middle + MARGIN * min(high - middle, 2 * (upper - middle))))
    return float(np.tanh(middle)), min(max(cut, FLOOR), CEILING)


def _linked(
    spectra: NDArray[np.complex64], above: float
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (images done, pairs [2, k] with a similarity above `above`, their similarity [k])."""
    n = len(spectra)

    def work(start: int) -> tuple[int, NDArray[np.int64], NDArray[np.float32]]:
        these = spectra[start : start + _STEP]
        spans = range(start, n, _SPAN)
        scores = [similarity(these, spectra[at : at + _SPAN], above=above) for at in spans]
        whole = np.concatenate(scores, axis=1)
        i, j = np.nonzero(whole)
        once = i < j
        i, j = i[once], j[once]
        return start + len(these), np.stack([i, j]) + start, whole[i, j]

    with ThreadPoolExecutor(machine.cpus()) as threads:
        yield from threads.map(work, range(0, n, _STEP))


def _spectra(maps: NDArray[np.float32]) -> NDArray[np.complex64]:
    from scipy.fft import rfft

    spectra = np.asarray(rfft(maps, axis=-1)[:, :, 1 : N_WAVES + 1], dtype=np.complex64)
    power = 2 * np.sum(np.abs(spectra) ** 2, axis=2).mean(axis=1)
    spectra[power < (FLAT_LEVELS * N_ANGLES) ** 2] = 0  # Parseval's theorem
    return spectra


def _of_length_one(spectra: NDArray[np.complex64]) -> NDArray[np.complex64]:
    length = np.sqrt(2 * np.sum(np.abs(spectra) ** 2, axis=(1, 2), keepdims=True))
    return np.asarray(spectra / np.maximum(length, 1e-6), dtype=np.complex64)


def _chains(same: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pairs [2, k] that connect each image to the next one with the same number."""
    order = np.argsort(same, kind="stable")
    equal = same[order[1:]] == same[order[:-1]]
    return np.stack([order[:-1][equal], order[1:][equal]])
