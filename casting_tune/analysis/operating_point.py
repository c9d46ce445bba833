"""The operating point: a threshold, the rule that chose it, and the bounds of its errors.

Input: labels and scores of the validation and test images of one training. Output: an
OperatingPoint. The threshold comes from the validation images only: test images change the report,
never the choice. Needs no store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune import metrics
from casting_tune.analysis import bootstrap, group_sums, kind_rates, statistics
from casting_tune.analysis.kind_rates import KindRate
from casting_tune.analysis.operating_sentences import FIXED, number, sentences
from casting_tune.errors import UsageError
from casting_tune.metrics import Counts

FEWEST_DEFECTS = 20
"""Fewest validation defects to choose a threshold: 0 misses of 20 show 13.9 %, of 10 25.9 %."""

_REJECT_ALL = 0.0
_PASS_ALL = float(np.nextafter(np.float32(1), np.float32(2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold, the rule that chose it on validation, and its result on the test images.

    Rates are shares in 0..1. Bounds are one-sided 95 % bounds for new castings over the groups of
    the images (`bootstrap.rate_bounds`), so low and upper together are a 90 % interval. Without
    groups, each image counts as a different casting, and they are the exact bounds of Clopper &
    Pearson. NaN if the groups are too few.

    Attributes:
        threshold: defective when score >= threshold.
        rule: the rule in words.
        validation, test: counts of the decisions, the defect as the positive class.
        escape_rate: share of the test defects that are passed; None without a test defect.
        escape_low, escape_upper: its bounds.
        overkill_rate: share of the good test castings that are rejected; None without one.
        overkill_low, overkill_upper: its bounds.
        resolution: the best upper bound of this test set: with all its defects detected.
        n_defects_needed: defects of different castings, all detected, that show the required escape
            rate; None if no rate or 0 is required.
        n_groups_defective, n_groups_good: different photographs among the test images; None if
            unknown.
        promised_escape, promised_overkill: upper bounds by the validation images alone. The
            threshold was chosen on them, so they promise at most this.
        n_validation_groups: different photographs among the defective and the good validation
            images; None if unknown.
        n_validation_leaked: validation images whose photograph is also in training.
        sentences: the report in plain sentences.
        validation_kinds, test_kinds: escapes by kind of defect, the worst kind first; () if the
            kinds are unknown.
    """

    threshold: float
    rule: str
    validation: Counts
    test: Counts
    escape_rate: float | None
    escape_low: float
    escape_upper: float
    overkill_rate: float | None
    overkill_low: float
    overkill_upper: float
    resolution: float
    n_defects_needed: int | None
    n_groups_defective: int | None
    n_groups_good: int | None
    promised_escape: float
    promised_overkill: float
    n_validation_groups: tuple[int, int] | None
    n_validation_leaked: int
    sentences: tuple[str, ...]
    validation_kinds: tuple[KindRate, ...] = ()
    test_kinds: tuple[KindRate, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """Labels and scores of some images.

    Attributes:
        y_true: [n] 1 is defective, 0 is ok.
        score: [n] P(defective) in 0..1.
        groups: [n] the photograph that each image shows; None if unknown.
        n_leaked: images whose photograph is also in training.
        kinds: [n] name of the kind of defect, "" for good images; None if unknown.
    """

    y_true: ArrayLike
    score: ArrayLike
    groups: ArrayLike | None = None
    n_leaked: int = 0
    kinds: ArrayLike | None = None

    def rates(self, threshold: float) -> tuple[KindRate, ...]:
        """Return the escapes of each kind of defect at a threshold, the worst kind first."""
        return kind_rates.of_images(self.y_true, self.score, self.kinds, threshold=threshold)


def at_most_escape(validation: Scored, test: Scored, *, max_escape: float) -> OperatingPoint:
    """Choose the threshold with the least overkill that keeps the escape rate on validation.

    Among equal overkill it takes the fewest escapes, because an escape that saves no good casting
    has no benefit. This leaves one gap between two scores; the middle of the gap is farthest from
    a validation score.

    Args:
        validation: the images that choose.
        test: the images that are reported; they do not influence the choice.
        max_escape: share of the validation defects that may be passed, in [0, 1).

    Raises:
        UsageError: max_escape is out of range, a score is not a probability, or validation has too
            few castings.
    """
    if not 0 <= max_escape < 1:
        raise UsageError(
            "The escape rate must be at least 0 and less than 1, such as 0.005 for 0.5 %; "
            f"got {max_escape}."
        )
    choices = _choices(validation)
    # not fn <= max_escape * n: 0.29 * 100 is 28.999999999999996
    kept = [
        (at, counts) for at, counts in choices if counts.fn / (counts.tp + counts.fn) <= max_escape
    ]
    at, _ = min(kept, key=lambda choice: (choice[1].fp, choice[1].fn))
    rule = f"escape rate at most {number(100 * max_escape)} % on validation"
    return _report(at, validation, test, rule=rule, max_escape=max_escape)


def least_cost(
    validation: Scored, test: Scored, *, cost_escape: float, cost_overkill: float, prevalence: float
) -> OperatingPoint:
    """Choose the threshold with the least expected cost per casting on validation.

    The cost is prevalence * cost_escape * escape rate + (1 - prevalence) * cost_overkill * overkill
    rate, computed in exact fractions of the given numbers. Among equal costs it takes the fewest
    escapes, because the cost of a defect that has left the factory is usually underestimated.

    Args:
        validation, test: as in `at_most_escape`.
        cost_escape: of a passed defective casting, above 0, in any currency.
        cost_overkill: of a rejected good casting, above 0, in the same currency.
        prevalence: share of defective castings on the line, in (0, 1); the share among the images
            does not matter.

    Raises:
        UsageError: a cost or the prevalence is out of range, a score is not a probability, or
            validation has too few castings.
    """
    for name, cost in (("an escape", cost_escape), ("an overkill", cost_overkill)):
        if not 0 < cost < math.inf:
            raise UsageError(f"The cost of {name} must be above 0 and finite; got {cost}.")
    if not 0 < prevalence < 1:
        raise UsageError(
            "The prevalence, the share of defects on the line, must be greater than 0 and less "
            f"than 1; got {prevalence}."
        )
    choices = _choices(validation)
    share, of_escape, of_overkill = (
        Fraction(repr(float(x))) for x in (prevalence, cost_escape, cost_overkill)
    )
    _, all_rejected = choices[0]
    per_escape = share * of_escape / all_rejected.tp
    per_overkill = (1 - share) * of_overkill / all_rejected.fp
    at, _ = min(
        choices,
        key=lambda choice: (
            per_escape * choice[1].fn + per_overkill * choice[1].fp,
            choice[1].fn,
        ),
    )
    rule = (
        f"least cost on validation: {number(cost_escape)} per escape, {number(cost_overkill)} per "
        f"overkill, prevalence {number(prevalence)}"
    )
    return _report(at, validation, test, rule=rule)


def fixed(validation: Scored, test: Scored, *, threshold: float) -> OperatingPoint:
    """Report a given threshold, such as the 0.5 of the tables.

    Raises:
        UsageError: a score is not a probability.
    """
    return _report(threshold, validation, test, rule=f"{FIXED} {number(threshold)}")


def _choices(validation: Scored) -> list[tuple[float, Counts]]:
    """Return all thresholds that give different decisions on validation, ascending, with counts.

    One is in the middle between each two neighbouring scores. At the ends are 0, which rejects
    every casting, and the next float32 after 1, which passes every casting.
    """
    y, scores = _checked(validation, name="validation")
    defects, goods = np.sort(scores[y == 1]), np.sort(scores[y == 0])
    if len(defects) < FEWEST_DEFECTS:
        raise UsageError(
            f"A threshold requires at least {FEWEST_DEFECTS} validation defects; got "
            f"{len(defects)}. Train with more images or with a larger validation_share."
        )
    if not len(goods):
        raise UsageError(
            "A threshold requires good castings in validation; got none. Train with both classes."
        )
    values = np.unique(scores)
    middle = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    # between neighbours in float32 there is no middle: take the upper one, which is rejected
    middle = np.where(middle > values[:-1], middle, values[1:])
    thresholds = np.concatenate(([_REJECT_ALL], middle, [_PASS_ALL]), dtype=np.float32)
    passed = (np.searchsorted(side, thresholds).tolist() for side in (defects, goods))
    return [
        (at, Counts(tp=len(defects) - fn, fp=len(goods) - tn, tn=tn, fn=fn))
        for at, fn, tn in zip(thresholds.tolist(), *passed, strict=True)
    ]


def _checked(scored: Scored, *, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    scores = np.asarray(scored.score, dtype=np.float32)
    bad = int(np.count_nonzero(~((scores >= 0) & (scores <= 1))))  # NaN is neither
    if bad:
        raise UsageError(
            f"{bad} of {scores.size} {name} scores are not between 0 and 1. Train the cell again."
        )
    metrics.counts(scored.y_true, scores)  # checks shapes and labels
    return np.asarray(scored.y_true, dtype=np.uint8), scores


def _report(
    threshold: float,
    validation: Scored,
    test: Scored,
    *,
    rule: str,
    max_escape: float | None = None,
) -> OperatingPoint:
    """Return the operating point of a threshold: its bounds on the test set and its sentences."""
    chosen = metrics.counts(*_checked(validation, name="validation"), threshold=threshold)
    tested = metrics.counts(*_checked(test, name="test"), threshold=threshold)
    sides = {
        (name, label): _Side.of(scored, label, threshold)
        for name, scored in (("validation", validation), ("test", test))
        for label in (1, 0)
    }
    defects, goods = sides["test", 1], sides["test", 0]
    escape_low, escape_upper = defects.bounds()
    overkill_low, overkill_upper = goods.bounds()
    groups = sides["validation", 1].n_groups, sides["validation", 0].n_groups
    point = OperatingPoint(
        threshold=threshold,
        rule=rule,
        validation=chosen,
        test=tested,
        escape_rate=metrics.METRICS["escape_rate"](tested),
        escape_low=escape_low,
        escape_upper=escape_upper,
        overkill_rate=metrics.METRICS["overkill_rate"](tested),
        overkill_low=overkill_low,
        overkill_upper=overkill_upper,
        resolution=replace(defects, wrong=np.zeros_like(defects.wrong)).bounds()[1],
        n_defects_needed=statistics.defects_needed(max_escape) if max_escape else None,
        n_groups_defective=None if test.groups is None else defects.n_groups,
        n_groups_good=None if test.groups is None else goods.n_groups,
        promised_escape=sides["validation", 1].bounds()[1],
        promised_overkill=sides["validation", 0].bounds()[1],
        n_validation_groups=None if validation.groups is None else groups,
        n_validation_leaked=validation.n_leaked,
        sentences=(),
        validation_kinds=validation.rates(threshold),
        test_kinds=test.rates(threshold),
    )
    return replace(point, sentences=sentences(point, max_escape=max_escape))


@dataclass(frozen=True, slots=True)
class _Side:
    """The images of one class: whether each is misclassified [n] bool, and its group [n]."""

    wrong: NDArray[np.bool_]
    groups: NDArray[Any]

    @classmethod
    def of(cls, scored: Scored, label: int, threshold: float) -> _Side:
        y, score = np.asarray(scored.y_true), np.asarray(scored.score, np.float32)
        own = y == label
        groups = np.arange(len(y)) if scored.groups is None else np.asarray(scored.groups)
        return cls(((score >= np.float32(threshold)) != (y == 1))[own], groups[own])

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))

    def bounds(self) -> tuple[float, float]:
        """Return the one-sided 95 % bounds of the share of wrong images; 0 and 1 without any."""
        if not self.wrong.size:
            return 0.0, 1.0
        codes, sizes = group_sums.group(self.groups)
        wrong = group_sums.sums(self.wrong[None], codes, sizes=sizes)
        low, high = bootstrap.rate_bounds(wrong, sizes, tail=0.05)
        return float(low[0]), float(high[0])
