"""Reads the pixels of packed images: from the pack's file, or from an array in memory.

Input: a pack's array and image indices. Output: pixels, copied into a given array. A file is read
and not mapped: a mapped page counts as memory of the process, and an error of the disk would end
the process. Knows no batches, devices or networks.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casting_tune.errors import ImagesError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PixelSource:
    """The images of a pack, open for reading; one thread reads at a time.

    Attributes:
        from_disk: whether the pixels come from a file, not from an array in memory.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        file = file_of(images)
        self.from_disk = file is not None
        self._file = None if file is None else file.open("rb", buffering=0)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the images `rows` [m] into `out`, [m, h, w] or [m, 3, h, w], contiguous.

        Raises:
            ImagesError: the file is shorter than its images.
            OSError: the file cannot be read.
        """
        if self._file is None:
            np.take(self._images, rows, axis=0, out=out, mode="clip")  # "raise" would copy twice
            return
        descriptor, n_bytes = self._file.fileno(), out[0].nbytes if len(out) else 0
        start = int(getattr(self._images, "offset"))  # noqa: B009  (an attribute of memmap)
        for row, pixels in zip(rows.tolist(), out, strict=True):
            _read_at(descriptor, pixels.data.cast("B"), start + row * n_bytes, self._file.name)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> PixelSource:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def file_of(images: NDArray[np.uint8]) -> Path | None:
    """Return the file of a memory-mapped array; None for another array, and for part of one."""
    if not isinstance(images, np.memmap) or not images.flags.c_contiguous:
        return None
    whole: object = images.base  # of a part, it is the whole array
    return Path(images.filename) if isinstance(whole, mmap.mmap) and images.filename else None


def _read_at(descriptor: int, out: memoryview, offset: int, name: object) -> None:
    """Fill a buffer from an offset; one call reads at most 2 GiB."""
    while out:
        n = os.preadv(descriptor, [out], offset)
        if n == 0:
            raise ImagesError(
                f"The pack '{name}' is damaged: the file is too short. Remove its folder and pack "
                "the images again."
            )
        out, offset = out[n:], offset + n
