"""The columns of a pack's manifest, and checks of the images that they describe.

Input: a listing, and what was found in each file. Output: columns, hashes, errors. Reads no image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casting_tune.data.decode import Picture, one_line
from casting_tune.data.image_folder import ImageFile, Listing, Reading, digest
from casting_tune.errors import ImagesError

_SHOWN = 10  # bad files in an error message, which is one line


def check_classes(listing: Listing, usable: Sequence[tuple[ImageFile, Picture]]) -> None:
    """Raise ImagesError if no good or no defective image is usable."""
    for label, name in enumerate((listing.negative, listing.positive)):
        if not any(file.label == label for file, _ in usable):
            raise ImagesError(
                f"No usable image of class '{one_line(name)}' in '{listing.root}'. Add or repair "
                "some."
            )


def columns(
    listing: Listing, usable: Sequence[tuple[ImageFile, Picture]], splits: Sequence[str]
) -> dict[str, Any]:
    """Return the columns of a manifest that the dataset_id depends on.

    Kinds and groups are omitted if they say nothing, so that older sets keep their dataset_id.
    """
    files = [file for file, _ in usable]
    found: dict[str, Any] = {
        "positive": listing.positive,
        "paths": [file.path for file in files],
        "labels": [file.label for file in files],
        "splits": list(splits),
        "sha256": [picture.sha256 for _, picture in usable],
        "sizes": [picture.size for _, picture in usable],
    }
    if {file.kind for file in files} - {"", listing.positive}:
        found["kinds"] = [file.kind for file in files]
    if any(file.group for file in files):
        found["groups"] = [file.group for file in files]
    return found


def kinds(manifest: dict[str, Any]) -> list[str]:
    """Return the kinds; a manifest without them has one kind, the defect class."""
    named = [manifest["positive"] if label else "" for label in manifest["labels"]]
    return manifest.get("kinds") or named


def reading_of(folder: Path, positive: str) -> Reading:
    """Return how the images of a pack were read, so that the same images give the same pack.

    Args:
        folder: of the pack; if it is missing or damaged, only `positive` is known.
        positive: name of all defects together.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    return Reading(
        positive=positive,
        group_pattern=manifest.get("group_pattern"),
        keep_split=manifest.get("keep_split", False),
    )


def content(listing: Listing, hashes: Sequence[str]) -> str:
    """Return a hash of all that is known about the images, and the content of their files."""
    return digest(
        [f"{file.facts}\0{sha256}" for file, sha256 in zip(listing.files, hashes, strict=True)]
    )


def unusable(root: Path, bad: Sequence[tuple[str, str]], n_files: int) -> ImagesError:
    """Return the error that names files which cannot be used, with their reasons."""
    shown = "; ".join(f"{one_line(path)}: {reason}" for path, reason in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return ImagesError(
        f"{len(bad)} of {n_files} files in '{root}' cannot be used. Repair or remove them, or skip "
        f"them with --skip-bad, which lists them all: {shown}{more}."
    )
