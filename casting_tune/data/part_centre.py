"""Finds the centre of the round part in an image.

Input: gray levels. Output: a point. Knows no groups and no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTER = 0.47
"""The largest radius that is read, as a share of the short side, without the corners."""

_WORK_PX = 75  # side of the image for the search of the centre


def centre(gray: NDArray[np.float32], short_px: float) -> tuple[float, float]:
    """Return (y, x) of the centre of the round part, in pixels, near the middle of the image.

    It is the point nearest to all lines along the gradient (Parthasarathy 2012, Nature Methods
    9:724), weighted by the gradient's power and, after a first pass, by the distance of each line.
    It rotates with the part. A weak force towards the middle gives a result without gradients. The
    distance from the middle is at most a tenth of the short side.
    """
    coarse = max(1, round(short_px / _WORK_PX))
    h, w = (side // coarse * coarse for side in gray.shape)
    top, left = (gray.shape[0] - h) // 2, (gray.shape[1] - w) // 2
    small = (
        gray[top : top + h, left : left + w]
        .reshape(h // coarse, coarse, w // coarse, coarse)
        .mean(axis=(1, 3))
    )
    short = short_px / coarse
    y, x = np.ogrid[: small.shape[0], : small.shape[1]]
    y, x = y - (small.shape[0] - 1) / 2, x - (small.shape[1] - 1) / 2
    gy, gx = _gradient(small)
    power = gy**2 + gx**2 + 1e-6
    nyy, nxx, nyx = gx**2 / power, gy**2 / power, -gx * gy / power  # projection across the gradient
    at = np.zeros(2)
    for step in range(4):
        dy, dx = y - at[0], x - at[1]
        r = np.hypot(dy, dx)
        weight = np.where((r < OUTER * short) & (r > 0.05 * short), power / (r + 1), 0)
        if step:
            weight = weight / (nyy * dy**2 + nxx * dx**2 + 2 * nyx * dy * dx + (0.01 * short) ** 2)
        a, b, c = (weight * nyy).sum(), (weight * nxx).sum(), (weight * nyx).sum()
        pull = 1e-3 * (a + b) + 1e-9
        normal = np.array([[a + pull, c], [c, b + pull]])
        target = np.array(
            [(weight * (nyy * y + nyx * x)).sum(), (weight * (nyx * y + nxx * x)).sum()]
        )
        at = np.clip(np.linalg.solve(normal, target), -0.1 * short, 0.1 * short)
    return float(top + (h - 1) / 2 + coarse * at[0]), float(left + (w - 1) / 2 + coarse * at[1])


def _gradient(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the gradient of the smoothed image, down and to the right; 0 at the border."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(image, 1.0, mode="nearest")
    down, right = np.zeros_like(smooth), np.zeros_like(smooth)
    down[1:-1] = (smooth[2:] - smooth[:-2]) / 2
    right[:, 1:-1] = (smooth[:, 2:] - smooth[:, :-2]) / 2
    return down, right
