"""Report an operating point in sentences for a quality manager.

Input: an OperatingPoint without sentences. Output: plain and exact sentences. Computes no bound.
"""

from __future__ import annotations

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
        *_test_result(point),
        *_kinds(point),
        *_evidence(point, max_escape),
        _assumption(point, max_escape),
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
        at_least = f"at least {_per_cent(low, ROUND_FLOOR)} and " if low else ""
        texts.append(
            f"Test: {k:,} of {n:,} {event} ({_per_cent(k / n)}). The true {rate} is {at_least}"
            f"at most {_per_cent(upper, ROUND_CEILING)} "
            f"(exact one-sided 95 % bound{'s' if low else ''})."
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
    )
    if max_escape is None:
        return [best] if n_defects else []
    required = f"{number(100 * max_escape)} %"
    if point.n_defects_needed is None:
        needed = "No number of test defects can show 0 %."
    else:
        needed = (
            f"{point.n_defects_needed:,} test defects, all detected, are needed to show {required}."
        )
    if not n_defects:
        return [needed]
    if point.escape_upper <= max_escape:
        return [f"This shows the required escape rate of at most {required}."]
    if point.resolution > max_escape:
        return [f"{best} {needed}"]
    return [f"This does not show the required escape rate of at most {required}. {best}"]


def _assumption(point: OperatingPoint, max_escape: float | None) -> str:
    """Say what the bounds assume, and the bound by photograph if the photographs are known."""
    valid = "These bounds are valid only if every test image shows a different casting"
    groups, upper = point.n_groups_defective, point.group_escape_upper
    if not groups or upper is None:
        return f"{valid}; copies of one photograph do not."
    n_defects, missed = point.test.tp + point.test.fn, min(point.test.fn, groups)
    text = (
        f"{valid}, but the {n_defects:,} defects come from {groups:,} photographs. Counted by "
        f"photograph, with {'at most ' if missed else ''}{missed:,} of {groups:,} missed, the "
        f"escape rate is at most {_per_cent(upper, ROUND_CEILING)}."
    )
    if max_escape is not None and point.escape_upper <= max_escape < upper:
        text += f" This does not show {number(100 * max_escape)} %."
    return text


def _per_cent(share: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return a share in per cent with two decimals, or two digits if smaller.

    A bound is rounded outwards, so that it is never reported better than it is.
    """
    value = Decimal(share) * 100
    digits = max(2, 1 - value.adjusted()) if value else 2
    text = f"{value.quantize(Decimal(1).scaleb(-digits), rounding):f}"
    return f"{text.rstrip('0').rstrip('.')} %"
