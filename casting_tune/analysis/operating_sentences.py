"""Report an operating point in sentences for a quality manager.

Input: an OperatingPoint without sentences. Output: plain and exact sentences. Computes no bound.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

from casting_tune.analysis import kind_rates

if TYPE_CHECKING:
    from casting_tune.analysis.operating_point import OperatingPoint

FIXED = "fixed at"
"""The start of the rule of a threshold that was given, not chosen on validation."""


def sentences(point: OperatingPoint, *, max_escape: float | None) -> tuple[str, ...]:
    """Return the report of a point: choice, test result, kinds, what it shows, assumption.

    Args:
        point: the operating point.
        max_escape: the required escape rate, None if the rule has none.
    """
    return (
        *_choice(point),
        *_promise(point, max_escape),
        *_test_result(point),
        *_kinds(point),
        *_evidence(point, max_escape),
        _assumption(point),
    )


def number(value: float) -> str:
    """Return a number as a person wrote it: 100 * 0.07 is 7, not 7.000000000000001."""
    return f"{value:.10g}"


def _choice(point: OperatingPoint) -> list[str]:
    counts = point.validation
    used = "" if point.rule.startswith(FIXED) else " (used to choose the threshold)"
    texts = [
        f"Threshold {point.threshold:.6g}: a casting with this score or a higher one is rejected. "
        f"Rule: {point.rule}.",
        f"Validation{used}: {counts.fn:,} of {counts.tp + counts.fn:,} defects escaped and "
        f"{counts.fp:,} of {counts.fp + counts.tn:,} good castings were rejected.",
    ]
    if point.threshold == 0 or point.threshold > 1:
        action = "rejects" if point.threshold == 0 else "passes"
        texts.append(f"This threshold {action} every casting: this rule cannot use these scores.")
    return texts


def _promise(point: OperatingPoint, max_escape: float | None) -> list[str]:
    """Say what the validation images can promise for new castings, and whether they are leaked."""
    if point.rule.startswith(FIXED):
        return []
    counts, texts = point.validation, []
    if point.n_validation_leaked:
        n = counts.tp + counts.fp + counts.tn + counts.fn
        texts.append(
            f"{point.n_validation_leaked:,} of the {n:,} validation images show photographs that "
            "are also in training: their scores are too good, so expect more escapes and more "
            "overkill on new castings."
        )
    defective, good = point.n_validation_groups or (counts.tp + counts.fn, counts.fp + counts.tn)
    noun = "images" if point.n_validation_groups is None else "photographs"
    rates = (
        ("an escape rate", point.promised_escape),
        ("an overkill rate", point.promised_overkill),
    )
    parts = [
        f"no bound of {rate[3:]} (too few {noun})"
        if math.isnan(bound)
        else f"{rate} of at most {_per_cent(bound, ROUND_CEILING)}"
        for rate, bound in rates
    ]
    text = (
        f"The {defective:,} {noun} of defects and {good:,} of good castings in validation support "
        f"{' and '.join(parts)} for new castings."
    )
    if max_escape is not None and not point.promised_escape <= max_escape:
        text += f" They cannot promise {number(100 * max_escape)} %."
    return [*texts, text]


def _test_result(point: OperatingPoint) -> list[str]:
    test = point.test
    rates = (
        ("defects escaped", "defective castings", "escape rate", test.fn, test.tp + test.fn,
         point.escape_low, point.escape_upper),
        ("good castings were rejected", "good castings", "overkill rate", test.fp,
         test.fp + test.tn, point.overkill_low, point.overkill_upper),
    )  # fmt: skip
    texts = []
    for event, castings, rate, k, n, low, upper in rates:
        if n == 0:
            texts.append(f"The test set has no {castings}, so the {rate} is unknown.")
            continue
        if math.isnan(upper):
            texts.append(
                f"Test: {k:,} of {n:,} {event} ({_per_cent(k / n)}). They show too few photographs "
                f"for a bound of the {rate}."
            )
            continue
        at_least = f"at least {_per_cent(low, ROUND_FLOOR)} and " if low else ""
        texts.append(
            f"Test: {k:,} of {n:,} {event} ({_per_cent(k / n)}). The true {rate} is {at_least}"
            f"at most {_per_cent(upper, ROUND_CEILING)} "
            f"({'' if point.n_groups_defective else 'exact '}one-sided 95 % "
            f"bound{'s' if low else ''})."
        )
    return texts


def _kinds(point: OperatingPoint) -> list[str]:
    """Say which kinds of defects escape, if there are several."""
    sides = (("test images", point.test_kinds), ("validation images", point.validation_kinds))
    return [kind_rates.sentence(rates, images=images) for images, rates in sides if len(rates) > 1]


def _evidence(point: OperatingPoint, max_escape: float | None) -> list[str]:
    """Say what this test set can show at best, and whether it shows the required escape rate."""
    n_defects = point.test.tp + point.test.fn
    best = (
        "The best bound that this test set can show is "
        f"{_per_cent(point.resolution, ROUND_CEILING)} (0 of {n_defects:,} defects missed)."
        if not math.isnan(point.resolution)
        else "This test set shows too few photographs of defects for any bound."
    )
    if max_escape is None:
        return [best] if n_defects else []
    required = f"{number(100 * max_escape)} %"
    of_castings = " of different castings" if point.n_groups_defective else ""
    if point.n_defects_needed is None:
        needed = "No number of test defects can show 0 %."
    else:
        needed = (
            f"{point.n_defects_needed:,} test defects{of_castings}, all detected, are needed to "
            f"show {required}."
        )
    if not n_defects:
        return [needed]
    if point.escape_upper <= max_escape:
        return [f"This shows the required escape rate of at most {required}."]
    if not point.resolution <= max_escape:
        return [f"{best} {needed}"]
    return [f"This does not show the required escape rate of at most {required}. {best}"]


def _assumption(point: OperatingPoint) -> str:
    """Say what the bounds count and assume."""
    if not point.n_groups_defective:
        return (
            "These bounds are valid only if every test image shows a different casting; copies of "
            "one photograph do not."
        )
    return (
        f"These bounds count {point.n_groups_defective:,} photographs of defects and "
        f"{point.n_groups_good or 0:,} of good castings, not images. They are valid for new "
        "castings like these, if at most half of the other images of a photograph are wrong when "
        "one is."
    )


def _per_cent(share: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return a share in per cent with two decimals, or two digits if smaller.

    A bound is rounded outwards, so that it is never reported better than it is.
    """
    value = Decimal(share) * 100
    digits = max(2, 1 - value.adjusted()) if value else 2
    text = f"{value.quantize(Decimal(1).scaleb(-digits), rounding):f}"
    return f"{text.rstrip('0').rstrip('.')} %"
