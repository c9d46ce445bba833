"""The operating point: a threshold, the rule that chose it, and its exact error bounds.

Input: labels and scores of the validation and test images of one training. Output: an
OperatingPoint. The threshold comes from the validation images only: test images change the report,
never the choice. Needs no store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune import metrics
from casting_tune.analysis import kind_rates, statistics
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

    Rates are shares in 0..1. Bounds are exact one-sided 95 % bounds (Clopper & Pearson), so low and
    upper together are a 90 % interval.

    Attributes:
        threshold: defective when score >= threshold.
        rule: the rule in words.
        validation, test: counts of the decisions, the defect as the positive class.
        escape_rate: share of the test defects that are passed; None without a test defect.
        escape_low, escape_upper: its bounds, valid if every image shows a different casting.
        overkill_rate: share of the good test castings that are rejected; None without one.
        overkill_low, overkill_upper: its bounds, likewise.
        resolution: the best upper bound of this test set: with all its defects detected.
        n_defects_needed: test defects, all detected, that show the required escape rate; None if
            no rate or 0 is required.
        n_groups_defective: different photographs among the test defects; None if unknown.
        group_escape_upper: `escape_upper` counted by photograph, each miss in a different one.
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
    group_escape_upper: float | None
    sentences: tuple[str, ...]
    validation_kinds: tuple[KindRate, ...] = ()
    test_kinds: tuple[KindRate, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """Labels and scores of some images.

    Attributes:
        y_true: [n] 1 is defective, 0 is ok.
        score: [n] P(defective) in 0..1.
        n_groups_defective: different photographs among the defects; None if unknown.
        kinds: [n] name of the kind of defect, "" for good images; None if unknown.
    """

    y_true: ArrayLike
    score: ArrayLike
    n_groups_defective: int | None = None
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
    at, counts = min(kept, key=lambda choice: (choice[1].fp, choice[1].fn))
    rule = f"escape rate at most {number(100 * max_escape)} % on validation"
    return _report(at, counts, (validation, test), rule=rule, max_escape=max_escape)


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
    at, counts = min(
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
    return _report(at, counts, (validation, test), rule=rule)


def fixed(validation: Scored, test: Scored, *, threshold: float) -> OperatingPoint:
    """Report a given threshold, such as the 0.5 of the tables.

    Raises:
        UsageError: a score is not a probability.
    """
    counts = metrics.counts(*_checked(validation, name="validation"), threshold=threshold)
    rule = f"{FIXED} {number(threshold)}"
    return _report(threshold, counts, (validation, test), rule=rule)


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
    validation: Counts,
    sets: tuple[Scored, Scored],
    *,
    rule: str,
    max_escape: float | None = None,
) -> OperatingPoint:
    """Return the operating point of a threshold: its bounds on the test set and its sentences.

    Args:
        threshold: the choice.
        validation: counts of its decisions on validation.
        sets: the validation images and the test images.
        rule: the rule in words.
        max_escape: the required escape rate, None if the rule has none.
    """
    validation_set, test_set = sets
    test = metrics.counts(*_checked(test_set, name="test"), threshold=threshold)
    n_defects, n_goods, groups = test.tp + test.fn, test.fp + test.tn, test_set.n_groups_defective
    if groups is not None and not min(1, n_defects) <= groups <= n_defects:
        raise UsageError(
            f"{n_defects} defective test images cannot come from {groups} photographs."
        )
    upper = statistics.upper_bound
    point = OperatingPoint(
        threshold=threshold,
        rule=rule,
        validation=validation,
        test=test,
        escape_rate=metrics.METRICS["escape_rate"](test),
        escape_low=1 - upper(test.tp, n_defects),
        escape_upper=upper(test.fn, n_defects),
        overkill_rate=metrics.METRICS["overkill_rate"](test),
        overkill_low=1 - upper(test.tn, n_goods),
        overkill_upper=upper(test.fp, n_goods),
        resolution=upper(0, n_defects),
        n_defects_needed=statistics.defects_needed(max_escape) if max_escape else None,
        n_groups_defective=groups,
        group_escape_upper=None if groups is None else upper(min(test.fn, groups), groups),
        sentences=(),
        validation_kinds=validation_set.rates(threshold),
        test_kinds=test_set.rates(threshold),
    )
    return replace(point, sentences=sentences(point, max_escape=max_escape))
