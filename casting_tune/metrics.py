"""Metrics of predictions: at a threshold, and of the ranking of the scores.

Input: y_true (1 is defective) and score (P(defective)) of the same images. Output: shares in 0..1,
or None if a metric is undefined. A new metric is one entry in METRICS (from counts) or RANKING
(from scores): the columns of trials, the objectives of a search and, from METRICS, the columns of
tables derive from these. Knows no trials, stores or percentages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """A confusion matrix, in images; the defect is the positive class unless `swapped`."""

    tp: int
    fp: int
    tn: int
    fn: int

    def swapped(self) -> Counts:
        """Return the same decisions with the other class as positive class."""
        return Counts(tp=self.tn, fp=self.fn, tn=self.tp, fn=self.fp)


def measure(
    y_true: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float = 0.5,
    positive: Literal["defective", "ok"] = "defective",
) -> dict[str, float | None]:
    """Return every metric of METRICS and then of RANKING, by name.

    `positive="ok"` evaluates the same decisions with ok_front as the positive class, as the study
    does; escape and overkill keep their meaning. The study's threshold t on P(ok) is our threshold
    1 - t on P(defective); a casting exactly at the threshold is rejected here and passed there.

    Args:
        y_true: [n] 1 is defective, 0 is ok.
        score: [n] P(defective). If a score is not finite, every metric is None.
        threshold: defective if score >= threshold, as in `counts`.
        positive: the positive class of recall, precision, f1, specificity, average precision and
            AUROC.

    Returns:
        Shares in 0..1; None if a metric is undefined (no images, or none of the class).

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or the threshold is not a number.
    """
    labels, scores = _checked(y_true, score)
    if not np.isfinite(scores).all():
        return dict.fromkeys([*METRICS, *RANKING])
    of_defect = counts(labels, scores, threshold=threshold)
    if positive == "defective":
        of_positive, ranked_labels, ranked_scores = of_defect, labels, scores
    else:
        of_positive, ranked_labels, ranked_scores = of_defect.swapped(), 1 - labels, -scores
    at_threshold = {
        name: f(of_defect if name in OF_THE_DEFECT else of_positive) for name, f in METRICS.items()
    }
    return at_threshold | {name: f(ranked_labels, ranked_scores) for name, f in RANKING.items()}


def counts(y_true: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> Counts:
    """Count the decisions "defective if score >= threshold", with the defect as the positive class.

    Scores are stored as float32, so score and threshold are both rounded to float32 before the
    comparison: a stored score 0.7 reaches the threshold 0.7, although float32's 0.7 is 1.2e-8 below
    Python's.

    Args:
        y_true: [n] 1 is defective, 0 is ok.
        score: [n] P(defective), finite.
        threshold: any number; above 1 nothing is rejected, at 0 everything is.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, or a score or the threshold is not a
            number.
    """
    labels, scores = _checked(y_true, score)
    if not np.isfinite(scores).all():
        raise ValueError(
            "Scores must be finite. For other scores use measure(), which returns None."
        )
    if np.isnan(threshold):
        raise ValueError("threshold must be a number; got NaN.")
    rejected = scores >= np.float32(threshold)
    defective = labels == 1
    return Counts(
        tp=int(np.count_nonzero(rejected & defective)),
        fp=int(np.count_nonzero(rejected & ~defective)),
        tn=int(np.count_nonzero(~rejected & ~defective)),
        fn=int(np.count_nonzero(~rejected & defective)),
    )


def _accuracy(c: Counts) -> float | None:
    """Share of all images that are classified correctly."""
    return _share(c.tp + c.tn, c.tp + c.fp + c.tn + c.fn)


def _recall(c: Counts) -> float | None:
    """Share of the positive class that is detected."""
    return _share(c.tp, c.tp + c.fn)


def _precision(c: Counts) -> float | None:
    """Share of positive decisions that are correct; None without any."""
    return _share(c.tp, c.tp + c.fp)


def _f1(c: Counts) -> float | None:
    """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn); None without recall."""
    return _share(2 * c.tp, 2 * c.tp + c.fp + c.fn) if c.tp + c.fn else None


def _specificity(c: Counts) -> float | None:
    """Share of the negative class that is classified as negative."""
    return _share(c.tn, c.tn + c.fp)


def _escape_rate(c: Counts) -> float | None:
    """Share of the defective castings that are passed."""
    return _share(c.fn, c.tp + c.fn)


def _overkill_rate(c: Counts) -> float | None:
    """Share of the good castings that are rejected."""
    return _share(c.fp, c.fp + c.tn)


METRICS: dict[str, Callable[[Counts], float | None]] = {
    "accuracy": _accuracy,
    "recall": _recall,
    "precision": _precision,
    "f1": _f1,
    "specificity": _specificity,
    "escape_rate": _escape_rate,
    "overkill_rate": _overkill_rate,
}

OF_THE_DEFECT = frozenset({"escape_rate", "overkill_rate"})
"""Metrics with the defect as the positive class in both views."""

OK_VIEW = ("recall", "precision", "f1")
"""Metrics that are also stored with ok_front as the positive class, as in the study."""


def _average_precision(y_true: NDArray[np.uint8], score: NDArray[np.float32]) -> float | None:
    """Area under precision over recall as a sum of steps, ties as one step (as in scikit-learn)."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(y_true, score)) if _both_classes(y_true) else None


def _auroc(y_true: NDArray[np.uint8], score: NDArray[np.float32]) -> float | None:
    """Probability that a positive image scores above a negative one; a tie counts half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y_true, score)) if _both_classes(y_true) else None


RANKING: dict[str, Callable[[NDArray[np.uint8], NDArray[np.float32]], float | None]] = {
    "average_precision": _average_precision,
    "auroc": _auroc,
}


def _both_classes(y_true: NDArray[np.uint8]) -> bool:
    """Return whether a ranking metric is defined: with one class, any scores would give 1.0."""
    return 0 < int(np.count_nonzero(y_true)) < y_true.size


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _checked(y_true: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    labels = np.asarray(y_true)
    scores = np.asarray(score, dtype=np.float32)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"y_true and score must have the same shape [n]; got {labels.shape} and {scores.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("y_true must contain only 0 (ok) and 1 (defective).")
    return labels.astype(np.uint8), scores
