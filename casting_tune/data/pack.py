"""Packs an image folder once into a uint8 array with a manifest, and opens such packs.

Input: an image folder in one of the layouts of `layouts`.
Output: a Pack in packs/<dataset_id>/: castings.npy (memory-mapped, never copied) and manifest.json.
packs/index/ stores which pack belongs to a folder, under a hash of the folder's path, so that a
second call decodes nothing. Knows no networks, trials or augmentation. No written file contains
the name of a folder outside the packed one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casting_tune import files, machine
from casting_tune.data import (
    decode,
    given_splits,
    image_folder,
    manifests,
    npy_writer,
    pixel_record,
)
from casting_tune.data.decode import one_line
from casting_tune.data.image_folder import Listing, Reading
from casting_tune.data.pixel_rules import RULES, PixelRules
from casting_tune.errors import ImagesError, unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
DEFAULT_READING = Reading()
PACK_VERSION = 1
"""Version of the decoding. Raise it when the same files would give another array."""

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The images of one folder, in the order of their paths.

    Attributes:
        images: [n, h, w] uint8 if every image is exactly gray, else [n, 3, h, w]; memory-mapped,
            read-only.
        labels: [n] uint8, 1 is defective (the positive class).
        splits: [n] "train", "validation" or "test".
        sha256: [n] of the file's bytes.
        paths: [n] posix paths relative to the folder.
        sizes: [n, 2] int32, (height, width) in the file, after its EXIF rotation.
        dataset_id: 16 hexadecimal digits over all of the above and the positive class, without the
            folder's name and the files' times.
        positive: name of all defects together: the defect class, or `not GOOD` for several.
        negative: name of all good images together: the names of their classes.
        kinds: [n] name of the kind of defect, "" for good images.
        groups: [n] name of the given group (part, photograph, lot), "" if none was given; None if
            no image has one.
        split_made: whether casting_tune made the test split.
        skipped: (path, reason) of the files that could not be decoded.
        pixels: the rules by which files became pixels: those that applied.
        notes: sentences: how the images were read, what was skipped, which split was made, and
            what is not as usual about their pixels.
        root: the folder of the files; None for a pack that was opened without them.
        columns: [n] further columns of a list as JSON objects, "" without; None without a list.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    splits: NDArray[np.str_]
    sha256: NDArray[np.str_]
    paths: NDArray[np.str_]
    sizes: NDArray[np.int32]
    dataset_id: str
    positive: str
    negative: str
    kinds: NDArray[np.str_]
    groups: NDArray[np.str_] | None
    split_made: bool
    skipped: tuple[tuple[str, str], ...]
    pixels: PixelRules
    notes: tuple[str, ...] = ()
    root: Path | None = None
    columns: tuple[str, ...] | None = None


def pack(
    root: Path,
    packs: Path,
    *,
    reading: Reading = DEFAULT_READING,
    pixels: PixelRules = RULES,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Return the pack of an image folder: the existing one in `packs`, or a new one.

    A folder is unchanged if the sizes and times of its files are unchanged, or else their hashes.

    Args:
        root: the image folder.
        packs: folder of the packs, e.g. results/packs.
        reading: which classes are good, and other ways of reading the folder.
        pixels: size, bits, resize, size limit and colour of the packed images.
        skip_bad: skip and record files that cannot be decoded; otherwise they are an error.
        on_progress: called with (images decoded, images in all).

    Raises:
        UsageError: a rule is out of range, or `packs` is inside the image folder.
        ImagesError: the folder has another layout, a file cannot be decoded, or the pack cannot be
            written.
    """
    pixels.check()
    image_folder.check_outside(root, packs.parent, "--results")
    listing = image_folder.survey(root, reading)
    key = image_folder.digest([str(root.resolve()), repr(reading), str(pixels), str(PACK_VERSION)])[
        :16
    ]
    note = packs / "index" / f"{key}.json"
    try:
        entry = _index_entry(note, listing, packs=packs, skip_bad=skip_bad)
        state = "already packed" if entry else "packing started"
        LOG.info("%s: %d image files, %s", root, len(listing.files), state)
        if entry is None:
            packs.mkdir(parents=True, exist_ok=True)
            _remove_old_drafts(packs)
            with tempfile.TemporaryDirectory(prefix=".packing-", dir=packs) as scratch:
                draft = Path(scratch) / "pack"
                draft.mkdir()
                entry = _build(
                    listing,
                    draft,
                    reading=reading,
                    pixels=pixels,
                    skip_bad=skip_bad,
                    on_progress=on_progress,
                )
                _publish(draft, packs / entry["dataset_id"])
            _write_json(note, entry)
    except OSError as error:
        raise ImagesError(
            f"Cannot pack '{root}' into '{packs}': {error.strerror or error}. "
            "Free disk space or use another folder."
        ) from error
    LOG.info("pack %s in %s", entry["dataset_id"], packs)
    opened = open_pack(packs / entry["dataset_id"])
    columns = {file.path: file.columns for file in listing.files}
    return replace(
        opened,
        skipped=_pairs(entry["skipped"]),
        notes=(
            *listing.notes,
            *entry["notes"],
            *pixel_record.without_effect(pixels, opened.pixels),
        ),
        root=listing.root,
        columns=tuple(columns[str(path)] for path in opened.paths)
        if any(columns.values())
        else None,
    )


def open_pack(folder: Path) -> Pack:
    """Open a pack without reading its pixels.

    Raises:
        ImagesError: the pack is missing, of another version, or damaged.

    Example:
        >>> from casting_tune import open_pack
        >>> (manifest,) = Path("results/packs").glob("*/manifest.json")
        >>> open_pack(manifest.parent).images.shape
        (80, 64, 64)
    """
    way_out = "Remove this folder and pack the images again."
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != PACK_VERSION:
            raise ImagesError(
                f"'{folder}' is a pack of version {manifest['version']}, not {PACK_VERSION}. "
                f"{way_out}"
            )
        pack = Pack(
            images=np.load(folder / "castings.npy", mmap_mode="r", allow_pickle=False),
            labels=_frozen(manifest["labels"], np.uint8),
            splits=_frozen(manifest["splits"], np.str_),
            sha256=_frozen(manifest["sha256"], np.str_),
            paths=_frozen(manifest["paths"], np.str_),
            sizes=_frozen(manifest["sizes"], np.int32),
            dataset_id=manifest["dataset_id"],
            positive=manifest["positive"],
            negative=manifest["negative"],
            kinds=_frozen(manifests.kinds(manifest), np.str_),
            groups=_frozen(manifest["groups"], np.str_) if "groups" in manifest else None,
            split_made=manifest["split_made"],
            skipped=_pairs(manifest["skipped"]),
            pixels=pixel_record.rules(manifest),
            notes=tuple(manifest.get("notes", ())),
        )
        if [*pack.images.shape] != manifest["shape"] or pack.images.dtype != np.uint8:
            raise ValueError("castings.npy does not match manifest.json")
    except FileNotFoundError as error:
        raise ImagesError(
            f"'{folder}' is not a pack: {Path(error.filename).name} not found. Give a folder in "
            "packs/; if it is one, remove it and pack the images again."
        ) from error
    except PermissionError as error:
        raise ImagesError(unreadable(error.filename or folder, error)) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ImagesError(
            f"The pack '{folder}' is damaged ({one_line(str(error))}). {way_out}"
        ) from error
    return pack


def _index_entry(
    note: Path, listing: Listing, *, packs: Path, skip_bad: bool
) -> dict[str, Any] | None:
    """Return the index entry of a listing if it is unchanged and its pack exists."""
    try:
        entry: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if not (packs / entry["dataset_id"]).is_dir() or (entry["skipped"] and not skip_bad):
            return None
        if entry["times"] != listing.times:
            with ThreadPoolExecutor(machine.cpus()) as threads:
                hashes = list(
                    threads.map(
                        lambda file: decode.read(listing.root / file.path)[1], listing.files
                    )
                )
            if entry["content"] != manifests.content(listing, hashes):
                return None
            entry["times"] = listing.times
            _write_json(note, entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or invalid: decoding again takes seconds and is always correct
    return entry


def _remove_old_drafts(packs: Path) -> None:
    """Remove drafts that are older than a day: packing takes minutes, so their process has died."""
    for draft in packs.glob(".packing-*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished
            if time.time() - draft.stat().st_mtime > _DAY_S:
                shutil.rmtree(draft, ignore_errors=True)


def _build(
    listing: Listing,
    draft: Path,
    *,
    reading: Reading,
    pixels: PixelRules,
    skip_bad: bool,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write the pack into the folder `draft`; return the index entry of the listing."""
    paths = [listing.root / file.path for file in listing.files]
    with (draft / "castings.npy").open("w+b") as stream:
        try:
            written = npy_writer.write_images(stream, paths, rules=pixels, on_progress=on_progress)
        except npy_writer.ColouredError as error:
            coloured = [listing.files[i].path for i in error.indices]
            raise pixel_record.mixed(listing.root, coloured, len(paths)) from error
        stream.flush()
        os.fsync(stream.fileno())
    pictures = written.pictures
    decoded = list(zip(listing.files, pictures, strict=True))
    bad = [(file.path, picture.reason) for file, picture in decoded if picture.reason]
    if bad and not skip_bad:
        raise manifests.unusable(listing.root, bad, len(pictures))
    usable = [pair for pair in decoded if not pair[1].reason]
    manifests.check_classes(listing, usable)
    splits = given_splits.resolve(
        [file for file, _ in usable],
        [picture.sha256 for _, picture in usable],
        keep=reading.keep_split,
    )
    manifest = manifests.columns(listing, usable, splits.of)
    manifest |= {"shape": written.shape, "version": PACK_VERSION}
    applied, counts = pixel_record.applied(written, pixels)
    manifest |= {"pixels": applied} if applied else {}
    notes = [*splits.notes, *pixel_record.notes(manifest, counts)]
    dataset_id = image_folder.digest([json.dumps(manifest, sort_keys=True)])[:16]
    manifest |= {
        "dataset_id": dataset_id,
        "negative": listing.negative,
        "split_made": splits.made,
        "skipped": bad,
        "notes": [*listing.notes, *notes],
        "group_pattern": reading.group_pattern,
        "keep_split": reading.keep_split,
    }
    _write_json(draft / "manifest.json", manifest)
    content = manifests.content(listing, [picture.sha256 for picture in pictures])
    return {
        "times": listing.times,
        "content": content,
        "dataset_id": dataset_id,
        "skipped": bad,
        "notes": notes,
    }


def _publish(draft: Path, folder: Path) -> None:
    """Rename a finished pack; if another process was faster, keep its pack, which is equal."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _write_json(file: Path, value: dict[str, Any]) -> None:
    with files.replacing(file) as draft:
        draft.write_text(json.dumps(value), encoding="utf-8")


def _frozen(values: list[Any], dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _pairs(skipped: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((path, reason) for path, reason in skipped)
