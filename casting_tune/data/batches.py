"""Copies the packed images to the device once, and divides them into batches.

Input: a pack's uint8 array and image indices. Output: a uint8 tensor on the device, a shuffled
order per epoch, and the slices of that order. There are no worker processes: the images are already
decoded, and augmentation runs on the device. `read_ahead` is for images that do not fit there.
Knows no toggles and no networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casting_tune import seeds
from casting_tune.data.pixel_source import PixelSource

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CHUNK = 256  # images reduced at a time, so that the float copy stays small
CHUNK_BYTES = 32 * 2**20  # pixels of large images read at a time


def put(
    images: NDArray[np.uint8], rows: NDArray[np.int64], *, px: int, device: torch.device
) -> torch.Tensor:
    """Copy some images to the device; reduce larger ones to `px` with antialiasing.

    Larger images are reduced here, once, because a warp samples four pixels and would alias.
    Smaller ones are unchanged; the warp of the augmentation enlarges them.

    Args:
        images: [n, h, w] gray or [n, 3, h, w] colour, uint8; read, never written.
        rows: [m] indices of images.
        px: side of the network's input.
        device: of the tensor.

    Returns:
        [m, c, h', w'] uint8 with c 1 or 3, h' = min(h, px) and w' = min(w, px).
    """
    import torch

    channels = 1 if images.ndim == 3 else images.shape[1]
    height, width = images.shape[-2:]
    size = (min(height, px), min(width, px))
    out = torch.empty((len(rows), channels, *size), dtype=torch.uint8, device=device)
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (channels * height * width)))
    with PixelSource(images) as source:
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            pixels = np.empty((len(part), *images.shape[1:]), dtype=np.uint8)
            source.read(part, pixels)
            tensor = torch.from_numpy(pixels).reshape(len(part), channels, height, width)
            out[start : start + chunk] = reduced(tensor.to(device), px=px)
    return out


def reduced(pixels: torch.Tensor, *, px: int) -> torch.Tensor:
    """Return pixels [b, c, h, w] uint8 with sides of at most `px`; smaller ones are unchanged.

    The result of an image does not depend on the other images of the batch.
    """
    import torch
    from torch.nn.functional import interpolate

    height, width = pixels.shape[-2:]
    size = (min(height, px), min(width, px))
    if size == (height, width):
        return pixels
    small = interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
    return small.round_().to(torch.uint8)


def shuffle(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `n` images in an epoch: a permutation from seed and epoch only."""
    return np.random.Generator(np.random.PCG64(seeds.shuffle(seed, epoch))).permutation(n)


def slices(n: int, batch_size: int) -> list[slice]:
    """Return the slices that divide `n` images into batches.

    A last batch of one image is merged with the batch before it: one image has no batch statistics.
    """
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]
