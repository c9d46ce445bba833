"""The rows that a trial writes, as values.

Input: a TrialConfig, a pack and its split, scores of the validation and test images. Output: the
row in trials and the rows in predictions. Does not know how a trial runs or where its rows go.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from casting_tune import metrics
from casting_tune.config import RECIPE, UNLIMITED, Allowance, Predictions, Status, TrialConfig
from casting_tune.store.redact import scrub
from casting_tune.toggles import TOGGLES, augmentation_name
from casting_tune.training.memory import ImagesFrom

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
        n_at_once: trials that may run at the same time on this machine or cluster.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialContext:
    """Everything about a trial that is not in its cell's key.

    Attributes:
        sweep: the sweep that the trial belongs to.
        label: the name of the cell for a reader.
        place: where the trial runs.
        groups: [n] group number of each image of the pack; required by a grouped split.
        allowance: limits of the trial, and the weights to keep.
        after: the cell's last attempt before the sweep began, or 0; None: list the whole store.
    """

    sweep: str
    label: str
    place: Place = field(default_factory=Place)
    groups: NDArray[np.int64] | None = None
    allowance: Allowance = UNLIMITED
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a trial ended: its status, and for a failure the error and the traceback."""

    status: Status
    error: str | None = None
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a training measures about itself; each is a column of trials."""

    epoch_s: float
    step_s: float
    image_s: float
    n_steps: int
    cuda_graph: bool | None
    latency_one_s: float
    latency_batch_s: float
    latency_batch_images: int
    peak_memory_bytes: int | None
    n_parameters: int
    n_statistics: int
    resumed_from: int
    images_from: ImagesFrom


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One attempt of a cell, complete: the row that commits it.

    Attributes:
        cell_id, attempt: the key of the row.
        context: sweep, label, place and limits of the trial.
        description: columns of the configuration, the images and the libraries, from `describe`.
        started_at: when the attempt began.
        ending: how it ended.
        duration_s: seconds of the attempt; None: unknown.
        measured: of a completed training; None for a baseline and a failed trial.
        resumed_from: the last epoch of earlier attempts, if `measured` has none.
        scores: metric columns of a completed trial, from `score`.
    """

    cell_id: str
    attempt: int
    context: TrialContext
    description: Mapping[str, Any]
    started_at: datetime
    ending: Ending
    duration_s: float | None = None
    measured: Measured | None = None
    resumed_from: int | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the row of trials; a column that is missing is NULL."""
        columns = {
            **self.description,
            **asdict(self.context.place),
            "cell_id": self.cell_id,
            "attempt": self.attempt,
            "sweep": self.context.sweep,
            "label": self.context.label,
            "started_at": self.started_at,
            "micro_batch": self.context.allowance.micro_batch,
            "resumed_from": self.resumed_from,
            **(asdict(self.measured) if self.measured else {}),
            **self.scores,
            "status": self.ending.status,
            "duration_s": self.duration_s,
        }
        if self.ending.error is None:
            return columns
        return columns | failure(self.ending.error, self.ending.traceback)


def describe(config: TrialConfig, pack: Pack, parts: Folds) -> dict[str, Any]:
    """Return the columns of trials about a configuration, its images and the libraries.

    Each toggle has a column.
    """
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
        "negative": pack.negative,
        "pixels": pack.pixels.text(),
        "n_train": len(parts.train),
        "n_validation": len(parts.validation),
        "n_test": len(parts.test),
        # a hash distinguishes machines; their names stay out of the store
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "kornia")},
        "casting_tune": importlib.metadata.version("casting-tune"),
    }


def failure(error: str, traceback: str) -> dict[str, str | None]:
    """Return the columns of a failure: the start of the error and the end of the traceback.

    Both are redacted before they are cut, because half a secret would not be recognised.
    """
    error, traceback = (
        scrub(text).encode(errors="backslashreplace").decode() for text in (error, traceback)
    )
    return {
        "error": error[:ERROR_CHARS],
        "traceback": traceback.encode()[-TRACEBACK_BYTES:].decode(errors="ignore") or None,
    }


def predictions(parts: Folds, pack: Pack, scores: list[NDArray[np.float32]]) -> Predictions:
    """Return the predictions of a trial.

    Args:
        parts: image indices of train, validation and test.
        pack: the images.
        scores: P(defective) of the validation images, then of the test images.
    """
    indices = np.concatenate([parts.validation, parts.test])
    split = np.repeat(["validation", "test"], [len(parts.validation), len(parts.test)])
    learned = pack.sha256[np.concatenate([parts.train, parts.validation])]
    return Predictions(
        image=indices,
        split=split,
        y_true=pack.labels[indices],
        score=np.concatenate(scores),
        leaked=(split == "test") & np.isin(pack.sha256[indices], learned),
    )


def of_predictions(
    predicted: Predictions, pack: Pack, cell: str, attempt: int
) -> list[dict[str, Any]]:
    """Return the rows of predictions, one per image."""
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
            "kind": str(pack.kinds[image]),
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
    """Return the metric columns of trials.

    They are the metrics of validation and test at threshold 0.5, and test metrics with `ok` as the
    positive class, as in the study.
    """
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
