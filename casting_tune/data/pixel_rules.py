"""The rules by which files become pixels: bits, resize, size limit, colour. Imports no Pillow.

A run travels with one PixelRules. A pack, a row of trials and an export hold those that applied,
so that `predict` reads an image as the training did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from casting_tune.errors import UsageError

BITS = (8, 10, 12, 14, 16)
"""The ranges of cameras; a range of n bits is 0 to 2**n - 1."""

Resize = Literal["letterbox", "squash", "crop"]
ColourRule = Literal["ask", "gray", "colour"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRules:
    """How files become pixels.

    Attributes:
        size_px: side of square packed images. None keeps images of one size unchanged, and resizes
            mixed sizes to 512.
        bits: range of the levels in 16-bit files; None: found over all images of a pack, and 16
            for a single image.
        resize: how an image becomes a square.
        max_megapixels: larger images are rejected by their header: a PNG of 17 kB can have 144
            million pixels.
        colour: "ask": nearly gray images are gray, and a few coloured ones among gray ones are an
            error; "gray": all are converted; "colour": all that are not exactly gray are coloured.
    """

    size_px: int | None = None
    bits: int | None = None
    resize: Resize = "letterbox"
    max_megapixels: int = 25
    colour: ColourRule = "ask"

    def check(self) -> None:
        """Raise UsageError for a value out of range."""
        if self.size_px is not None and not 16 <= self.size_px <= 4096:
            raise UsageError(
                f"The size of packed images must be 16 to 4096 pixels; got {self.size_px}."
            )
        if self.bits is not None and self.bits not in BITS:
            raise UsageError(f"--bits must be 8, 10, 12, 14 or 16; got {self.bits}.")
        if not 1 <= self.max_megapixels <= 10_000:
            raise UsageError(f"--max-megapixels must be 1 to 10,000; got {self.max_megapixels}.")

    def record(self) -> dict[str, Any]:
        """Return the values that are not the default, without `size_px`."""
        return {
            name: value
            for name in ("bits", "resize", "max_megapixels", "colour")
            if (value := getattr(self, name)) != getattr(RULES, name)
        }

    def text(self) -> str | None:
        """Return `record` as JSON for a row of trials; None if it is empty."""
        return json.dumps(self.record(), sort_keys=True) if self.record() else None


RULES = PixelRules()


def from_record(record: Mapping[str, Any], *, size_px: int | None = None) -> PixelRules:
    """Return the rules of `record`."""
    return PixelRules(size_px=size_px, **record)


def from_text(record: str | None, *, size_px: int | None = None) -> PixelRules:
    """Return the rules of a JSON text; None is the default."""
    return from_record(json.loads(record) if record else {}, size_px=size_px)
