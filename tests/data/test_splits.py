from __future__ import annotations

import numpy as np
import pytest

from casting_tune.data.splits import Folds, SplitSettings, grouped, split
from casting_tune.errors import UsageError

LABELS = np.array([1] * 60 + [0] * 40 + [1] * 12 + [0] * 8, dtype=np.uint8)
SPLITS = np.array(["train"] * 100 + ["test"] * 20)
ALONE = np.arange(120)


def _same(one: Folds, other: Folds) -> bool:
    return all(
        np.array_equal(getattr(one, side), getattr(other, side))
        for side in ("train", "validation", "test")
    )


def test_the_three_sides_are_disjoint_and_hold_every_row() -> None:
    folds = split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=0))
    rows = np.concatenate([folds.train, folds.validation, folds.test])
    assert sorted(rows.tolist()) == list(range(120))
    assert folds.test.tolist() == list(range(100, 120))


def test_validation_takes_its_share_of_each_class() -> None:
    folds = split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=0))
    assert np.bincount(LABELS[folds.validation]).tolist() == [8, 12]
    assert np.bincount(LABELS[folds.train]).tolist() == [32, 48]


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    first = split(
        LABELS,
        SPLITS,
        ALONE,
        SplitSettings(validation_share=0.2, seed=7, train_images=50, test_images=10),
    )
    again = split(
        LABELS,
        SPLITS,
        ALONE,
        SplitSettings(validation_share=0.2, seed=7, train_images=50, test_images=10),
    )
    other = split(
        LABELS,
        SPLITS,
        ALONE,
        SplitSettings(validation_share=0.2, seed=8, train_images=50, test_images=10),
    )
    assert _same(first, again)
    assert not np.array_equal(first.validation, other.validation)
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_one_image_stay_on_one_side(seed: int) -> None:
    groups = np.array([f"photo{i // 4}" for i in range(120)])
    folds = split(LABELS, SPLITS, groups, SplitSettings(validation_share=0.2, seed=seed))
    assert not set(groups[folds.train]) & set(groups[folds.validation])
    assert np.bincount(LABELS[folds.validation]).tolist() == [
        8,
        12,
    ]  # groups of 4 divide both targets


def test_a_group_that_holds_both_labels_is_not_torn() -> None:
    groups = ALONE.copy()
    groups[55:65] = 999  # five defective and five good images
    for seed in range(10):
        folds = split(LABELS, SPLITS, groups, SplitSettings(validation_share=0.3, seed=seed))
        sides = [int((groups[rows] == 999).sum()) for rows in (folds.train, folds.validation)]
        assert sorted(sides) == [0, 10]


def test_large_groups_leave_validation_near_its_share() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array([1, 0], dtype=np.uint8), [1200, 800])
    groups = np.sort(rng.integers(0, 40, size=2000))  # about 50 images a photograph
    splits = np.array(["train"] * 2000)
    splits[::10] = "test"
    for seed in range(5):
        n = len(
            split(labels, splits, groups, SplitSettings(validation_share=0.2, seed=seed)).validation
        )
        assert 310 <= n <= 410  # 360, give or take one group


def test_a_subset_is_stratified_and_no_larger_than_requested() -> None:
    folds = split(
        LABELS,
        SPLITS,
        ALONE,
        SplitSettings(validation_share=0.2, seed=0, train_images=50, test_images=10),
    )
    learned = np.concatenate([folds.train, folds.validation])
    assert np.bincount(LABELS[learned]).tolist() == [20, 30]
    assert np.bincount(LABELS[folds.test]).tolist() == [4, 6]
    assert set(SPLITS[learned]) == {"train"}
    assert set(SPLITS[folds.test]) == {"test"}


def test_a_subset_larger_than_the_set_is_the_set() -> None:
    everything = split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=0))
    assert _same(
        everything,
        split(
            LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=0, train_images=10**6)
        ),
    )


def test_fewer_test_images_change_no_training_row() -> None:
    everything = split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=3))
    fewer = split(
        LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=3, test_images=10)
    )
    assert np.array_equal(everything.train, fewer.train)
    assert np.array_equal(everything.validation, fewer.validation)


def test_a_smaller_subset_lies_inside_a_larger_one() -> None:
    def learned(n: int) -> set[int]:
        folds = split(
            LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=3, train_images=n)
        )
        return {*folds.train.tolist(), *folds.validation.tolist()}

    assert learned(20) < learned(40) < learned(80)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="validation_share"):
        split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=share, seed=0))


@pytest.mark.parametrize("name", ["seed", "train_images", "test_images"])
def test_a_negative_number_is_refused(name: str) -> None:
    numbers = {"seed": 0, "train_images": 0, "test_images": 0, name: -1}
    with pytest.raises(UsageError, match=f"{name} must be 0 or more; got -1"):
        split(LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, **numbers))


def test_one_training_image_of_a_class_is_refused() -> None:
    labels = np.array([1, 1, 1, 0, 1, 0], dtype=np.uint8)
    splits = np.array(["train"] * 4 + ["test"] * 2)
    with pytest.raises(UsageError, match=r"train side requires at least 2 good .* got 1"):
        split(labels, splits, np.arange(6), SplitSettings(validation_share=0.5, seed=0))


def test_a_test_side_of_one_class_is_accepted_and_an_empty_one_refused() -> None:
    settings = SplitSettings(validation_share=0.2, seed=0)
    folds = split(LABELS[:112], SPLITS[:112], ALONE[:112], settings)
    assert LABELS[folds.test].tolist() == [1] * 12
    with pytest.raises(UsageError, match="test side requires at least 1 image; got 0"):
        split(LABELS[:100], SPLITS[:100], ALONE[:100], settings)


def test_a_class_of_a_single_group_is_refused() -> None:
    groups = ALONE.copy()
    groups[60:100] = 999  # all good training images are one photograph
    with pytest.raises(UsageError, match="smaller groups"):
        split(LABELS, SPLITS, groups, SplitSettings(validation_share=0.2, seed=0))


KINDS = np.array(
    ["scratch"] * 30 + ["dent"] * 20 + ["hole"] * 10 + [""] * 40 + ["dent"] * 12 + [""] * 8
)


@pytest.mark.parametrize("seed", range(3))
def test_validation_takes_its_share_of_each_kind(seed: int) -> None:
    folds = split(
        LABELS, SPLITS, ALONE, SplitSettings(validation_share=0.2, seed=seed), kinds=KINDS
    )
    kinds, counts = np.unique(KINDS[folds.validation], return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "": 8, "scratch": 6, "dent": 4, "hole": 2,
    }  # fmt: skip


def test_a_subset_has_the_kinds_in_proportion_and_lies_inside_a_larger_one() -> None:
    def learned(n: int) -> set[int]:
        settings = SplitSettings(validation_share=0.2, seed=3, train_images=n)
        folds = split(LABELS, SPLITS, ALONE, settings, kinds=KINDS)
        return {*folds.train.tolist(), *folds.validation.tolist()}

    kinds, counts = np.unique(KINDS[sorted(learned(50))], return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "": 20, "scratch": 15, "dent": 10, "hole": 5,
    }  # fmt: skip
    assert learned(20) < learned(50) < learned(80)


def test_one_defect_in_a_thousand_stays_on_every_side() -> None:
    labels = np.zeros(6000, dtype=np.uint8)
    labels[::1000] = 1
    splits = np.array(["train"] * 4000 + ["test"] * 2000)
    for subset in (0, 100):
        settings = SplitSettings(
            validation_share=0.2, seed=0, train_images=subset, test_images=subset
        )
        folds = split(labels, splits, np.arange(6000), settings)
        assert all(labels[rows].any() for rows in (folds.train, folds.validation, folds.test))


def test_an_own_validation_split_is_kept() -> None:
    splits = SPLITS.astype("U10")
    splits[50:70] = "validation"
    settings = SplitSettings(validation_share=0.5, seed=0, draw_validation=False)
    folds = split(LABELS, splits, ALONE, settings)
    assert folds.validation.tolist() == list(range(50, 70))
    assert folds.test.tolist() == list(range(100, 120))
    assert len(folds.train) == 80


def test_folds_hold_every_kind_in_proportion() -> None:
    kinds = np.array(["a"] * 30 + ["b"] * 10 + ["rare"] * 2 + [""] * 58)
    labels = (kinds != "").astype(np.uint8)
    for fold in range(5):
        test = grouped(labels, np.arange(100), n_folds=5, fold=fold, seed=0, kinds=kinds) == "test"
        assert [int((kinds[test] == kind).sum()) for kind in "ab"] in ([6, 2], [7, 2], [5, 2])
