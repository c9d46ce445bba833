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
from casting_tune.data import decode, deep_levels
from casting_tune.data.decode import Picture
from casting_tune.data.pixel_rules import PixelRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIXED_PX = 512
"""Side of the packed images if the images have several sizes and no size is given."""

FEW = 0.1
"""Coloured images among gray ones are suspect if their share is below this."""

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


class ColouredError(Exception):
    """A few images are coloured, the others gray; `indices` are those of the coloured files."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(f"{len(indices)} coloured images among gray ones")
        self.indices = indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        pictures: one per file, without pixels.
        shape: of the array.
        bits: range of the 16-bit files; 16 if there are none.
    """

    pictures: list[Picture]
    shape: tuple[int, ...]
    bits: int


def write_images(
    stream: IO[bytes],
    files: Sequence[Path],
    *,
    rules: PixelRules,
    on_progress: Callable[[int, int], None] | None,
) -> Written:
    """Write all usable images to an .npy file.

    Size, colour and range of the first image are assumed for all. If one differs, writing starts
    again: a folder of equal images is decoded once, another one mostly twice.

    Args:
        stream: the file, open for reading and writing.
        files: in the order of the array.
        rules: as the user gives them.
        on_progress: called with (images decoded, images in all).

    Raises:
        ColouredError: a few images are coloured, and `rules` ask.
    """
    decoded = (decode.decode(file, box=rules.size_px, rules=rules) for file in files)
    first = next((picture for picture in decoded if picture.pixels is not None), Picture(""))
    plan = _suited([first], rules, _Plan(replace(rules, bits=rules.bits or 16), 1))
    while True:  # ends: a full turn knows the range, and a size or colour is found only once
        array = _array(stream, files, plan)
        pictures, are_mixed = _fill(array, files, rules=plan.rules, on_progress=on_progress)
        if are_mixed:
            plan = replace(plan, rules=replace(plan.rules, size_px=MIXED_PX))
            continue
        found = _suited(pictures, rules, plan)
        if found == plan:
            break
        plan = found
    usable = [i for i, picture in enumerate(pictures) if not picture.reason]
    array.keep(usable)
    return Written(pictures=pictures, shape=(len(usable), *array.shape), bits=plan.rules.bits or 16)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one turn over the files assumes: resolved rules, and the channels of the array."""

    rules: PixelRules
    n_channels: int


def _suited(pictures: Sequence[Picture], given: PixelRules, plan: _Plan) -> _Plan:
    """Return the plan that suits all pictures; a new range goes first, since it makes some usable.

    Raises:
        ColouredError: a few are coloured, and the given rules ask.
    """
    level = max(picture.level for picture in pictures)
    bits = deep_levels.needed(level) if level and given.bits is None else plan.rules.bits
    if bits != plan.rules.bits and len(pictures) > 1:
        return replace(plan, rules=replace(plan.rules, bits=bits))
    rules = replace(plan.rules, bits=bits)
    kinds = ("colour", "nearly gray") if given.colour == "colour" else ("colour",)
    coloured = [i for i, picture in enumerate(pictures) if picture.colour in kinds]
    if not coloured or given.colour == "gray":
        return _Plan(rules, 1)
    if given.colour == "ask" and len(coloured) < FEW * sum(not p.reason for p in pictures):
        raise ColouredError(coloured)
    return _Plan(replace(rules, colour="colour"), 3)


def _array(stream: IO[bytes], files: Sequence[Path], plan: _Plan) -> _Array:
    """Return an empty array for images as the first usable file gives them."""
    rules = plan.rules
    decoded = (decode.decode(file, box=rules.size_px, rules=rules).pixels for file in files)
    first = next((pixels for pixels in decoded if pixels is not None), np.empty((0, 0), np.uint8))
    shape = first.shape[-2:] if plan.n_channels == 1 else (plan.n_channels, *first.shape[-2:])
    stream.truncate(0)
    _write_header(stream, len(files), shape)
    stream.flush()
    return _Array(stream, shape, stream.tell())


def _fill(
    array: _Array,
    files: Sequence[Path],
    *,
    rules: PixelRules,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Picture], bool]:
    """Decode files into the array; return the pictures, and whether one has another size.

    A coloured image that does not fit into a gray array is not written.
    """
    shape = array.shape

    def work(i: int) -> Picture:
        picture = decode.decode(files[i], box=rules.size_px, rules=rules)
        pixels = picture.pixels
        if pixels is not None and pixels.shape[-2:] != shape[-2:]:
            return picture
        if pixels is not None and pixels.ndim <= len(shape):
            array.put(i, pixels)
        return replace(picture, pixels=None)

    pictures: list[Picture] = []
    threads = ThreadPoolExecutor(machine.cpus())
    try:
        for picture in threads.map(work, range(len(files))):
            if picture.pixels is not None:
                return pictures, True
            pictures.append(picture)
            if len(pictures) % _SYNCED == 0:
                os.fsync(array.stream.fileno())  # one fsync at the end took 0.3 s more
            if on_progress is not None:
                on_progress(len(pictures), len(files))
    finally:
        threads.shutdown(cancel_futures=True)
    return pictures, False


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
