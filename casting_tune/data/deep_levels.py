"""Brings images of more than 8 bits per channel to 8 bits.

Input: an opened image, the content of its file, the number of bits that its levels use. Output: an
8-bit image and the largest level in the file. Pillow opens 16-bit gray images in full, but gives
only the upper 8 bits of 16-bit colour and alpha: the lower ones come from a second reading in the
other byte order. Knows no folders and no packs.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from casting_tune.data.pixel_rules import BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray


WHITE_IS_ZERO, TWELVE_PACKED = "WhiteIsZero, inverted", "12 bits packed"
"""What casting_tune 0.1 misread, as a pack records it."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF

_STRIP = 256  # rows

# gray TIFF that Pillow decodes and does not list: 16 bits big-endian WhiteIsZero, 12 bits packed
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
for _order, _photometric in product((b"II", b"MM"), (0, 1)):
    TiffImagePlugin.OPEN_INFO.setdefault(
        (_order, _photometric, (1,), 1, (12,), ()), ("I;16", "I;12")
    )


class ExceedsError(ValueError):
    """A level does not fit into the range; `level` is the largest one of the image."""

    def __init__(self, level: int, bits: int) -> None:
        super().__init__(f"gray level {level:,} does not fit into {bits} bits (0..{2**bits - 1:,})")
        self.level = level


@dataclass(frozen=True, slots=True)
class Deep:
    """An image of more than 8 bits, brought to 8.

    Attributes:
        image: in a mode of 8 bits per channel.
        level: the largest level in the file; 0 if the file itself names its range.
        note: WHITE_IS_ZERO, TWELVE_PACKED or "".
    """

    image: Image.Image
    level: int
    note: str = ""


def needed(level: int) -> int:
    """Return the smallest number of bits in BITS that holds a level of 0 to 65,535."""
    return next(bits for bits in BITS if level < 2**bits)


def reduced(image: Image.Image, content: bytes, *, bits: int) -> Deep | None:
    """Return an image with 8 bits per channel; None if it has no more than 8.

    Args:
        image: opened from `content`, upright.
        content: of its file.
        bits: the levels of a file that does not name its range are 0 to 2**bits - 1.

    Raises:
        ExceedsError: a level is outside this range.
        ValueError: a level is outside 16 bits, or the image has a form that cannot be read.
    """
    if image.mode.startswith("I"):  # Pillow's own convert saturates at 255
        return _gray(image, content, bits=bits)
    if image.format == "PPM" and image.mode == "RGB" and _largest_of_pnm(content) == 65535:
        return _colour(image, content, bits=bits)
    if (image.format == "PNG" and content[24] == 16) or (  # the depth in the chunk IHDR
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    ):
        return _colour(image, content, bits=bits)
    return None


def _gray(image: Image.Image, content: bytes, *, bits: int) -> Deep:
    levels = np.asarray(image)
    largest = int(levels.max())
    if levels.min() < 0 or largest > 65535:
        raise ValueError("gray levels outside 16 bits: save it with 8 or 16 bits")
    top, note = 2**bits - 1, ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(_PHOTOMETRIC) == 0:
            note = WHITE_IS_ZERO
        if image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):
            top, largest, note = 4095, 0, note or TWELVE_PACKED
    elif image.format == "PPM" and _largest_of_pnm(content) < 65535:
        top, largest = 65535, 0  # Pillow has scaled the file's own range to it
    if largest > top:
        raise ExceedsError(largest, bits)
    eight = Image.fromarray(_scaled(levels, top))
    return Deep(ImageOps.invert(eight) if note == WHITE_IS_ZERO else eight, largest, note)


def _colour(image: Image.Image, content: bytes, *, bits: int) -> Deep:
    """Return a 16-bit image with colour or alpha; at 16 bits, the upper 8 as Pillow gives them."""
    upper = np.asarray(image)  # [h, w, c] uint8
    if bits == 16 and upper[..., :3].max() > 64:  # a level of 2**14 or above
        return Deep(image, 65535)
    levels = _full(image, content)
    if levels is None:
        if bits < 16:
            raise ValueError("16 bits in a form that cannot be read in full: save it with 8 bits")
        return Deep(image, 65535)
    largest = int(levels.max())
    if largest >= 2**bits:
        raise ExceedsError(largest, bits)
    if bits < 16:
        eight = Image.fromarray(_scaled(levels, 2**bits - 1))
        if image.mode == "RGBA":
            eight = eight.convert("RGBA")
            eight.putalpha(image.getchannel("A"))
        image = eight
    return Deep(image, largest)


def _full(image: Image.Image, content: bytes) -> NDArray[np.uint16] | None:
    """Return the 16-bit levels without alpha, [h, w] gray or [h, w, 3], or None if impossible."""
    with Image.open(io.BytesIO(content), formats=(str(image.format),)) as second:
        tiles, (width, height) = second.tile, second.size
        if content[:2] == b"P6":
            wide = np.frombuffer(content, ">u2", 3 * width * height, tiles[0].offset)
            return wide.reshape(height, width, 3)
        words = [
            (tile.args,) if isinstance(tile.args, str) else tile.args or ("",) for tile in tiles
        ]
        mode = _other(str(words[0][0]))
        if not mode or any(args[0] != words[0][0] for args in words):
            return None
        second.tile = [
            tile._replace(args=mode if isinstance(tile.args, str) else (mode, *args[1:]))
            for tile, args in zip(tiles, words, strict=True)
        ]
        ImageOps.exif_transpose(second, in_place=True)
        low = np.asarray(second).astype(np.uint16)
    if mode == "RGBA":  # the bytes of gray and alpha: high, low, high, low
        return low[..., 0] * 256 + low[..., 1]
    return np.asarray(image)[..., :3].astype(np.uint16) * 256 + low[..., :3]


def _other(mode: str) -> str:
    """Return the raw mode that gives the lower bytes where `mode` gives the upper ones, or ""."""
    if mode == "LA;16B":
        return "RGBA"
    found = re.fullmatch(r"(RGB|RGBA|RGBX);16([BLN])", mode)
    if found is None:
        return ""
    native = "L" if sys.byteorder == "little" else "B"
    order = native if found[2] == "N" else found[2]
    return f"{found[1]};16{'L' if order == 'B' else 'B'}"


def _scaled(levels: NDArray[np.uint16] | NDArray[np.int32], top: int) -> NDArray[np.uint8]:
    """Return levels of 0..top as 0..255, rounded; by strips, as line-scan images are large."""
    eight = np.empty(levels.shape, np.uint8)
    for start in range(0, len(levels), _STRIP):
        part = levels[start : start + _STRIP].astype(np.int32)
        eight[start : start + _STRIP] = (part * 255 + top // 2) // top
    return eight


def _largest_of_pnm(content: bytes) -> int:
    """Return the largest level that the header of a PGM or PPM file names."""
    return int(re.sub(rb"#[^\r\n]*", b" ", content[:4096]).split(None, 4)[3])
