"""What a trial's rows say: their columns, made of a configuration, its images and its scores.

Comes in: a TrialConfig, a pack and its folds; scores of the validation and test images. Goes out:
columns of the row in trials, and the rows of predictions. Does not know how a trial runs, where its
rows go or who schedules.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from casting_tune import metrics
from casting_tune.config import RECIPE, Predictions, TrialConfig
from casting_tune.store.redact import scrub
from casting_tune.toggles import TOGGLES, augmentation_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack
    from casting_tune.data.splits import Folds

ERROR_CHARS = 2000
TRACEBACK_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a trial runs, as its row records it.

    Attributes:
        device: "cpu" or "cuda"; the scheduler has made the right GPU the visible one.
        n_threads: CPU threads of the trial.
        n_at_once: trials that may run at the same time on this machine or cluster; 1 had it alone.
        gpus: share of a GPU that the trial was given, 0 on the CPU; None: unknown.
        ray: Ray's version, None in a plain loop.
        git_commit: of the casting_tune that runs, None outside a checkout.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    n_threads: int = 1
    n_at_once: int = 1
    gpus: float | None = None
    ray: str | None = None
    git_commit: str | None = None


def describe(config: TrialConfig, pack: Pack, parts: Folds) -> dict[str, Any]:
    """Return what a row of trials says of a configuration, its images and the libraries, one column a toggle."""
    settings = asdict(config)
    toggles = settings.pop("toggles")
    return settings | {
        # the folder's path stays out of the store; weights_id identifies it
        "weights": config.weights.partition(":")[0],
        "augmentation": augmentation_name(toggles),
        **{toggle: toggle in toggles for toggle in TOGGLES},
        "recipe": RECIPE,
        "dataset_id": pack.dataset_id,
        "positive": pack.positive,
        "n_train": len(parts.train),
        "n_validation": len(parts.validation),
        "n_test": len(parts.test),
        # tells machines apart; what they are called stays out of the store
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "kornia")},
        "casting_tune": importlib.metadata.version("casting-tune"),
    }


def begin(
    cell: str, attempt: int, *, sweep: str, label: str, place: Place, started_at: datetime
) -> dict[str, Any]:
    """Return what a row of trials says of an attempt as it begins."""
    begun = {
        "cell_id": cell,
        "attempt": attempt,
        "sweep": sweep,
        "label": label,
        "started_at": started_at,
    }
    return begun | asdict(place)


def failure(error: str, traceback: str) -> dict[str, str | None]:
    """Return what a row of trials says of why a trial failed: the start of the error, the end of the traceback.

    Both are redacted before they are cut: half a secret would not be recognised.
    """
    error, traceback = (
        scrub(text).encode(errors="backslashreplace").decode() for text in (error, traceback)
    )
    return {
        "error": error[:ERROR_CHARS],
        "traceback": traceback.encode()[-TRACEBACK_BYTES:].decode(errors="ignore") or None,
    }


def predictions(parts: Folds, pack: Pack, scores: list[NDArray[np.float32]]) -> Predictions:
    """Put the scores of the validation images, then of the test images, beside what is known of these images."""
    rows = np.concatenate([parts.validation, parts.test])
    split = np.repeat(["validation", "test"], [len(parts.validation), len(parts.test)])
    learned = pack.sha256[np.concatenate([parts.train, parts.validation])]
    return Predictions(
        image=rows,
        split=split,
        y_true=pack.labels[rows],
        score=np.concatenate(scores),
        leaked=(split == "test") & np.isin(pack.sha256[rows], learned),
    )


def of_predictions(
    predicted: Predictions, pack: Pack, cell: str, attempt: int
) -> list[dict[str, Any]]:
    """Return one row of predictions an image."""
    return [
        {
            "cell_id": cell,
            "attempt": attempt,
            "split": str(split),
            "image": int(image),
            "path": str(pack.paths[image]),
            "sha256": str(pack.sha256[image]),
            "leaked": bool(leaked),
            "y_true": int(y_true),
            "score": float(score),
        }
        for image, split, leaked, y_true, score in zip(
            predicted.image,
            predicted.split,
            predicted.leaked,
            predicted.y_true,
            predicted.score,
            strict=True,
        )
    ]


def score(predicted: Predictions) -> dict[str, float | int | None]:
    """Return the metric columns of a row of trials: both splits at threshold 0.5, and the study's view of the test."""
    columns: dict[str, float | int | None] = {}
    for split in ("validation", "test"):
        chosen = predicted.split == split
        y_true, scores = predicted.y_true[chosen], predicted.score[chosen]
        if not len(scores):
            continue  # a baseline has no validation
        columns |= {
            f"{split}_{name}": value for name, value in metrics.measure(y_true, scores).items()
        }
        columns |= _counts(split, y_true, scores)
    leaked = predicted.leaked[chosen]
    columns |= _counts("test_leaked", y_true[leaked], scores[leaked])
    view = metrics.measure(y_true, scores, positive="ok")
    return columns | {f"test_{name}_ok": view[name] for name in metrics.OK_VIEW}


def _counts(prefix: str, y_true: NDArray[np.uint8], score: NDArray[np.float32]) -> dict[str, int]:
    return {f"{prefix}_{name}": n for name, n in asdict(metrics.counts(y_true, score)).items()}
