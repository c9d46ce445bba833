"""Packs an image folder once into a versioned, fingerprinted uint8 array with a manifest; opens it.

In comes a folder with train/ and test/, each with one folder a class, or with the two class folders
alone; out goes a Pack, which lies in packs/<dataset_id>/ as castings.npy (mapped, never copied) and
manifest.json. packs/index/ keeps, under a hash of the folder's name, which pack a folder gave, so
that a second call decodes nothing. Must not know of networks, trials or augmentation; no file that
it writes holds the name of a folder outside the packed one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from casting_tune.data import decode, image_folder
from casting_tune.data.decode import Picture, one_line
from casting_tune.data.image_folder import File, Folder
from casting_tune.errors import ImagesError, UsageError, unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
PACK_VERSION = 1
"""Version of how files become pixels. Raise it when the same files would give another array."""

MIXED_PX = 512
"""Side of the packed images when the folder's images have several sizes and no size is asked for."""

_SYNCED = 1000  # images between two requests that the disk keep up: 90 MB at 300 px
_DAY_S = 86_400
_NAMED = 10  # bad files in an error, which is one line
_NAMED_PAIRS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The images of one folder, ready to be used, in the order of their paths.

    Attributes:
        images: [n, h, w] uint8 when every image is exactly gray, else [n, 3, h, w]; mapped from disk, read-only.
        labels: [n] uint8, 1 is defective (the positive class).
        splits: [n] "train" or "test".
        sha256: [n] of the file's bytes.
        paths: [n] relative posix paths as they were in the folder.
        sizes: [n, 2] int32, (height, width) in the file, after its EXIF turn.
        dataset_id: 16 hexadecimal digits over all of the above and the positive class; the folder's own name and the
            files' times are not in it.
        positive: folder name of the defect class.
        negative: folder name of the other class.
        split_made: whether the test split was drawn here, since the folder had none.
        skipped: (path, reason) of the files that were left out.
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
    split_made: bool
    skipped: tuple[tuple[str, str], ...]


def pack(
    root: Path,
    packs: Path,
    *,
    positive: str = "def_front",
    size_px: int | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Return the pack of an image folder: the one that lies in `packs`, or a new one.

    Whether a folder is as it was is told by the size and time of its files; where these differ, by
    their hashes.

    Args:
        root: holds train/ and test/ with two class folders each, or the two class folders.
        packs: where packs lie, e.g. results/packs.
        positive: folder name of the defect class.
        size_px: side of square packed images: the longest side is brought to it and the rest is black. None keeps
            images of one size as they are, and brings mixed ones to 512.
        skip_bad: leave out, and record, files that cannot be decoded; otherwise they are an error.
        on_progress: called with (images decoded, images in all).

    Raises:
        UsageError: size_px is out of its range, or the packs would lie inside the image folder.
        ImagesError: the folder is not laid out so, a file cannot be decoded, or the pack cannot be written.
    """
    if size_px is not None and not 16 <= size_px <= 4096:
        raise UsageError(f"The size of packed images is 16 to 4096 pixels; got {size_px}.")
    image_folder.check_outside(root, packs.parent, "--results")
    folder = image_folder.survey(root, positive)
    key = image_folder.digest([str(root.resolve()), positive, str(size_px), str(PACK_VERSION)])[:16]
    note = packs / "index" / f"{key}.json"
    try:
        entry = _recalled(note, root, folder=folder, packs=packs, skip_bad=skip_bad)
        LOG.info(
            "%s: %d image files, %s",
            root,
            len(folder.files),
            "packed already" if entry else "packing begins",
        )
        if entry is None:
            packs.mkdir(parents=True, exist_ok=True)
            _clear(packs)
            with tempfile.TemporaryDirectory(prefix=".packing-", dir=packs) as beside:
                draft = Path(beside) / "pack"
                draft.mkdir()
                entry = _build(
                    root,
                    draft,
                    folder=folder,
                    size_px=size_px,
                    skip_bad=skip_bad,
                    on_progress=on_progress,
                )
                _publish(draft, packs / entry["dataset_id"])
            _write_json(note, entry)
    except OSError as error:
        raise ImagesError(
            f"Cannot pack '{root}' into '{packs}': {error.strerror or error}. Make room there or give another folder."
        ) from error
    LOG.info("pack %s in %s", entry["dataset_id"], packs)
    return replace(open_pack(packs / entry["dataset_id"]), skipped=_pairs(entry["skipped"]))


def open_pack(folder: Path) -> Pack:
    """Open a pack without reading its pixels.

    Raises:
        ImagesError: there is no pack, it is of another version, or it is damaged.
    """
    way_out = "Remove that folder and pack the images again."
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != PACK_VERSION:
            raise ImagesError(
                f"'{folder}' is a pack of version {manifest['version']}, not {PACK_VERSION}. {way_out}"
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
            split_made=manifest["split_made"],
            skipped=_pairs(manifest["skipped"]),
        )
        if [*pack.images.shape] != manifest["shape"] or pack.images.dtype != np.uint8:
            raise ValueError("images and manifest differ")
    except FileNotFoundError as error:
        raise ImagesError(
            f"'{folder}' is not a pack: it lacks {Path(error.filename).name}. Name a folder in packs/; if it is one, "
            "remove it and pack the images again."
        ) from error
    except PermissionError as error:
        raise ImagesError(unreadable(error.filename or folder, error)) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ImagesError(
            f"The pack '{folder}' is damaged ({one_line(str(error))}). {way_out}"
        ) from error
    return pack


def conflicts(pack: Pack) -> list[tuple[str, str]]:
    """Return (defective, good) paths of files with the same bytes but different labels: each such file in some pair."""
    found = []
    both = set(pack.sha256[pack.labels == 1]) & set(pack.sha256[pack.labels == 0])
    for content in sorted(both):
        same = pack.sha256 == content
        bad, good = (pack.paths[same & (pack.labels == label)].tolist() for label in (1, 0))
        found += [(bad[i % len(bad)], good[i % len(good)]) for i in range(max(len(bad), len(good)))]
    return sorted(found)


def conflict_note(pack: Pack) -> str:
    """Return a sentence about files with the same bytes but different labels, with the first of them; or ""."""
    pairs = conflicts(pack)
    if not pairs:
        return ""
    named = "; ".join(
        f"'{one_line(bad)}' = '{one_line(good)}'" for bad, good in pairs[:_NAMED_PAIRS]
    )
    more = (
        f"; and {len(pairs) - _NAMED_PAIRS} more (casting-tune audit)"
        if len(pairs) > _NAMED_PAIRS
        else ""
    )
    n = len({path for pair in pairs for path in pair})
    return (
        f"{n} files have the same bytes in both classes, so one of their labels is wrong: {named}{more}. "
        "Correct the labels or remove these files."
    )


def _recalled(
    note: Path, root: Path, *, folder: Folder, packs: Path, skip_bad: bool
) -> dict[str, Any] | None:
    """Return what was noted of this folder, if the folder is as it was and its pack is still there."""
    try:
        entry: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if not (packs / entry["dataset_id"]).is_dir() or (entry["skipped"] and not skip_bad):
            return None
        if entry["times"] != folder.times:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                hashes = list(
                    threads.map(lambda file: decode.read(root / file.path)[1], folder.files)
                )
            if entry["content"] != _content(folder, hashes):
                return None
            entry["times"] = folder.times
            _write_json(note, entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or not one of ours: decoding again costs seconds and is always right
    return entry


def _clear(packs: Path) -> None:
    """Remove the drafts of killed processes: a packing takes minutes, and these were begun more than a day ago."""
    for draft in packs.glob(".packing-*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished with it
            if time.time() - draft.stat().st_mtime > _DAY_S:
                shutil.rmtree(draft, ignore_errors=True)


def _build(
    root: Path,
    draft: Path,
    *,
    folder: Folder,
    size_px: int | None,
    skip_bad: bool,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write the pack into the folder `draft`; return what is to be noted of the image folder."""
    with (draft / "castings.npy").open("w+b") as stream:
        pictures, shape = _write_images(
            stream, root, files=folder.files, box=size_px, on_progress=on_progress
        )
        stream.flush()
        os.fsync(stream.fileno())
    bad = [
        (file.path, picture.reason)
        for file, picture in zip(folder.files, pictures, strict=True)
        if picture.reason
    ]
    if bad and not skip_bad:
        named = "; ".join(f"{one_line(path)}: {reason}" for path, reason in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ImagesError(
            f"{len(bad)} of {len(pictures)} files in '{root}' cannot be used. Repair or remove them, or leave them out "
            f"with --skip-bad, which lists them all: {named}{more}."
        )
    good = [
        (file, picture)
        for file, picture in zip(folder.files, pictures, strict=True)
        if not picture.reason
    ]
    labels, sha256 = [file.label for file, _ in good], [picture.sha256 for _, picture in good]
    split_made = not folder.files[0].split
    splits = (
        image_folder.made_split(labels, sha256) if split_made else [file.split for file, _ in good]
    )
    for split in ("train", "test"):
        for label, name in enumerate((folder.negative, folder.positive)):
            if (split, label) not in zip(splits, labels, strict=True):
                raise ImagesError(
                    f"No {split} image of class '{name}' in '{root}' can be used: add or repair some."
                )
    manifest: dict[str, Any] = {
        "version": PACK_VERSION,
        "positive": folder.positive,
        "shape": shape,
        "paths": [file.path for file, _ in good],
        "labels": labels,
        "splits": splits,
        "sha256": sha256,
        "sizes": [picture.size for _, picture in good],
    }
    dataset_id = image_folder.digest([json.dumps(manifest, sort_keys=True)])[:16]
    manifest |= {
        "dataset_id": dataset_id,
        "negative": folder.negative,
        "split_made": split_made,
        "skipped": bad,
    }
    _write_json(draft / "manifest.json", manifest)
    content = _content(folder, [picture.sha256 for picture in pictures])
    return {"times": folder.times, "content": content, "dataset_id": dataset_id, "skipped": bad}


def _write_images(
    stream: IO[bytes],
    root: Path,
    *,
    files: Sequence[File],
    box: int | None,
    n_channels: int = 1,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Picture], tuple[int, ...]]:
    """Write the usable files as one .npy file; return what was seen, one a file without its pixels, and its shape.

    A thread writes what it has decoded at its file's place, so that none waits for another. Starts
    as if all images were gray and of one size, and starts again, at most twice, when one of them is
    not: the real set, and every folder that is alike throughout, is decoded once.
    """
    decoded = (decode.decode(root / file.path, box=box).pixels for file in files)
    first = next((pixels for pixels in decoded if pixels is not None), np.empty((0, 0), np.uint8))
    shape = first.shape[-2:] if n_channels == 1 else (n_channels, *first.shape[-2:])
    stream.truncate(0)
    _write_header(stream, len(files), shape)
    stream.flush()
    descriptor, start, n_bytes = stream.fileno(), stream.tell(), math.prod(shape)

    def keep(place: int) -> Picture:
        picture = decode.decode(root / files[place].path, box=box)
        pixels = picture.pixels
        if pixels is None or pixels.ndim > len(shape) or pixels.shape[-2:] != shape[-2:]:
            return picture
        _write_at(
            descriptor,
            np.ascontiguousarray(np.broadcast_to(pixels, shape)).data,
            start + place * n_bytes,
        )
        return replace(picture, pixels=None)

    pictures: list[Picture] = []
    misfit: NDArray[np.uint8] | None = None
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        for picture in threads.map(keep, range(len(files))):
            misfit = picture.pixels
            if misfit is not None:
                break
            pictures.append(picture)
            if len(pictures) % _SYNCED == 0:
                os.fsync(descriptor)  # here it takes no one's time; all at the end it took 0.3 s
            if on_progress is not None:
                on_progress(len(pictures), len(files))
    finally:
        threads.shutdown(cancel_futures=True)
    if misfit is not None:
        wanted = (box, 3) if misfit.ndim > len(shape) else (MIXED_PX, n_channels)
        return _write_images(
            stream, root, files=files, box=wanted[0], n_channels=wanted[1], on_progress=on_progress
        )
    good = [place for place, picture in enumerate(pictures) if not picture.reason]
    for to, place in enumerate(good):
        if to != place:  # close the gaps of the files that cannot be used
            _write_at(
                descriptor,
                memoryview(os.pread(descriptor, n_bytes, start + place * n_bytes)),
                start + to * n_bytes,
            )
    os.ftruncate(descriptor, start + len(good) * n_bytes)
    _write_header(stream, len(good), shape)
    return pictures, (len(good), *shape)


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of some bytes at a place of a file; a full disk writes a part first, and raises at the next call."""
    content = content.cast("B")
    while content:
        n = os.pwrite(descriptor, content, offset)
        content, offset = content[n:], offset + n


def _write_header(stream: IO[bytes], n: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header of n pictures; it is as long for any n, since numpy leaves 21 places for that number."""
    stream.seek(0)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    )


def _publish(draft: Path, folder: Path) -> None:
    """Give a finished pack its name; where another process was first, its equal pack is kept."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _write_json(file: Path, value: dict[str, Any]) -> None:
    """Write beside and rename, so that no reader meets half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as beside:
        draft = Path(beside) / file.name
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(value, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)


def _content(folder: Folder, hashes: Sequence[str]) -> str:
    """Hash which content lies under which path."""
    return image_folder.digest(
        [f"{file.path}\0{sha256}" for file, sha256 in zip(folder.files, hashes, strict=True)]
    )


def _frozen(values: list[Any], dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _pairs(skipped: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((path, reason) for path, reason in skipped)
