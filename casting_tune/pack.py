"""Decodes an image folder once into a versioned, fingerprinted uint8 array with a manifest; opens it.

In comes a folder with train/ and test/, each with one folder a class, or with the two class folders alone; out goes a
Pack, which lies in packs/<dataset_id>/ as castings.npy (mapped, never copied) and manifest.json. packs/index/ keeps,
under a hash of the folder's name, which pack a folder gave, so that a second call decodes nothing. Must not know of
networks, trials or augmentation; no file that it writes holds the name of a folder outside the packed one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from casting_tune.errors import ImagesError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACK_VERSION = 1
"""Version of how files become pixels. Raise it when the same files would give another array."""

MIXED_PX = 512
"""Side of the packed images when the folder's images have several sizes and no size is asked for."""

MAX_PIXELS = 25_000_000
"""Larger images are refused by their header: a PNG of 17 kB can ask for 144 million pixels."""

SUFFIXES = ("bmp", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp")

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_TEST_SHARE = 0.1
_SPLIT_SEED = 0
_BATCH = 128  # images decoded between two writes: 11 MB at 300 px
_AT_ONCE = os.cpu_count() or 1


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

    Whether a folder is as it was is told by the size and time of its files; where these differ, by their hashes.

    Args:
        root: holds train/ and test/ with two class folders each, or the two class folders.
        packs: where packs lie, e.g. results/packs.
        positive: folder name of the defect class.
        size_px: side of square packed images: the longest side is brought to it and the rest is black. None keeps
            images of one size as they are, and brings mixed ones to 512.
        skip_bad: leave out, and record, files that cannot be decoded; otherwise they are an error.
        on_progress: called with (images decoded, images in all).

    Raises:
        UsageError: size_px is out of its range.
        ImagesError: the folder is not laid out so, a file cannot be decoded, or the pack cannot be written.
    """
    if size_px is not None and not 16 <= size_px <= 4096:
        raise UsageError(f"The size of packed images is 16 to 4096 pixels; got {size_px}.")
    folder = _survey(root, positive)
    key = _digest([str(root.resolve()), positive, str(size_px), str(PACK_VERSION)])[:16]
    note = packs / "index" / f"{key}.json"
    try:
        known = _recall(root, packs, note=note, folder=folder, skip_bad=skip_bad)
        if known is not None:
            return known
        packs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".packing-", dir=packs) as beside:
            draft = Path(beside) / "pack"
            draft.mkdir()
            made, content = _build(
                root, draft, folder=folder, size_px=size_px, skip_bad=skip_bad, on_progress=on_progress
            )
            _publish(draft, packs / made["dataset_id"])
        entry = {
            "times": folder.times,
            "content": content,
            "dataset_id": made["dataset_id"],
            "skipped": made["skipped"],
        }
        _write_json(note, entry)
    except OSError as error:
        raise ImagesError(
            f"Cannot pack '{root}' into '{packs}': {error.strerror or error}. Make room there or give another folder."
        ) from error
    return replace(open_pack(packs / made["dataset_id"]), skipped=_pairs(made["skipped"]))


def open_pack(folder: Path) -> Pack:
    """Open a pack without reading its pixels.

    Raises:
        ImagesError: there is no pack, it is of another version, or it is damaged.
    """
    way_out = "Remove that folder and pack the images again."
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != PACK_VERSION:
            raise ImagesError(f"'{folder}' is a pack of version {manifest['version']}, not {PACK_VERSION}. {way_out}")
        images = np.load(folder / "castings.npy", mmap_mode="r", allow_pickle=False)
        pack = Pack(
            images=images,
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
    except FileNotFoundError as error:
        raise ImagesError(f"'{folder}' is not a pack: it lacks {Path(error.filename).name}. {way_out}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImagesError(f"The pack '{folder}' is damaged ({_one_line(str(error))}). {way_out}") from error
    if list(images.shape) != manifest["shape"] or images.dtype != np.uint8 or len(pack.paths) != len(images):
        raise ImagesError(f"The pack '{folder}' is damaged (images and manifest differ). {way_out}")
    return pack


@dataclass(frozen=True, slots=True)
class _File:
    """One image file: its path inside the folder, and what the folders say of it; `split` may be empty."""

    path: str
    split: str
    label: int


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a look at the folder gives, without opening a file; `times` is a hash of paths, sizes and times."""

    files: tuple[_File, ...]
    positive: str
    negative: str
    times: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all packed images have in common: a square of side `box`, or their own size if None; 1 or 3 channels."""

    box: int | None
    channels: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One file's content; `pixels` ([h, w] or [3, h, w]) is None where `reason` says why there are none."""

    sha256: str
    size: tuple[int, int] = (0, 0)
    pixels: NDArray[np.uint8] | None = None
    reason: str = ""


def _survey(root: Path, positive: str) -> _Folder:
    """List the image files under `root` and check the layout."""
    if not root.is_dir():
        raise ImagesError(f"There is no image folder '{root}'. Give the one that holds train/ and test/.")
    try:
        top = _subfolders(root)
        splits = [name for name in top if name in ("train", "test")]
        if splits and top != ["test", "train"]:
            raise ImagesError(
                f"An image folder holds train/ and test/ and no other, or two class folders; '{root}' holds "
                f"{_listed(top)}."
            )
        classes = {split: _subfolders(root / split) for split in splits or [""]}
        _check_classes(root, classes, positive=positive)
        negative = next(name for names in classes.values() for name in names if name != positive)
        files, times = [], []
        for split, names in sorted(classes.items()):
            for name in names:
                inside = [
                    (_File(path, split, int(name == positive)), stamp) for path, stamp in _listing(root, split, name)
                ]
                if not inside:
                    raise ImagesError(f"The class folder '{root / split / name}' holds no {', '.join(SUFFIXES)} file.")
                files += [file for file, _ in inside]
                times += [stamp for _, stamp in inside]
    except OSError as error:
        raise ImagesError(
            f"Cannot read '{error.filename}': {error.strerror}. Give a folder that can be read."
        ) from error
    return _Folder(tuple(files), positive, negative, _digest(times))


def _check_classes(root: Path, classes: dict[str, list[str]], *, positive: str) -> None:
    """Refuse anything but the same two class folders everywhere, one of them the positive class."""
    found = sorted({name for names in classes.values() for name in names})
    if not found:
        raise ImagesError(f"'{root}' holds no class folders. Two are needed: '{positive}' and one other.")
    for split, names in classes.items():
        if names != found:
            missing = _listed(set(found) - set(names))
            raise ImagesError(f"train/ and test/ hold the same classes; '{root / split}' lacks {missing}.")
    if len(found) != 2:
        raise ImagesError(
            f"Exactly two class folders are needed, one of them defective; '{root}' has {_listed(found)}."
        )
    if positive not in found:
        raise ImagesError(
            f"Unknown positive class '{positive}'. The classes of '{root}' are {_listed(found)}: name the bad one."
        )


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders inside, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))


def _listing(root: Path, split: str, name: str) -> list[tuple[str, str]]:
    """Return relative path and "path, bytes, time" of each image file in a class folder, sorted by path."""
    prefix = f"{split}/{name}" if split else name
    listing = []
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                raise ImagesError(
                    f"A class folder holds images only; '{root / prefix}' holds the folder '{_one_line(entry.name)}'. "
                    "Move its images up, or move it away."
                )
            if entry.name.rpartition(".")[2].lower() not in SUFFIXES:
                continue
            stat = entry.stat()
            listing.append((f"{prefix}/{entry.name}", f"{prefix}/{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}"))
    return sorted(listing)


def _recall(root: Path, packs: Path, *, note: Path, folder: _Folder, skip_bad: bool) -> Pack | None:
    """Return the pack that this folder gave before, if the folder is as it was and the pack is still there."""
    try:
        entry = json.loads(note.read_text(encoding="utf-8"))
        skipped = _pairs(entry["skipped"])
        lies = packs / entry["dataset_id"]
        times, content = entry["times"], entry["content"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or not one of ours: decoding again costs seconds and is always right
    if not lies.is_dir() or (skipped and not skip_bad):
        return None
    if times != folder.times:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            hashes = list(threads.map(lambda file: _read(root / file.path)[1], folder.files))
        if content != _content(folder, hashes):
            return None
        _write_json(note, {**entry, "times": folder.times})
    return replace(open_pack(lies), skipped=skipped)


def _build(
    root: Path,
    draft: Path,
    *,
    folder: _Folder,
    size_px: int | None,
    skip_bad: bool,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Any], str]:
    """Decode into the folder `draft`; return the manifest and the hash of the content of all files, bad ones too."""
    array = draft / "castings.npy"
    files, hashes = list(folder.files), dict[str, str]()
    bad: list[tuple[str, str]] = []
    while True:
        images = _write_images(root, array, files=files, size_px=size_px, on_progress=on_progress)
        hashes.update({file.path: image.sha256 for file, image in zip(files, images, strict=True)})
        failed = [(file.path, image.reason) for file, image in zip(files, images, strict=True) if image.reason]
        if not failed:
            break
        bad += failed
        if not skip_bad:
            lines = "\n".join(f"  {_one_line(path)}: {reason}" for path, reason in bad)
            raise ImagesError(
                f"{len(bad)} of {len(files)} files in '{root}' cannot be used. Repair or remove them, or leave them "
                f"out with --skip-bad:\n{lines}"
            )
        files = [file for file, image in zip(files, images, strict=True) if not image.reason]
    split_made = not files[0].split if files else False
    splits = _made_split(files, images) if split_made else [file.split for file in files]
    labels = [file.label for file in files]
    for split in ("train", "test"):
        for label, name in ((1, folder.positive), (0, folder.negative)):
            if (split, label) not in zip(splits, labels, strict=True):
                raise ImagesError(f"No {split} image of class '{name}' in '{root}' can be used: add or repair some.")
    manifest: dict[str, Any] = {
        "version": PACK_VERSION,
        "positive": folder.positive,
        "shape": list(np.load(array, mmap_mode="r", allow_pickle=False).shape),
        "paths": [file.path for file in files],
        "labels": labels,
        "splits": splits,
        "sha256": [image.sha256 for image in images],
        "sizes": [image.size for image in images],
    }
    manifest["dataset_id"] = _digest([json.dumps(manifest, sort_keys=True)])[:16]
    manifest |= {"negative": folder.negative, "split_made": split_made, "skipped": sorted(bad)}
    _write_json(draft / "manifest.json", manifest)
    return manifest, _content(folder, [hashes[file.path] for file in folder.files])


def _write_images(
    root: Path,
    array: Path,
    *,
    files: Sequence[_File],
    size_px: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[_Decoded]:
    """Decode the files into the .npy file `array`; return what was seen, one a file, without its pixels.

    Starts as if all images were gray and of one size, and starts again, at most twice, when one of them is not: the
    real set, and every folder that is alike throughout, is decoded once.
    """
    frame = _Frame(box=size_px, channels=1)
    while True:
        with array.open("wb") as stream:
            seen = _write_alike(stream, root, files=files, frame=frame, on_progress=on_progress)
            if not isinstance(seen, _Frame):
                stream.flush()
                os.fsync(stream.fileno())
                return seen
        frame = seen


def _write_alike(
    stream: IO[bytes],
    root: Path,
    *,
    files: Sequence[_File],
    frame: _Frame,
    on_progress: Callable[[int, int], None] | None,
) -> list[_Decoded] | _Frame:
    """Write the images one after another; at the first that does not fit the frame, return one that it fits."""
    seen: list[_Decoded] = []
    shape: tuple[int, ...] = ()
    with warnings.catch_warnings(), ThreadPoolExecutor(_AT_ONCE) as threads:
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow's own limit would only warn
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            for image in threads.map(lambda file: _decode(root, file.path, box=frame.box), batch):
                seen.append(replace(image, pixels=None))
                if image.pixels is None:
                    continue
                height, width = image.pixels.shape[-2:]
                if not shape:
                    shape = (height, width) if frame.channels == 1 else (3, height, width)
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
                    np.lib.format.write_array_header_1_0(stream, header)
                if image.pixels.ndim > len(shape):
                    return replace(frame, channels=3)
                if (height, width) != shape[-2:]:
                    return replace(frame, box=MIXED_PX)
                stream.write(np.broadcast_to(image.pixels, shape).tobytes())
            if on_progress is not None:
                on_progress(len(seen), len(files))
    return seen


def _decode(root: Path, path: str, *, box: int | None) -> _Decoded:
    """Read one file; letterbox it into a square of side `box`, or keep its size when that is None."""
    content, sha256, reason = _read(root / path)
    if reason:
        return _Decoded(sha256, reason=reason)
    try:
        path.encode()
        picture = _upright(content)
        size = (picture.height, picture.width)
        pixels = np.asarray(picture if box is None else _letterboxed(picture, box))  # [h, w] or [h, w, 3]
    except UnicodeEncodeError:
        return _Decoded(sha256, reason="its name is not UTF-8")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return _Decoded(sha256, reason=f"more than {MAX_PIXELS // 10**6} megapixels")
    except UnidentifiedImageError:
        return _Decoded(sha256, reason=f"not one of {', '.join(_FORMATS)}")
    except Exception as error:  # decoders answer foreign bytes with almost any exception; the file is named with each
        return _Decoded(sha256, reason=_one_line(str(error)) or type(error).__name__)
    return _Decoded(sha256, size, pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _read(file: Path) -> tuple[bytes, str, str]:
    """Return a file's bytes, their sha256, and why they cannot be used, if so."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return b"", "", f"cannot be read: {error.strerror}"
    return content, hashlib.sha256(content).hexdigest(), "" if content else "empty file"


def _upright(content: bytes) -> Image.Image:
    """Return the image turned as its EXIF says, in mode L if it is exactly gray (R = G = B), else in mode RGB.

    A JPEG is first read without the conversion to RGB: where all chroma is 128, libjpeg's R, G and B are its Y, and
    that is twice as fast (2,600 against 1,250 images/s a thread at 300 px). Anything else is judged by its RGB pixels.
    """
    image = _opened(content)
    if image.format in ("JPEG", "MPO") and image.mode == "RGB":
        image.draft("YCbCr", None)
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except OSError:  # a JPEG whose components are R, G, B has no chroma to read; a broken one fails again below
            gray = False
        else:
            counts = image.histogram()  # 256 a band
            gray = counts[256 + 128] == counts[512 + 128] == image.width * image.height
        if gray:
            return image.getchannel(0)
        image = _opened(content)
    ImageOps.exif_transpose(image, in_place=True)
    return _eight_bit(image)


def _opened(content: bytes) -> Image.Image:
    """Open an image by its header, and refuse what should not be decoded."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames != 1 and image.format != "MPO":  # a camera's MPO is a photograph and its previews
        raise ValueError(f"{n_frames} pictures in one file")
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return an image of any mode as L if it is exactly gray, else as RGB; what is transparent becomes black."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own convert saturates at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("gray levels outside 16 bits: save it with 8 or 16 bits")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point gray levels have no fixed range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    elif image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    red, green, blue = (np.asarray(band) for band in image.split())
    return image.getchannel(0) if np.array_equal(red, green) and np.array_equal(red, blue) else image


def _letterboxed(picture: Image.Image, box: int) -> Image.Image:
    """Return the picture with its longest side brought to `box`, in the middle of a black square."""
    scale = box / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new(picture.mode, (box, box))
    square.paste(picture, ((box - width) // 2, (box - height) // 2))
    return square


def _made_split(files: Sequence[_File], images: Sequence[_Decoded]) -> list[str]:
    """Return "train" or "test" for each file: a tenth of each class is test, and exact copies stay together.

    Contents are taken in the order of a seeded hash, so that neither names nor neighbours move a casting.
    """
    rows: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image.sha256, []).append(row)
    labels = [file.label for file in files]
    room = [max(1, round(labels.count(label) * _TEST_SHARE)) for label in (0, 1)]
    splits = ["train"] * len(files)
    for sha256 in sorted(rows, key=lambda sha256: _digest([str(_SPLIT_SEED), sha256])):
        left = [room[y] - sum(labels[row] == y for row in rows[sha256]) for y in (0, 1)]
        if min(left) >= 0:
            room = left
            for row in rows[sha256]:
                splits[row] = "test"
    return splits


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
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=".", delete=False) as beside:
        json.dump(value, beside)
        beside.flush()
        os.fsync(beside.fileno())
    Path(beside.name).chmod(0o644)
    Path(beside.name).replace(file)


def _content(folder: _Folder, hashes: Sequence[str]) -> str:
    """Hash which content lies under which path."""
    return _digest([f"{file.path}\0{sha256}" for file, sha256 in zip(folder.files, hashes, strict=True)])


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _frozen(values: list[Any], dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _pairs(skipped: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((path, reason) for path, reason in skipped)


def _one_line(text: str) -> str:
    """Return foreign text without control characters and line ends, at most 200 characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{_one_line(name)}'" for name in sorted(names)) or "none"
