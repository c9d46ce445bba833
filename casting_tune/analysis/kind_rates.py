"""Escapes of each kind of defect among some images, with exact bounds.

Input: labels, scores and kinds of images. Output: KindRates, the worst kind first. Needs no store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np
from numpy.typing import ArrayLike

from casting_tune.analysis import statistics

LISTED = 6
"""Most kinds in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRate:
    """The escapes of one kind of defect.

    Attributes:
        kind: its name.
        n: images of the kind.
        escapes: those of them that pass.
        upper: exact one-sided 95 % upper bound of the escape rate (Clopper & Pearson), valid if
            every image shows a different casting.
    """

    kind: str
    n: int
    escapes: int
    upper: float

    def sentence(self) -> str:
        """Return for example "crack, 3 of 12 escaped (at most 53 %)"."""
        return f"{self.kind}, {self.escapes:,} of {self.n:,} escaped (at most {self.at_most})"

    @property
    def at_most(self) -> str:
        """The bound in per cent with two digits, rounded up so that it promises nothing more."""
        value = Decimal(self.upper) * 100
        rounded = value.quantize(Decimal(1).scaleb(value.adjusted() - 1), ROUND_CEILING)
        return f"{rounded:f} %"


def rate(kind: str, *, escapes: int, n: int) -> KindRate:
    """Return the rate of a kind with its bound; `n` must be at least 1."""
    return KindRate(kind=kind, n=n, escapes=escapes, upper=statistics.upper_bound(escapes, n))


def worst_first(rates: Iterable[KindRate]) -> list[KindRate]:
    """Return rates by escape rate, then by bound (fewer images: less is known), then by name."""
    return sorted(rates, key=lambda one: (-one.escapes / one.n, -one.upper, one.kind))


def of_images(
    y_true: ArrayLike, score: ArrayLike, kinds: ArrayLike | None, *, threshold: float
) -> tuple[KindRate, ...]:
    """Return the rate of each kind of defect at a threshold, the worst first.

    Args:
        y_true: [n] 1 is defective.
        score: [n] P(defective); a defect escapes if its score is below the threshold.
        kinds: [n] name of the kind of defect, "" for good images; None: unknown.
        threshold: on P(defective), compared in float32 as in `metrics.counts`.

    Returns:
        () if the kinds are unknown.
    """
    if kinds is None:
        return ()
    defective = np.asarray(y_true) == 1
    passed = (np.asarray(score, np.float32) < np.float32(threshold))[defective]
    names, place = np.unique(np.asarray(kinds, np.str_)[defective], return_inverse=True)
    n = np.bincount(place, minlength=len(names)).tolist()
    escapes = np.bincount(place[passed], minlength=len(names)).tolist()
    return tuple(
        worst_first(
            rate(str(name), escapes=k, n=of_kind)
            for name, k, of_kind in zip(names, escapes, n, strict=True)
        )
    )


def sentence(rates: Iterable[KindRate], *, images: str) -> str:
    """Return the escapes of all kinds in one sentence, the worst kinds if there are many."""
    rates = list(rates)
    more = f"; and {len(rates) - LISTED} more kinds" if len(rates) > LISTED else ""
    listed = "; ".join(one.sentence() for one in rates[:LISTED])
    return f"Kinds of defects, {images}, worst first: {listed}{more}."
