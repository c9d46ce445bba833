"""Writes the images of a folder as one .npy file, decoded by several threads.

Input: image files in their order. Output: an array file [n, h, w] or [n, 3, h, w] uint8, and what
was found in each file. Knows no classes, splits or manifests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from casting_tune import machine
from casting_tune.data import decode
from casting_tune.data.decode import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIXED_PX = 512
"""Side of the packed images if the images have several sizes and no size is given."""

_SYNCED = 1000  # images between two calls of fsync: 90 MB at 300 px


@dataclass(frozen=True, slots=True)
class _Array:
    """The data area of an .npy file of images of one shape.

    Attributes:
        stream: the file, open for reading and writing.
        shape: of one image, [h, w] or [3, h, w].
        start: position of the first image, in bytes.
    """

    stream: IO[bytes]
    shape: tuple[int, ...]
    start: int

    def put(self, i: int, pixels: NDArray[np.uint8]) -> None:
        """Write image i; several threads may do so at the same time."""
        content = np.ascontiguousarray(np.broadcast_to(pixels, self.shape)).data
        _write_at(self.stream.fileno(), content, self.start + i * math.prod(self.shape))

    def keep(self, indices: Sequence[int]) -> None:
        """Move these images to the front, in ascending order, and cut the file after them."""
        descriptor, n_bytes = self.stream.fileno(), math.prod(self.shape)
        for to, i in enumerate(indices):
            if to != i:
                content = os.pread(descriptor, n_bytes, self.start + i * n_bytes)
                _write_at(descriptor, memoryview(content), self.start + to * n_bytes)
        os.ftruncate(descriptor, self.start + len(indices) * n_bytes)
        _write_header(self.stream, len(indices), self.shape)


def write_images(
    stream: IO[bytes],
    files: Sequence[Path],
    *,
    box: int | None,
    n_channels: int = 1,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Picture], tuple[int, ...]]:
    """Write all usable images to an .npy file.

    The first attempt assumes gray images of one size. If an image differs, writing starts again,
    at most twice: a folder of equal images is decoded once.

    Args:
        stream: the file, open for reading and writing.
        files: in the order of the array.
        box: side of square images; None keeps the size if all images have the same size.
        n_channels: 1 or 3, of the array.
        on_progress: called with (images decoded, images in all).

    Returns:
        One Picture per file, without pixels, and the shape of the array.
    """
    decoded = (decode.decode(file, box=box).pixels for file in files)
    first = next((pixels for pixels in decoded if pixels is not None), np.empty((0, 0), np.uint8))
    shape = first.shape[-2:] if n_channels == 1 else (n_channels, *first.shape[-2:])
    stream.truncate(0)
    _write_header(stream, len(files), shape)
    stream.flush()
    array = _Array(stream, shape, stream.tell())
    pictures, misfit = _fill(array, files, box=box, on_progress=on_progress)
    if misfit is not None:
        colour = misfit.ndim > len(shape)
        return write_images(
            stream,
            files,
            box=box if colour else MIXED_PX,
            n_channels=3 if colour else n_channels,
            on_progress=on_progress,
        )
    usable = [i for i, picture in enumerate(pictures) if not picture.reason]
    array.keep(usable)
    return pictures, (len(usable), *shape)


def _fill(
    array: _Array,
    files: Sequence[Path],
    *,
    box: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Picture], NDArray[np.uint8] | None]:
    """Decode files into the array; return the pictures, and the first misfit if any."""
    shape = array.shape

    def work(i: int) -> Picture:
        picture = decode.decode(files[i], box=box)
        pixels = picture.pixels
        if pixels is None or pixels.ndim > len(shape) or pixels.shape[-2:] != shape[-2:]:
            return picture
        array.put(i, pixels)
        return replace(picture, pixels=None)

    pictures: list[Picture] = []
    threads = ThreadPoolExecutor(machine.cpus())
    try:
        for picture in threads.map(work, range(len(files))):
            if picture.pixels is not None:
                return pictures, picture.pixels
            pictures.append(picture)
            if len(pictures) % _SYNCED == 0:
                os.fsync(array.stream.fileno())  # one fsync at the end took 0.3 s more
            if on_progress is not None:
                on_progress(len(pictures), len(files))
    finally:
        threads.shutdown(cancel_futures=True)
    return pictures, None


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all bytes at an offset; on a full disk, the second call raises."""
    content = content.cast("B")
    while content:
        n = os.pwrite(descriptor, content, offset)
        content, offset = content[n:], offset + n


def _write_header(stream: IO[bytes], n: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header of n images; numpy pads n to 21 digits, so its length is constant."""
    stream.seek(0)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    )
