"""What a manifest records about pixels, and sentences about it.

Input: what was written, a manifest, the given rules. Output: values for the manifest, PixelRules,
sentences. Reads no files. `pixels` in a manifest is part of the dataset_id, so it has only what
differs from casting_tune 0.1: bits, resize, conversion to gray, and TIFF that 0.1 misread.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from casting_tune.data.decode import one_line
from casting_tune.data.npy_writer import Written
from casting_tune.data.pixel_rules import RULES, PixelRules, from_record
from casting_tune.errors import ImagesError

_SHOWN = 5  # coloured files in an error message
_RECORDED = ("bits", "resize", "colour")


def applied(written: Written, given: PixelRules) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what a manifest records: the rules that changed pixels, and numbers of images."""
    usable = [picture for picture in written.pictures if not picture.reason]
    colours = Counter(picture.colour for picture in usable)
    is_colour = len(written.shape) == 4
    is_resized = any(picture.size != written.shape[-2:] for picture in usable)
    is_converted = not is_colour and colours["colour"] > 0
    rules = PixelRules(
        bits=written.bits if written.bits < 16 and any(p.level for p in usable) else None,
        resize=given.resize if is_resized else RULES.resize,
        colour="gray" if is_converted else "ask",
    )
    notes = Counter(picture.note for picture in usable if picture.note)
    record = rules.record() | ({"read_as": sorted(notes)} if notes else {})
    counts = {
        "gray among coloured": colours["gray"] if is_colour else 0,
        "nearly gray": 0 if is_colour else colours["nearly gray"],
        "converted to gray": colours["colour"] if is_converted else 0,
    }
    return record, {name: n for name, n in (counts | notes).items() if n}


def rules(manifest: Mapping[str, Any]) -> PixelRules:
    """Return the rules that applied to a pack, with the size limit that its images need."""
    record = {k: v for k, v in manifest.get("pixels", {}).items() if k in _RECORDED}
    found = from_record(record)
    if len(manifest["shape"]) == 4:
        found = replace(found, colour="colour")
    largest = max(height * width for height, width in manifest["sizes"])
    limit = max(RULES.max_megapixels, math.ceil(largest / 10**6))
    return replace(found, max_megapixels=limit)


def notes(manifest: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return sentences about the pixels of a pack that are not as usual."""
    return (*rule_sentences(rules(manifest), manifest["shape"][-2:]), *_count_sentences(counts))


def rule_sentences(found: PixelRules, px: Sequence[int]) -> Iterator[str]:
    """Yield sentences about the range and the resize, for a pack or an export of a side `px`."""
    if found.bits is not None:
        yield f"16-bit files hold {found.bits} bits: read as 0..{2**found.bits - 1} (--bits)."
    if found.resize == "squash":
        yield f"Images are resized to {px[-1]} x {px[-2]} px without their aspect ratio (squash)."
    elif found.resize == "crop":
        yield f"Images are cropped to a square in the middle, then resized to {px[-1]} px (crop)."


def _count_sentences(counts: Mapping[str, int]) -> Iterator[str]:
    endings = {
        "gray among coloured": "gray among coloured ones: stored with three equal channels.",
        "nearly gray": "nearly gray (R, G and B differ by at most 2 levels): read as gray.",
        "converted to gray": "coloured: converted to gray (--gray).",
    }
    for name, n in counts.items():
        verb = "image is" if n == 1 else "images are"
        yield f"{n} {verb} {endings.get(name, f'TIFF of a special kind: {name}.')}"


def without_effect(given: PixelRules, found: PixelRules) -> Iterator[str]:
    """Yield sentences about given rules that changed nothing."""
    if given.bits not in (None, 16) and found.bits is None:
        yield f"--bits {given.bits} has no effect: no image is a 16-bit file without a given range."
    if given.resize != found.resize:
        yield (
            f"--resize {given.resize} has no effect: all images have one size and keep it "
            "(--pack-size changes it)."
        )


def mixed(root: Path, coloured: Sequence[str], n_files: int) -> ImagesError:
    """Return the error about a few coloured images among gray ones."""
    shown = ", ".join(f"'{one_line(path)}'" for path in coloured[:_SHOWN])
    more = f" and {len(coloured) - _SHOWN} more" if len(coloured) > _SHOWN else ""
    verb = "is" if len(coloured) == 1 else "are"
    return ImagesError(
        f"{len(coloured)} of {n_files:,} images in '{root}' {verb} coloured, the others gray: "
        f"{shown}{more}. Convert them with --gray, keep the colours with --colour, or remove them."
    )
