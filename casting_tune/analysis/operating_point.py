"""The operating point: a threshold, the rule that chose it, and what a test set can promise of it.

In come labels and scores of the validation and test images of one training; out goes an
OperatingPoint with exact bounds and with sentences for a quality manager. The threshold comes from
validation alone and is then frozen: test images change the report, never the choice. Knows nothing
of stores, cells or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from casting_tune import metrics
from casting_tune.analysis import statistics
from casting_tune.errors import UsageError
from casting_tune.metrics import Counts

FEWEST_DEFECTS = 20
"""Validation defects below which no threshold is chosen: 0 misses of 20 already leave 13.9 % open, of 10 25.9 %."""

_NO_RULE = "chosen by no rule"
_REJECT_ALL = 0.0
_PASS_ALL = float(np.nextafter(np.float32(1), np.float32(2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold, the rule that chose it on validation, and what the test images say of it.

    Rates are shares in 0..1; a bound is the exact one-sided 95 % one (Clopper & Pearson), so low
    and upper together are a 90 % interval.

    Attributes:
        threshold: defective when score >= threshold.
        rule: what was asked, in words.
        validation, test: decisions on each, the defect as the positive class.
        escape_rate: share of the test defects that are passed; None without a test defect.
        escape_low, escape_upper: its bounds, if every image is a casting of its own.
        overkill_rate: share of the good test castings that are rejected; None without one.
        overkill_low, overkill_upper: its bounds, likewise.
        resolution: the upper bound that this test set shows at best: without a miss among its defects.
        n_defects_needed: test defects that, without a miss, show the asked escape rate; None if none or 0 is asked.
        n_groups_defective: distinct photographs among the test defects; None is unknown.
        group_escape_upper: `escape_upper` counted in photographs, each miss on one of its own as far as there are.
        sentences: the report, plain and exact.
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


def at_most_escape(
    validation_y: ArrayLike,
    validation_score: ArrayLike,
    test_y: ArrayLike,
    test_score: ArrayLike,
    *,
    max_escape: float,
    n_groups_defective: int | None = None,
) -> OperatingPoint:
    """Choose the least overkill among the thresholds that keep the escape rate on validation.

    Of equals in overkill the one with the fewest escapes, since an escape that spares no good
    casting buys nothing. That leaves one gap between two scores, and its middle is farthest from
    turning a validation image by rounding.

    Args:
        validation_y: [n] 1 is defective, 0 is ok.
        validation_score: [n] P(defective) in 0..1.
        test_y, test_score: [m] of the test images; they have no part in the choice.
        max_escape: share of the validation defects that may be passed, in [0, 1).
        n_groups_defective: distinct photographs among the test defects, where known.

    Raises:
        UsageError: max_escape is out of range, a score is no probability, or validation holds too few castings.
    """
    if not 0 <= max_escape < 1:
        raise UsageError(
            f"The escape rate is a share from 0 to below 1, such as 0.005 for 0.5 %; got {max_escape}."
        )
    choices = _choices(validation_y, validation_score)
    # Not fn <= max_escape * n: 0.29 * 100 is 28.999999999999996.
    kept = [(at, found) for at, found in choices if found.fn / (found.tp + found.fn) <= max_escape]
    return _report(
        min(kept, key=lambda choice: (choice[1].fp, choice[1].fn)),
        (test_y, test_score),
        rule=f"escape rate at most {_number(100 * max_escape)} % on validation",
        max_escape=max_escape,
        n_groups_defective=n_groups_defective,
    )


def least_cost(
    validation_y: ArrayLike,
    validation_score: ArrayLike,
    test_y: ArrayLike,
    test_score: ArrayLike,
    *,
    cost_escape: float,
    cost_overkill: float,
    prevalence: float,
    n_groups_defective: int | None = None,
) -> OperatingPoint:
    """Choose the threshold of the least expected cost a casting on validation, and of equals that with fewest escapes.

    The cost is prevalence * cost_escape * escape rate + (1 - prevalence) * cost_overkill * overkill
    rate, compared in fractions of the numbers as they were written, so that equals are equal. Of
    equals the one with fewest escapes: the cost of a defect that has left the factory is the one
    that is guessed too low.

    Args:
        validation_y, validation_score, test_y, test_score, n_groups_defective: as in `at_most_escape`.
        cost_escape: of a defective casting that is passed, above 0, in any currency.
        cost_overkill: of a good casting that is rejected, above 0, in the same.
        prevalence: share of defective castings on the line, in (0, 1); that of the images does not matter.

    Raises:
        UsageError: a cost or the prevalence is out of range, a score is no probability, or validation is too small.
    """
    for name, cost in (("an escape", cost_escape), ("an overkill", cost_overkill)):
        if not 0 < cost < math.inf:
            raise UsageError(f"The cost of {name} must be above 0, and finite; got {cost}.")
    if not 0 < prevalence < 1:
        raise UsageError(
            f"The prevalence is the share of defects on the line, between 0 and 1; got {prevalence}."
        )
    choices = _choices(validation_y, validation_score)
    share, of_escape, of_overkill = (
        Fraction(repr(float(x))) for x in (prevalence, cost_escape, cost_overkill)
    )
    _, all_rejected = choices[0]
    an_escape = share * of_escape / all_rejected.tp
    an_overkill = (1 - share) * of_overkill / all_rejected.fp
    return _report(
        min(
            choices,
            key=lambda choice: (
                an_escape * choice[1].fn + an_overkill * choice[1].fp,
                choice[1].fn,
            ),
        ),
        (test_y, test_score),
        rule=f"least cost on validation: {_number(cost_escape)} an escape, {_number(cost_overkill)} an overkill, "
        f"prevalence {_number(prevalence)}",
        max_escape=None,
        n_groups_defective=n_groups_defective,
    )


def fixed(
    validation_y: ArrayLike,
    validation_score: ArrayLike,
    test_y: ArrayLike,
    test_score: ArrayLike,
    *,
    threshold: float,
    n_groups_defective: int | None = None,
) -> OperatingPoint:
    """Report a threshold that no rule chose, such as the 0.5 of the tables; the arguments are those of the rules.

    Raises:
        UsageError: a score is no probability.
    """
    return _report(
        (
            threshold,
            metrics.counts(
                *_checked(validation_y, validation_score, name="validation"), threshold=threshold
            ),
        ),
        (test_y, test_score),
        rule=f"{_number(threshold)}, {_NO_RULE}",
        max_escape=None,
        n_groups_defective=n_groups_defective,
    )


def _choices(y_true: ArrayLike, score: ArrayLike) -> list[tuple[float, Counts]]:
    """Return the thresholds that decide validation differently, ascending, if validation holds enough to choose by.

    One in the middle between every two neighbouring scores, and at the ends 0, which rejects every
    casting, and the number after 1, which passes every one: beyond its last score validation has
    nothing that could place them nearer.
    """
    y, scores = _checked(y_true, score, name="validation")
    defects, goods = np.sort(scores[y == 1]), np.sort(scores[y == 0])
    if len(defects) < FEWEST_DEFECTS:
        raise UsageError(
            f"A threshold takes at least {FEWEST_DEFECTS} defects in validation, and there are {len(defects)}. "
            "Train with more images or with a larger validation_share."
        )
    if not len(goods):
        raise UsageError(
            "A threshold takes good castings in validation, and there are none. Train with both classes."
        )
    values = np.unique(scores)
    middle = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    middle = np.where(
        middle > values[:-1], middle, values[1:]
    )  # neighbours in float32: the upper one is rejected
    thresholds = np.concatenate(([_REJECT_ALL], middle, [_PASS_ALL]), dtype=np.float32)
    passed = (np.searchsorted(side, thresholds).tolist() for side in (defects, goods))
    rows = zip(thresholds.tolist(), *passed, strict=True)
    return [
        (at, Counts(tp=len(defects) - fn, fp=len(goods) - tn, tn=tn, fn=fn)) for at, fn, tn in rows
    ]


def _checked(
    y_true: ArrayLike, score: ArrayLike, *, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    scores = np.asarray(score, dtype=np.float32)
    bad = int(np.count_nonzero(~((scores >= 0) & (scores <= 1))))  # NaN is neither
    if bad:
        raise UsageError(
            f"A score is a probability from 0 to 1, and {bad} of {scores.size} of {name} are not. Train the cell again."
        )
    metrics.counts(y_true, scores)  # shapes and labels
    return np.asarray(y_true, dtype=np.uint8), scores


def _report(
    choice: tuple[float, Counts],
    test_set: tuple[ArrayLike, ArrayLike],
    *,
    rule: str,
    max_escape: float | None,
    n_groups_defective: int | None,
) -> OperatingPoint:
    threshold, validation = choice
    test = metrics.counts(*_checked(*test_set, name="test"), threshold=threshold)
    n_defects, n_goods, groups = test.tp + test.fn, test.fp + test.tn, n_groups_defective
    if groups is not None and not min(1, n_defects) <= groups <= n_defects:
        raise UsageError(
            f"{n_defects} defective test images cannot come from {groups} photographs."
        )
    point = OperatingPoint(
        threshold=threshold,
        rule=rule,
        validation=validation,
        test=test,
        escape_rate=metrics.METRICS["escape_rate"](test),
        escape_low=1 - statistics.upper_bound(test.tp, n_defects),
        escape_upper=statistics.upper_bound(test.fn, n_defects),
        overkill_rate=metrics.METRICS["overkill_rate"](test),
        overkill_low=1 - statistics.upper_bound(test.tn, n_goods),
        overkill_upper=statistics.upper_bound(test.fp, n_goods),
        resolution=statistics.upper_bound(0, n_defects),
        n_defects_needed=statistics.defects_needed(max_escape) if max_escape else None,
        n_groups_defective=groups,
        group_escape_upper=None
        if groups is None
        else statistics.upper_bound(min(test.fn, groups), groups),
        sentences=(),
    )
    said = (
        *_chosen(point),
        *_found(point),
        *_promise(point, max_escape),
        *_independence(point, max_escape),
    )
    return replace(point, sentences=said)


def _chosen(point: OperatingPoint) -> list[str]:
    found = point.validation
    chose = "" if point.rule.endswith(_NO_RULE) else ", which chose it,"
    said = [
        f"Threshold {point.threshold:.6g}: a casting that scores as high or higher is rejected. Rule: {point.rule}.",
        f"On validation{chose} {found.fn:,} of {found.tp + found.fn:,} defects escaped and "
        f"{found.fp:,} of {found.fp + found.tn:,} good castings were rejected.",
    ]
    if point.threshold in (_REJECT_ALL, _PASS_ALL):
        extreme = "rejects" if point.threshold == _REJECT_ALL else "passes"
        said.append(
            f"This threshold {extreme} every casting: by this rule the scores are of no use."
        )
    return said


def _found(point: OperatingPoint) -> list[str]:
    test = point.test
    rates = (
        ("defects escaped", "escape rate", test.fn, test.tp + test.fn, point.escape_low, point.escape_upper),
        ("good castings were rejected", "overkill rate", test.fp, test.fp + test.tn, point.overkill_low,
         point.overkill_upper),
    )  # fmt: skip
    said = []
    for happened, rate, k, n, low, upper in rates:
        if n == 0:
            said.append(f"This test set says nothing of the {rate}: it holds no such casting.")
            continue
        least = f"at least {_per_cent(low, ROUND_FLOOR)} and " if low else ""
        said.append(
            f"On test {k:,} of {n:,} {happened} ({_per_cent(k / n)}). The true {rate} is {least}at most "
            f"{_per_cent(upper, ROUND_CEILING)} (exact one-sided 95 % bound{'s' if low else ''})."
        )
    return said


def _promise(point: OperatingPoint, max_escape: float | None) -> list[str]:
    """Say what this test set can show at best, and whether it shows what was asked."""
    n_defects = point.test.tp + point.test.fn
    finest = f"{_per_cent(point.resolution, ROUND_CEILING)}: 0 misses of {n_defects:,} defects"
    if max_escape is None:
        return [f"This test set cannot show better than {finest}."] if n_defects else []
    asked = f"{_number(100 * max_escape)} %"
    if point.n_defects_needed is None:
        needed = "No number of defects can promise 0 %."
    else:
        needed = f"To promise {asked}, {point.n_defects_needed:,} defects without a miss would be needed."
    if not n_defects:
        return [needed]
    if point.escape_upper <= max_escape:
        return [f"That shows the asked escape rate of at most {asked}."]
    if point.resolution > max_escape:
        return [f"This test set cannot show better than {finest}. {needed}"]
    return [
        f"That does not show the asked escape rate of at most {asked}. This test set could have shown {finest}."
    ]


def _independence(point: OperatingPoint, max_escape: float | None) -> list[str]:
    """Say what the bounds take for granted, and the bound that does not, where the photographs are counted."""
    groups, upper = point.n_groups_defective, point.group_escape_upper
    if not groups or upper is None:
        return [
            "These bounds hold if every test image is a casting of its own; images of one photograph are not."
        ]
    n_defects, missed = point.test.tp + point.test.fn, min(point.test.fn, groups)
    said = (
        f"These bounds hold if every test image is a casting of its own, but the {n_defects:,} defects come from "
        f"{groups:,} photographs: counted so, with {'at most ' if missed else ''}{missed:,} of {groups:,} missed, "
        f"the escape rate is at most {_per_cent(upper, ROUND_CEILING)}."
    )
    if max_escape is not None and point.escape_upper <= max_escape < upper:
        said += f" Counted in photographs, {_number(100 * max_escape)} % is not shown."
    return [said]


def _number(value: float) -> str:
    """Return a number as it was written: 100 * 0.07 is 7, not 7.000000000000001."""
    return f"{value:.10g}"


def _per_cent(share: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return a share in per cent with two decimals, or two digits where it is smaller; a bound is rounded outwards."""
    value = Decimal(share) * 100
    digits = max(2, 1 - value.adjusted()) if value else 2
    return (
        f"{value.quantize(Decimal(1).scaleb(-digits), rounding):f}".rstrip("0").rstrip(".") + " %"
    )
