"""The published castings: downloads them from Kaggle with kagglehub, and checks every file.

Input: a folder, and whether the licence is accepted. Output: the folder with train/ and test/ and
its contents. Knows no packs and no store; changes no image.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from casting_tune.errors import ImagesError, UsageError, unreadable

HANDLE = "ravirajsinh45/real-life-industrial-dataset-of-casting-product"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
LICENCE = "CC BY-NC-ND 4.0"
TERMS = (
    f"The images belong to Ravirajsinh Dabhi, under {LICENCE} "
    "(https://creativecommons.org/licenses/by-nc-nd/4.0/): name the author, no commercial use, no "
    "distribution of changed images."
)
COUNTS = {
    "test/def_front": 453,
    "test/ok_front": 262,
    "train/def_front": 3758,
    "train/ok_front": 2875,
}
DIGEST = "4d0a79d142128177ab13a3c9661261d7a35382a84826595b23f8b5d8de8306f7"
"""SHA-256 of the list of all 7,348 images and their SHA-256, in the folder with train/ and test/:

find train test -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Castings:
    """A folder with exactly the published images; `counts` by split/class."""

    folder: Path
    counts: dict[str, int]
    sha256: str
    licence: str = LICENCE


def fetch(out: Path | None, *, licence_accepted: bool) -> Castings:
    """Download the published images and check each.

    Args:
        out: a new or empty folder; None is kagglehub's cache, which a second call uses.
        licence_accepted: the user has read TERMS and accepts them.

    Raises:
        UsageError: the licence is not accepted, kagglehub is not installed, or `out` is not empty.
        ImagesError: Kaggle is not available or refuses, or the images are not the published ones.
    """
    if not licence_accepted:
        raise UsageError(f"{TERMS} To accept this, add --accept-licence.")
    if importlib.util.find_spec("kagglehub") is None:
        raise UsageError('fetch requires kagglehub: pip install "casting-tune[fetch]"')
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            f"--out '{out}' already exists. Use another folder, or check this one: --check '{out}'."
        )
    import kagglehub

    logging.getLogger("kagglehub").setLevel(logging.ERROR)  # it logs to stdout
    try:
        downloaded = Path(
            kagglehub.dataset_download(HANDLE, output_dir=None if out is None else str(out))
        )
    # no network, account or disk space: kagglehub and its libraries have no common error
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ImagesError(
            f"Cannot download the images from Kaggle ({why}). Alternative: download them in a "
            f"browser from {PAGE}, unpack them, then run: casting-tune fetch --check DIR"
        ) from error
    return check(downloaded)


def check(folder: Path) -> Castings:
    """Return the folder with train/ and test/, in or below a folder, after a check of all files.

    Raises:
        ImagesError: there is none, or an image is missing, changed or additional.
    """
    again = f"Download the images again from {PAGE}."
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):  # rglob gives no error
        raise ImagesError(unreadable(folder, PermissionError()))
    found = sorted(test.parent.parent for test in folder.rglob("test/def_front"))
    if not found:
        raise ImagesError(
            f"No castings in '{folder}': test/def_front not found in or below it. {again}"
        )
    root = found[0]
    try:
        files = [
            file
            for split in ("train", "test")
            for file in (root / split).rglob("*")
            if file.is_file()
        ]
        names = sorted((file.relative_to(root).as_posix() for file in files), key=str.encode)
        counts = dict(sorted(Counter(name.rpartition("/")[0] for name in names).items()))
        wrong = [
            f"{name} has {counts.get(name, 0):,} files instead of {COUNTS.get(name, 0):,}"
            for name in sorted(counts | COUNTS)
            if counts.get(name, 0) != COUNTS.get(name, 0)
        ]
        if wrong:
            raise ImagesError(
                f"'{root}' does not match the published images: {'; '.join(wrong)}. {again}"
            )
        lines = "".join(
            f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names
        )
    except OSError as error:
        raise ImagesError(f"Cannot read '{root}': {error.strerror or error}.") from error
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if digest != DIGEST:
        raise ImagesError(
            f"'{root}' has as many images as published, but not the same: their SHA-256 is "
            f"{digest}. {again}"
        )
    return Castings(folder=root, counts=counts, sha256=digest)
