from __future__ import annotations

import itertools
from typing import Any

import pytest

from casting_tune import contrasts
from casting_tune.augment import TOGGLES
from casting_tune.store import Store

SETTINGS = {
    "weights": "none", "weights_id": "none", "dense": 0, "dropout": 0.0, "image_px": 64, "in_channels": 1, "epochs": 1,
    "split_id": "official", "n_folds": 5, "fold": 0, "split_seed": 0, "train_images": 0, "test_images": 0,
    "base_lr": 0.1, "attempt": 1, "status": "completed", "device": "cpu", "n_threads": 1, "n_at_once": 1, "n_test": 100,
}  # fmt: skip


@pytest.fixture
def factorial(store: Store) -> Store:
    """Two backbones x flip on and off x two batch sizes, with accuracies whose effects are known by hand."""
    asked, base = [], {"vgg16": 0.80, "resnet50": 0.90}
    for i, (backbone, flip, batch) in enumerate(itertools.product(base, (False, True), (4, 8))):
        accuracy = base[backbone] + (0.03 if flip else 0.0) + (0.01 if flip and batch == 8 else 0.0)
        cell = f"c{i}"
        toggles = {toggle: toggle == "flip" and flip for toggle in TOGGLES}
        row: dict[str, Any] = SETTINGS | toggles | {
            "cell_id": cell, "backbone": backbone, "batch_size": batch, "seed": 0, "test_accuracy": accuracy,
            "augmentation": "only flip" if flip else "default",
        }  # fmt: skip
        store.write("trials", "s", f"{cell}-1", [row])
        asked.append({"run_id": "r", "sweep": "s", "cell_id": cell, "kind": "cell", "position": i, "row": cell})
    store.write("cells", "s", "r", asked)
    return store


def test_a_toggles_effect_is_the_mean_over_cells_that_differ_in_nothing_else(factorial: Store) -> None:
    frame = contrasts.effects(factorial, "s").frame.set_index("level")
    flip = frame.loc["flip"]
    assert flip["effect"] == pytest.approx((0.03 + 0.04 + 0.03 + 0.04) / 4)
    assert flip["n"] == 4
    # t interval by hand: mean .035, sd .0057735, t(.975, 3) = 3.18245, half width .0091869
    assert (flip["low"], flip["high"]) == pytest.approx((0.035 - 0.0091869, 0.035 + 0.0091869), abs=1e-6)


def test_a_toggle_that_never_varies_has_no_effect(factorial: Store) -> None:
    assert "hue" not in set(contrasts.effects(factorial, "s").frame["level"])


def test_a_backbones_effect_is_against_the_mean_of_all_at_the_same_settings(factorial: Store) -> None:
    frame = contrasts.effects(factorial, "s").frame.set_index("level")
    assert frame.loc["resnet50", "effect"] == pytest.approx(0.05)
    assert frame.loc["vgg16", "effect"] == pytest.approx(-0.05)


def test_every_two_rows_are_compared_with_both_p_values(trained: Store) -> None:
    frame = contrasts.all_pairs(trained, "tiny").frame
    assert len(frame) == 6 * 5 // 2  # two rows and four baselines
    assert (frame["p_holm"] >= frame["p"]).all()
    assert ((frame["low"] <= frame["difference"]) & (frame["difference"] <= frame["high"])).all()
