"""Decodes one image file into one uint8 picture.

Input: a file of any of the formats below, PixelRules. Output: a Picture: gray or colour, upright,
without alpha, 8 bits, and optionally resized to a square. For a bad file the Picture has the
reason; it is not an exception. Knows no folders, classes, splits or packs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from casting_tune.data import deep_levels
from casting_tune.data.pixel_rules import RULES, PixelRules, Resize
from casting_tune.text import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (
    "avif", "bmp", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm",
    "ppm", "tif", "tiff", "webp",
)  # fmt: skip

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

_NEARLY = 2
"""Largest distance of R, G and B of a gray image: the rounding of a JPEG's chroma."""

Colour = Literal["gray", "nearly gray", "colour"]


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of one file.

    Attributes:
        sha256: of the file's bytes; empty if it cannot be read.
        size: (height, width) in the file, after its EXIF rotation.
        pixels: [h, w] uint8 if gray, else [3, h, w]; None if the file cannot be used.
        reason: why the file cannot be used, in one line; empty if it can.
        colour: exactly gray (R = G = B), nearly, or neither; of the file, not of `pixels`.
        level: the largest gray level of a 16-bit file; 0 for another file, or if the file names
            the range of its levels.
        note: what casting_tune 0.1 read differently, see `deep_levels`.
    """

    sha256: str
    size: tuple[int, int] = (0, 0)
    pixels: NDArray[np.uint8] | None = None
    reason: str = ""
    colour: Colour = "gray"
    level: int = 0
    note: str = ""


def decode(file: Path, *, box: int | None, rules: PixelRules = RULES) -> Picture:
    """Decode one file.

    Args:
        file: path of the file.
        box: side of a square that the image is resized to as `rules` say; None keeps its size.
        rules: bits, resize, size limit and colour. Without `bits`, 16-bit files use all 16.
    """
    content, sha256, reason = read(file)
    if reason:
        return Picture(sha256, reason=reason)
    most = rules.max_megapixels * 10**6
    if Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most  # Pillow warns above it, and raises at the double
    try:
        image, level, note = _upright(content, rules)
        size = (image.height, image.width)
        image, colour = _without_false_colour(image, rules)
        pixels = np.asarray(image if box is None else _resized(image, box, rules.resize))
    except deep_levels.ExceedsError as error:
        return Picture(sha256, reason=str(error), level=error.level)
    # the warning counts if warnings are errors
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Picture(sha256, reason=_too_large("", rules))
    except UnidentifiedImageError:
        return Picture(sha256, reason=_unidentified(content))
    # decoders raise almost any exception for invalid bytes; the caller reports the file
    except Exception as error:
        return Picture(sha256, reason=one_line(str(error)) or type(error).__name__)
    pixels = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # [h, w] or [3, h, w]
    return Picture(sha256, size, pixels, colour=colour, level=level, note=note)


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


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that this Pillow reads."""
    found = list(_FORMATS)
    if features.check_codec("jpg_2000"):
        found.append("JPEG2000")
    if "avif" in features.modules and features.check_module("avif"):
        found.append("AVIF")
    return tuple(found)


def _upright(content: bytes, rules: PixelRules) -> tuple[Image.Image, int, str]:
    """Return the image with its EXIF rotation in mode L or RGB, its largest level, and its note.

    A JPEG is first read without the conversion to RGB: if all chroma is 128, libjpeg's R, G and B
    equal its Y. That is twice as fast (2,600 instead of 1,250 images/s per thread at 300 px).
    """
    image = _opened(content, rules)
    if image.format in ("JPEG", "MPO") and image.mode == "RGB":
        # components R, G, B have no chroma; a broken file fails again below
        with contextlib.suppress(OSError):
            image.draft("YCbCr", None)
            ImageOps.exif_transpose(image, in_place=True)
            neutral = b"\x80" * (image.width * image.height)
            if image.tobytes("raw", "Cb") == neutral == image.tobytes("raw", "Cr"):
                return image.getchannel(0), 0, ""
        image = _opened(content, rules)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError(
            "floating-point gray levels have no fixed range: save it with 8 or 16 bits"
        )
    deep = deep_levels.reduced(image, content, bits=rules.bits or 16)
    if deep is None:
        return _opaque(image), 0, ""
    return _opaque(deep.image), deep.level, deep.note


def _opened(content: bytes, rules: PixelRules) -> Image.Image:
    """Open an image by its header; reject too large images and several pictures in one file."""
    image = Image.open(io.BytesIO(content), formats=formats())
    if image.width * image.height > rules.max_megapixels * 10**6:
        raise ValueError(_too_large(f"{image.width} x {image.height} pixels, ", rules))
    n_frames = getattr(image, "n_frames", 1)
    if n_frames != 1 and image.format != "MPO":  # an MPO of a camera has previews
        raise ValueError(f"{n_frames} pictures in one file")
    return image


def _too_large(size: str, rules: PixelRules) -> str:
    return f"{size}more than {rules.max_megapixels} megapixels (--max-megapixels)"


def _unidentified(content: bytes) -> str:
    """Return why Pillow does not know the format of a file."""
    if content[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF of a kind that Pillow cannot read: save it as gray or RGB with 8 or 16 bits"
    missing = {
        "AVIF": content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"),
        "JPEG2000": content[4:8] == b"jP  " or content[:4] == b"\xff\x4f\xff\x51",
    }
    for name, is_it in missing.items():
        if is_it and name not in formats():
            return f"Pillow {PIL.__version__} here cannot read {name}: update it, or save as PNG"
    return f"not one of {', '.join(formats())}"


def _opaque(image: Image.Image) -> Image.Image:
    """Return an 8-bit image of any mode as L or RGB; transparency becomes black."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    elif image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _without_false_colour(image: Image.Image, rules: PixelRules) -> tuple[Image.Image, Colour]:
    """Return a gray image in mode L, and how gray it was."""
    if image.mode == "L":
        return image, "gray"
    red, green, blue = (np.asarray(band) for band in image.split())
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return image.getchannel(0), "gray"
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    colour: Colour = "nearly gray" if (brightest - darkest).max() <= _NEARLY else "colour"
    to_gray = rules.colour == "gray" or (rules.colour == "ask" and colour == "nearly gray")
    return image.convert("L") if to_gray else image, colour


def _resized(image: Image.Image, box: int, how: Resize) -> Image.Image:
    """Return the image as a square of side `box`.

    letterbox scales the longest side and pads with black, crop cuts off both ends of the longest
    side, squash changes the aspect ratio.
    """
    if how == "squash" or (how == "crop" and image.width == image.height):
        return _scaled(image, (box, box))
    if how == "crop":
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        region = (left, top, left + side, top + side)
        if side == box:
            return image.crop(region)
        return image.resize((box, box), Image.Resampling.BICUBIC, box=region)
    scale = box / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = _scaled(image, (width, height))
    square = Image.new(image.mode, (box, box))
    square.paste(image, ((box - width) // 2, (box - height) // 2))
    return square


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
