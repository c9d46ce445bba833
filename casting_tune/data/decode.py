"""Decodes one image file into one uint8 picture.

Input: a file of any of the formats below. Output: a Picture: gray or colour, upright, without
alpha, 8 bits, and optionally letterboxed. For a bad file the Picture has the reason; it is not an
exception. Knows no folders, classes, splits or packs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from casting_tune.text import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 25_000_000
"""Larger images are rejected by their header: a PNG of 17 kB can have 144 million pixels."""

SUFFIXES = ("bmp", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp")

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of one file.

    Attributes:
        sha256: of the file's bytes; empty if it cannot be read.
        size: (height, width) in the file, after its EXIF rotation.
        pixels: [h, w] uint8 if exactly gray, else [3, h, w]; None if the file cannot be used.
        reason: why the file cannot be used, in one line; empty if it can.
    """

    sha256: str
    size: tuple[int, int] = (0, 0)
    pixels: NDArray[np.uint8] | None = None
    reason: str = ""


def decode(file: Path, *, box: int | None) -> Picture:
    """Decode one file; letterbox it into a square of side `box`; None keeps its size."""
    content, sha256, reason = read(file)
    if reason:
        return Picture(sha256, reason=reason)
    try:
        image = _upright(content)
        size = (image.height, image.width)
        letterboxed = image if box is None else _letterboxed(image, box)
        pixels = np.asarray(letterboxed)  # [h, w] or [h, w, 3]
    # the warning counts if warnings are errors
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Picture(sha256, reason=f"more than {MAX_PIXELS // 10**6} megapixels")
    except UnidentifiedImageError:
        return Picture(sha256, reason=f"not one of {', '.join(_FORMATS)}")
    # decoders raise almost any exception for invalid bytes; the caller reports the file
    except Exception as error:
        return Picture(sha256, reason=one_line(str(error)) or type(error).__name__)
    return Picture(sha256, size, pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def read(file: Path) -> tuple[bytes, str, str]:
    """Return a file's bytes, their sha256, and the reason why they cannot be used, or ""."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return b"", "", f"cannot be read: {error.strerror}"
    return content, hashlib.sha256(content).hexdigest(), "" if content else "empty file"


def one_line(text: str) -> str:
    """Return text without control characters and line ends, at most 200 characters."""
    return plain(text)[:200]


def _upright(content: bytes) -> Image.Image:
    """Return the image with its EXIF rotation, in mode L if exactly gray (R = G = B), else in RGB.

    A JPEG is first read without the conversion to RGB: if all chroma is 128, libjpeg's R, G and B
    equal its Y. That is twice as fast (2,600 instead of 1,250 images/s per thread at 300 px). For
    other images the RGB pixels are compared.
    """
    image = _opened(content)
    if image.format in ("JPEG", "MPO") and image.mode == "RGB":
        # components R, G, B have no chroma; a broken file fails again below
        with contextlib.suppress(OSError):
            image.draft("YCbCr", None)
            ImageOps.exif_transpose(image, in_place=True)
            neutral = b"\x80" * (image.width * image.height)
            if image.tobytes("raw", "Cb") == neutral == image.tobytes("raw", "Cr"):
                return image.getchannel(0)
        image = _opened(content)
    ImageOps.exif_transpose(image, in_place=True)
    return _eight_bit(image)


def _opened(content: bytes) -> Image.Image:
    """Open an image by its header; reject too large images and several pictures in one file."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels"
        )
    n_frames = getattr(image, "n_frames", 1)
    if n_frames != 1 and image.format != "MPO":  # an MPO of a camera has previews
        raise ValueError(f"{n_frames} pictures in one file")
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return an image of any mode as L if exactly gray, else as RGB; transparency becomes black."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own convert saturates at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("gray levels outside 16 bits: save it with 8 or 16 bits")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(
            "floating-point gray levels have no fixed range: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    elif image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    red, green, blue = (np.asarray(band) for band in image.split())
    return (
        image.getchannel(0) if np.array_equal(red, green) and np.array_equal(red, blue) else image
    )


def _letterboxed(image: Image.Image, box: int) -> Image.Image:
    """Return the image with its longest side brought to `box`, in the middle of a black square."""
    scale = box / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new(image.mode, (box, box))
    square.paste(image, ((box - width) // 2, (box - height) // 2))
    return square
