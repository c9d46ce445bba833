"""Thresholds known by hand, the exact bounds of the study's test set, and invalid input."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from casting_tune import metrics
from casting_tune.analysis.operating_point import OperatingPoint, Scored, at_most_escape, least_cost
from casting_tune.errors import UsageError
from casting_tune.metrics import Counts

COSTS = {"cost_escape": 100, "cost_overkill": 1, "prevalence": 0.02}


def scored(defects: dict[float, int], goods: dict[float, int]) -> Scored:
    """Return so many defects and so many good castings at each score."""
    y, score = [], []
    for label, side in ((1, defects), (0, goods)):
        for value, n in side.items():
            y += [label] * n
            score += [value] * n
    return Scored(np.array(y), np.array(score))


APART = scored({0.8: 20}, {0.2: 10})


def test_between_classes_that_stand_apart_the_threshold_is_the_middle_of_the_gap():
    for point in (
        at_most_escape(APART, APART, max_escape=0),
        least_cost(APART, APART, **COSTS),
    ):
        assert point.threshold == pytest.approx(0.5, abs=1e-7)
        assert point.validation == Counts(tp=20, fp=0, tn=10, fn=0)


@pytest.mark.parametrize(
    ("max_escape", "threshold", "fn", "fp"),
    [
        # 19 defects at 0.9 and one at 0.3; good castings at 0.1 (5), 0.4 (4) and 0.6 (1).
        (0.0, 0.2, 0, 5),
        (0.049, 0.2, 0, 5),  # one miss of 20 is 5 %
        (0.05, 0.75, 1, 0),
        (0.9, 0.75, 1, 0),  # an escape that spares no good casting buys nothing
    ],
)
def test_the_least_overkill_is_taken_among_the_thresholds_that_keep_the_escape_rate(
    max_escape, threshold, fn, fp
):
    validation = scored({0.9: 19, 0.3: 1}, {0.1: 5, 0.4: 4, 0.6: 1})
    point = at_most_escape(validation, APART, max_escape=max_escape)
    assert point.threshold == pytest.approx(threshold, abs=1e-7)
    assert (point.validation.fn, point.validation.fp) == (fn, fp)


def test_29_misses_of_100_keep_an_escape_rate_of_029_despite_rounding():
    assert 0.29 * 100 < 29
    validation = scored({0.9: 71, 0.3: 29}, {0.4: 10})
    assert at_most_escape(validation, APART, max_escape=0.29).validation.fn == 29
    assert at_most_escape(validation, APART, max_escape=0.28999).validation.fn == 0


@pytest.mark.parametrize(
    ("cost_escape", "prevalence", "fn", "fp"),
    [
        # One of 20 defects at 0.3, one of 10 good castings at 0.4: an escape weighs prevalence *
        # cost / 20, an overkill (1 - prevalence) / 10.
        (3, 0.5, 0, 1),  # 0.075 > 0.05
        (1, 0.5, 1, 0),  # 0.025 < 0.05
        (2, 0.5, 0, 1),  # equal: the fewest escapes
        (
            98,
            0.02,
            0,
            1,
        ),  # 0.098 = 0.098, though in floating point 0.02 * 98 / 20 and 0.98 / 10 need not be
        (97, 0.02, 1, 0),
    ],
)
def test_the_least_cost_weighs_rates_by_the_prevalence_of_the_line(cost_escape, prevalence, fn, fp):
    validation = scored({0.9: 19, 0.3: 1}, {0.1: 9, 0.4: 1})
    point = least_cost(
        validation, APART, cost_escape=cost_escape, cost_overkill=1, prevalence=prevalence
    )
    assert (point.validation.fn, point.validation.fp) == (fn, fp)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_at_all_costs_less_or_rejects_fewer_good_castings(seed):
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], [30, 25])
    score = np.clip(np.round(rng.normal(0.35 + 0.3 * y, 0.2), 1), 0, 1).astype(
        np.float32
    )  # many ties
    images = Scored(y, score)
    tried = [metrics.counts(y, score, threshold=t) for t in np.arange(-0.05, 1.2, 0.1)]
    escape, overkill = [c.fn / 30 for c in tried], [c.fp / 25 for c in tried]
    cheapest = least_cost(images, images, cost_escape=5, cost_overkill=2, prevalence=0.3).test
    cost = 0.3 * 5 * cheapest.fn / 30 + 0.7 * 2 * cheapest.fp / 25
    assert cost == pytest.approx(
        min(1.5 * e + 1.4 * o for e, o in zip(escape, overkill, strict=True)), abs=1e-12
    )
    for max_escape in (0, 0.1, 0.5):
        found = at_most_escape(images, images, max_escape=max_escape).test
        assert found.fn / 30 <= max_escape
        assert found.fp / 25 == min(
            o for e, o in zip(escape, overkill, strict=True) if e <= max_escape
        )


def test_a_gap_without_a_number_inside_still_parts_its_two_sides():
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    validation = Scored(np.repeat([1, 0], [20, 20]), np.repeat([high, low], [20, 20]))
    point = at_most_escape(validation, validation, max_escape=0)
    assert point.validation == point.test == Counts(tp=20, fp=0, tn=20, fn=0)


def test_useless_scores_reject_or_pass_every_casting_and_the_report_says_so():
    same = scored({0.5: 20}, {0.5: 20})
    lower = scored({0.1: 3}, {0.0: 3})
    point = at_most_escape(same, lower, max_escape=0)
    assert point.threshold == 0
    assert point.test == Counts(tp=3, fp=3, tn=0, fn=0)
    assert "rejects every casting" in " ".join(point.sentences)
    point = least_cost(
        same, scored({1.0: 3}, {1.0: 3}), cost_escape=1, cost_overkill=1, prevalence=0.1
    )
    assert point.test == Counts(tp=0, fp=0, tn=3, fn=3)
    assert "passes every casting" in " ".join(point.sentences)


def test_the_test_images_have_no_part_in_the_choice():
    points = [
        at_most_escape(APART, scored(defects, goods), max_escape=0.1)
        for defects, goods in product(({0.1: 50}, {0.9: 1}, {}), ({0.95: 7}, {}))
    ]
    assert len({(point.threshold, point.rule, point.validation) for point in points}) == 1
    assert len({point.test for point in points}) == len(points)


def study(
    misses: int = 0, *, max_escape: float = 0.001, n_photographs: int | None = None
) -> OperatingPoint:
    """Return the point of a test set of 453 defects, some missed, and 262 good castings.

    The photographs of the defects have the same size but for one; good castings have 40.
    """
    test = scored({0.9: 453 - misses, 0.1: misses}, {0.1: 262})
    if n_photographs is not None:
        groups = np.r_[np.arange(453) % n_photographs, 1000 + np.arange(262) % 40]
        test = replace(test, groups=groups)
    return at_most_escape(APART, test, max_escape=max_escape)


def test_0_misses_of_453_show_066_per_cent_and_01_per_cent_takes_2995_defects():
    point = study()
    assert point.escape_upper == point.resolution == pytest.approx(1 - 0.05 ** (1 / 453), rel=1e-12)
    assert point.n_defects_needed == math.ceil(math.log(0.05) / math.log(0.999)) == 2995
    assert (
        "The best bound that this test set can show is 0.66 % (0 of 453 defects missed). "
        "2,995 test defects, all detected, are needed to show 0.1 %."
    ) in point.sentences


def test_bounds_are_one_sided_and_exact():
    # The bounds solve P(X <= 1) = 0.05 and P(X >= 1) = 0.05 for X ~ Binomial(453, bound).
    point = study(1)
    p = point.escape_upper
    assert (1 - p) ** 453 + 453 * p * (1 - p) ** 452 == pytest.approx(0.05, rel=1e-9)
    assert point.escape_low == pytest.approx(1 - 0.95 ** (1 / 453), rel=1e-9)
    assert point.escape_rate == 1 / 453
    assert (point.overkill_rate, point.overkill_low) == (0, 0)
    assert point.overkill_upper == pytest.approx(1 - 0.05 ** (1 / 262), rel=1e-12)


def test_a_bound_is_never_written_better_than_it_is():
    text = " ".join(study(1).sentences)
    # By hand, from the equations above: 0.0113 % and 1.0429 %.
    assert "1 of 453 defects escaped (0.22 %)" in text
    assert "at least 0.011 % and at most 1.05 %" in text


def test_an_escape_rate_is_reported_as_shown_only_if_the_test_set_shows_it():
    assert (
        "This shows the required escape rate of at most 0.7 %." in study(max_escape=0.007).sentences
    )
    missed = " ".join(study(1, max_escape=0.007).sentences)
    assert "This does not show the required escape rate of at most 0.7 %" in missed
    assert "can show is 0.66 %" in missed
    assert "No number of test defects can show 0 %." in " ".join(study(max_escape=0).sentences)
    assert study(max_escape=0).n_defects_needed is None


def test_453_images_of_74_photographs_show_less_than_453_castings_and_more_than_74():
    point = study(max_escape=0.01, n_photographs=74)
    assert (point.n_groups_defective, point.n_groups_good) == (74, 40)
    assert 1 - 0.05 ** (1 / 453) < point.escape_upper < 1 - 0.05 ** (1 / 74)
    assert point.escape_upper == point.resolution
    # half of the images of a missed photograph: (1 + 5.12 / 2) / 6.12 of the bound of 74 castings
    assert point.escape_upper == pytest.approx(0.58 * (1 - 0.05 ** (1 / 74)), rel=0.06)
    text = " ".join(point.sentences)
    assert "count 74 photographs of defects and 40 of good castings, not images" in text
    assert "298 test defects of different castings" not in text  # 299 show 1 %
    assert "299 test defects of different castings, all detected, are needed to show 1 %" in text
    assert study(2, n_photographs=74).escape_upper > point.escape_upper


def test_misses_in_two_of_23_photographs_do_not_make_the_bound_empty():
    point = study(2, n_photographs=23)
    assert point.escape_upper < 0.15


def test_five_photographs_of_defects_show_no_bound_and_the_report_says_so():
    point = study(n_photographs=5)
    assert math.isnan(point.escape_upper)
    text = " ".join(point.sentences)
    assert "They show too few photographs for a bound of the escape rate" in text
    assert "This test set shows too few photographs of defects for any bound." in text


def test_without_photographs_the_report_names_the_assumption_of_the_bounds():
    assert study().n_groups_defective is None
    assert "copies of one photograph do not" in study().sentences[-1]


def test_the_report_says_what_the_validation_images_can_promise():
    """20 defects of 20 castings without a miss: 1 - 0.05^(1/20) = 13.91 %; 10 good ones 25.89 %."""
    point = study(max_escape=0.005)
    assert point.promised_escape == pytest.approx(1 - 0.05 ** (1 / 20))
    assert (
        "The 20 images of defects and 10 of good castings in validation support an escape rate of "
        "at most 13.92 % and an overkill rate of at most 25.89 % for new castings. They cannot "
        "promise 0.5 %."
    ) in point.sentences
    grouped = replace(APART, groups=np.r_[np.arange(20), np.full(10, 99)])
    point = at_most_escape(grouped, APART, max_escape=0.5)
    assert point.n_validation_groups == (20, 1)
    assert any(
        "20 photographs of defects and 1 of good castings" in sentence
        and "no bound of overkill rate (too few photographs)" in sentence
        for sentence in point.sentences
    )


def test_a_leaked_validation_is_said_beside_the_threshold():
    point = at_most_escape(replace(APART, n_leaked=28), APART, max_escape=0.1)
    assert point.n_validation_leaked == 28
    assert any(
        "28 of the 30 validation images show photographs that are also in training" in sentence
        for sentence in point.sentences[:3]
    )
    assert not any("also in training" in sentence for sentence in study().sentences)


def test_a_test_set_without_defects_shows_nothing_of_escapes():
    point = at_most_escape(APART, scored({}, {0.1: 5}), max_escape=0.01)
    assert (point.escape_rate, point.escape_low, point.escape_upper, point.resolution) == (
        None,
        0,
        1,
        1,
    )
    assert (
        "The test set has no defective castings, so the escape rate is unknown." in point.sentences
    )


def test_below_20_validation_defects_no_threshold_is_chosen():
    few = scored({0.8: 19}, {0.2: 500})
    for choose in (
        lambda: at_most_escape(few, APART, max_escape=0.1),
        lambda: least_cost(few, APART, **COSTS),
    ):
        with pytest.raises(
            UsageError,
            match=r"at least 20 validation defects; got 19\. Train with more",
        ):
            choose()


def test_without_a_good_casting_in_validation_no_threshold_is_chosen():
    with pytest.raises(UsageError, match="got none"):
        at_most_escape(scored({0.8: 30}, {}), APART, max_escape=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_outside_0_to_1_is_an_error_in_validation_and_test(bad):
    broken = Scored(APART.y_true, np.where(np.arange(30) == 3, bad, APART.score))
    for validation, test, name in ((broken, APART, "validation"), (APART, broken, "test")):
        with pytest.raises(UsageError, match=f"1 of 30 {name} scores are not"):
            at_most_escape(validation, test, max_escape=0.1)


@pytest.mark.parametrize("max_escape", [-0.01, 1, 50, math.nan])
def test_an_escape_rate_outside_0_to_1_is_an_error(max_escape):
    with pytest.raises(UsageError, match=r"0\.005 for 0\.5 %"):
        at_most_escape(APART, APART, max_escape=max_escape)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("cost_escape", "cost_overkill"), (0, -1, math.inf, math.nan)),
        *product(("prevalence",), (0, 1, -0.1, 2, math.nan)),
    ],
)
def test_an_invalid_cost_or_prevalence_is_an_error(name, value):
    with pytest.raises(UsageError, match=f"got {value}"):
        least_cost(APART, APART, **COSTS | {name: value})


def test_the_rule_contains_the_numbers_as_given():
    assert (
        at_most_escape(APART, APART, max_escape=0.07).rule
        == "escape rate at most 7 % on validation"
    )
    rule = least_cost(APART, APART, **COSTS).rule
    assert rule == "least cost on validation: 100 per escape, 1 per overkill, prevalence 0.02"
