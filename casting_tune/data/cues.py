"""Tests whether something other than the part separates the classes: light, file format, names.

Input: a pack, measures of its images, and groups. Output: one Cue for each property, with an AUC
and its interval. Reads only the headers of the image files, if their folder is known.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from casting_tune.data.layouts import SPLITS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack

_Z = NormalDist().inv_cdf(0.975)
_DEPTHS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}
_OF_FILES = {"number in the file name", "folder or name pattern", "file size", "file time"}
_COMMON = 10  # images of a pattern of file names that counts
STRONG = 0.75
"""A cue is reported as strong if the whole interval of its AUC is above this value."""


@dataclass(frozen=True, slots=True)
class Cue:
    """How well one property separates the classes.

    Attributes:
        name: of the property.
        auc: 0.5 to 1; which class has the larger values does not matter.
        low, high: 95 % interval.
    """

    name: str
    auc: float
    low: float
    high: float


def measure(
    pack: Pack, gray: NDArray[np.float64], border: NDArray[np.float64], groups: NDArray[np.int64]
) -> list[Cue]:
    """Return the cues that can separate the classes, the strongest first.

    Properties with one value for all images are omitted.

    Args:
        pack: the images, with both classes.
        gray: [n, 2] mean and standard deviation of the gray levels.
        border: [n, 3] mean gray level of the border, and the offsets of the part's centre from the
            middle, in x and y, as shares of the sides.
        groups: [n] images of one group count as one for the interval.
    """
    heights, widths = pack.sizes[:, 0].astype(np.float64), pack.sizes[:, 1].astype(np.float64)
    values = {
        "brightness": gray[:, 0],
        "contrast": gray[:, 1],
        "image size": heights * widths,
        "aspect ratio": widths / heights,
        "border brightness": border[:, 0],
        "horizontal position": border[:, 1],
        "vertical position": border[:, 2],
        "number in the file name": _numbers(pack.paths),
        "folder or name pattern": _patterns(pack),
    }
    if pack.root is not None:
        values |= _of_files(pack.root, pack.paths)
    cues = [
        Cue(name, *auc_interval(column, pack.labels, groups))
        for name, column in values.items()
        if len(np.unique(column)) > 1
    ]
    return sorted(cues, key=lambda cue: -cue.auc)


def sentences(cues: list[Cue]) -> Iterator[str]:
    """Yield what the cues mean, and what the audit cannot test."""
    strong = [cue for cue in cues if cue.low > STRONG]
    if seen := [cue for cue in strong if cue.name not in _OF_FILES]:
        yield (
            f"Cues other than the defect may separate the classes: {_listed(seen)}. A network can "
            "learn them instead of the defect: check how the images were taken."
        )
    if files := [cue for cue in strong if cue.name in _OF_FILES]:
        yield (
            f"The files of the classes differ: {_listed(files)}. The classes may be from different "
            "sessions or cameras, which a network can learn, or were only copied at other times."
        )
    if weak := [cue for cue in cues if cue not in strong]:
        yield f"Weaker cues (AUC with 95 % interval; 0.5 is none): {_listed(weak)}."
    yield (
        "The audit cannot see overlapping patches of one photograph, other views of one part, or "
        "parts of one lot: give such groups with a list or --group-pattern."
    )


def auc_interval(
    values: NDArray[np.float64], labels: NDArray[np.uint8], groups: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the AUC, at least 0.5, with its 95 % interval on the logit scale.

    The variance is DeLong's, summed by group (N. A. Obuchowski, Biometrics 53, 1997): images of one
    group are not independent. With groups of one image it is DeLong's.

    Args:
        values: [n] the property.
        labels: [n] 1 is defective; both classes are present.
        groups: [n] numbers from 0.
    """
    from scipy.stats import rankdata

    defective = labels == 1
    ranks = rankdata(values)
    m, n = int(defective.sum()), int((~defective).sum())
    of_defects = (ranks[defective] - rankdata(values[defective])) / n  # [m] share of good below
    of_good = 1 - (ranks[~defective] - rankdata(values[~defective])) / m  # [n] share of bad above
    auc = float(of_defects.mean())
    parts = np.zeros((int(groups.max()) + 1, 2))
    np.add.at(parts[:, 0], groups[defective], (of_defects - auc) / m)
    np.add.at(parts[:, 1], groups[~defective], (of_good - auc) / n)
    counts = [len(np.unique(groups[side])) for side in (defective, ~defective)]
    scale = np.array([np.sqrt(c / (c - 1)) if c > 1 else 1.0 for c in counts])
    spread = float(np.sqrt(((parts * scale).sum(axis=1) ** 2).sum()))
    if auc < 0.5:
        auc = 1 - auc
    if min(counts) < 2:
        return auc, 0.5, 1.0
    if not 0 < auc < 1:
        least = 3 / min(counts)  # rule of three: the variance of a perfect separation is 0
        return auc, max(0.5, 1 - least), 1.0
    middle, half = np.log(auc / (1 - auc)), _Z * spread / (auc * (1 - auc))
    low, high = (float(1 / (1 + np.exp(-logit))) for logit in (middle - half, middle + half))
    return auc, max(0.5, low), high


def _of_files(root: Path, paths: NDArray[np.str_]) -> dict[str, NDArray[np.float64]]:
    """Return properties of the image files: JPEG quality, bits per channel, size, time."""
    columns: dict[str, list[float]] = {
        "JPEG quality": [], "bits per channel": [], "file size": [], "file time": [],
    }  # fmt: skip
    for path in paths.tolist():
        status = (root / path).stat()
        with warnings.catch_warnings(action="ignore"), Image.open(root / path) as image:
            tables = getattr(image, "quantization", None) or {0: [0]}
            columns["JPEG quality"].append(-float(np.mean(tables[min(tables)])))
            columns["bits per channel"].append(_DEPTHS.get(image.mode, 8))
        columns["file size"].append(status.st_size)
        columns["file time"].append(status.st_mtime)
    return {name: np.array(column, np.float64) for name, column in columns.items()}


def _numbers(paths: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return the last number of each file name, -1 without one."""
    found = (re.findall(r"\d{1,15}", _stem(path)) for path in paths)
    return np.array([float(numbers[-1]) if numbers else -1.0 for numbers in found])


def _patterns(pack: Pack) -> NDArray[np.float64]:
    """Return the share of defects among the images whose path has the same pattern.

    Digits, splits and class names are left out of a pattern; rare patterns count as one.
    """
    names = {*pack.kinds.tolist(), *pack.negative.split(", "), pack.positive} - {""}
    words = {word for name in names for word in re.split(r"[\W_]+", name.lower())} - {""}
    named = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))
    patterns = []
    for path in pack.paths.tolist():
        folders = [f for f in path.split("/")[:-1] if f not in names and f.lower() not in SPLITS]
        text = "/".join([*folders, _stem(path)]).lower()
        patterns.append(re.sub(r"\d+", "#", named.sub("", text)))
    _, number, counts = np.unique(patterns, return_inverse=True, return_counts=True)
    common = np.where(counts >= _COMMON, np.arange(len(counts)), -1)[number] + 1
    shares = np.bincount(common, weights=pack.labels) / np.maximum(np.bincount(common), 1)
    found: NDArray[np.float64] = shares[common]
    return found


def _stem(path: str) -> str:
    return str(path).rpartition("/")[2].rpartition(".")[0]


def _listed(cues: list[Cue]) -> str:
    return ", ".join(f"{cue.name} {cue.auc:.2f} ({cue.low:.2f} to {cue.high:.2f})" for cue in cues)
