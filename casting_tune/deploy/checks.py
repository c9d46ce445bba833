"""The request for an export's threshold, and the checks that an export has passed."""

from __future__ import annotations

from dataclasses import dataclass

from casting_tune.analysis.operating_point import OperatingPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule for a threshold, as in `selection.threshold`. All None: the threshold is 0.5."""

    max_escape: str | None = None
    cost_escape: float | None = None
    cost_overkill: float | None = None
    prevalence: float | None = None


NO_RULE = Rule()
"""No rule: the threshold is 0.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The results of the checks before an export folder is put in place.

    Attributes:
        point: the threshold and its effect on validation and test, from the exported float32
            scores.
        n_images: number of validation and test images that were scored.
        largest_stored: largest difference to a stored score, in the precision of the training.
        largest_onnx: largest difference between onnxruntime and torch in float32.
        n_other_decisions: number of test images whose stored score gives another decision.
        kept: whether the store had the weights; otherwise the cell was trained again.
    """

    point: OperatingPoint
    n_images: int
    largest_stored: float
    largest_onnx: float
    n_other_decisions: int
    kept: bool
