from __future__ import annotations

import itertools
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as peer

from casting_tune.analysis import effects
from casting_tune.config import TrialConfig
from casting_tune.store.store import Store
from casting_tune.toggles import MAGNITUDES, TOGGLES
from tests.test_config import OTHER

RUN = {"device": "cpu", "n_threads": 1, "n_at_once": 1, "n_test": 100}


DEFAULTS = {f.name: f.default for f in fields(TrialConfig) if f.name not in ("backbone", "toggles")}


def write(store: Store, cells: list[dict[str, Any]]) -> None:
    """Write completed cells that have the default settings where a cell does not say otherwise."""
    base = (
        DEFAULTS
        | dict.fromkeys(TOGGLES, False)
        | {"backbone": "vgg16", "attempt": 1, "status": "completed"}
    )
    requested = []
    for i, cell in enumerate(cells):
        store.write("trials", "s", f"c{i}-1", [base | RUN | cell | {"cell_id": f"c{i}"}])
        requested.append(
            {
                "run_id": "r",
                "sweep": "s",
                "cell_id": f"c{i}",
                "kind": "cell",
                "position": i,
                "row": f"c{i}",
            }
        )
    store.write("cells", "s", "r", requested)


@pytest.fixture
def factorial(store: Store) -> Store:
    """Two backbones x flip on and off x two batch sizes, with effects known by hand."""
    cells, base = list[dict[str, Any]](), {"vgg16": 0.80, "resnet50": 0.90}
    for backbone, flip, batch in itertools.product(base, (False, True), (4, 8)):
        accuracy = base[backbone] + (0.03 if flip else 0.0) + (0.01 if flip and batch == 8 else 0.0)
        settings = {
            "backbone": backbone,
            "batch_size": batch,
            "flip": flip,
            "test_accuracy": accuracy,
        }
        cells.append(settings | {"augmentation": "only flip" if flip else "default"})
    write(store, cells)
    return store


def test_a_toggles_effect_is_the_mean_over_cells_that_differ_in_nothing_else(
    factorial: Store,
) -> None:
    frame = effects.effects(factorial, "s").frame.set_index("level")
    flip = frame.loc["flip"]
    assert flip["effect"] == pytest.approx((0.03 + 0.04 + 0.03 + 0.04) / 4)
    assert flip["n"] == 4
    assert pd.isna(flip["low"])  # no predictions: nothing is known of other castings


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name not in MAGNITUDES])
def test_cells_that_differ_in_another_setting_are_no_pair(store: Store, name: str) -> None:
    changed = {name: "local-dir" if name == "weights" else OTHER[name]}
    on, off = {"flip": True, "test_accuracy": 0.9}, {"flip": False, "test_accuracy": 0.8}
    write(store, [on, off | changed])
    assert effects.effects(store, "s").frame.empty


@pytest.mark.parametrize("name", MAGNITUDES)
def test_a_pair_may_differ_in_the_strength_of_its_own_toggle_only(store: Store, name: str) -> None:
    toggle, changed = MAGNITUDES[name], {name: OTHER[name]}
    write(
        store,
        [{toggle: True, "test_accuracy": 0.9} | changed, {toggle: False, "test_accuracy": 0.8}],
    )
    assert effects.effects(store, "s").frame["n"].tolist() == [1]
    other = Store(store.root / "other")
    write(
        other,
        [{"flip": True, "test_accuracy": 0.9} | changed, {"flip": False, "test_accuracy": 0.8}],
    )
    assert effects.effects(other, "s").frame.empty


def test_a_precision_that_follows_from_the_backbone_is_a_part_of_it(store: Store) -> None:
    rows = {("vgg16", "bf16"): 0.8, ("resnet50", "fp32"): 0.9}
    write(
        store, [{"backbone": b, "precision": p, "test_accuracy": a} for (b, p), a in rows.items()]
    )
    frame = effects.effects(store, "s").frame.set_index("level")
    assert frame["effect"].to_dict() == pytest.approx({"vgg16": -0.05, "resnet50": 0.05})


def test_an_image_size_that_varies_within_a_backbone_is_matched(store: Store) -> None:
    rows = {
        ("vgg16", 64): 0.8,
        ("resnet50", 64): 0.9,
        ("resnet50", 96): 1.0,
    }  # vgg16 at 96 px has not completed
    write(
        store, [{"backbone": b, "image_px": px, "test_accuracy": a} for (b, px), a in rows.items()]
    )
    frame = effects.effects(store, "s").frame.set_index("level")
    assert frame["effect"].to_dict() == pytest.approx({"vgg16": -0.05, "resnet50": 0.05})
    assert frame["n"].to_list() == [1, 1]


def test_a_toggle_that_never_varies_has_no_effect(factorial: Store) -> None:
    assert "hue" not in set(effects.effects(factorial, "s").frame["level"])


def test_a_backbones_effect_is_against_the_mean_of_all_at_the_same_settings(
    factorial: Store,
) -> None:
    frame = effects.effects(factorial, "s").frame.set_index("level")
    assert frame.loc["resnet50", "effect"] == pytest.approx(0.05)
    assert frame.loc["vgg16", "effect"] == pytest.approx(-0.05)


def test_the_interval_of_an_effect_contains_castings_and_matched_cells(store: Store) -> None:
    """100 castings; without flip the first 10 are wrong, with it 2 (batch 4) and 4 (batch 8).

    By hand: differences .08 and .06, their variance .0002 / 2 with 1 degree of freedom; castings:
    influence 1 for 6 images, .5 for 2 and 0 for 92.
    """
    cells = [
        {"flip": flip, "batch_size": batch, "test_accuracy": 1 - n / 100}
        for flip, batch, n in ((False, 4, 10), (False, 8, 10), (True, 4, 2), (True, 8, 4))
    ]
    write(store, cells)
    for i, n_wrong in enumerate((10, 10, 2, 4)):
        images = [
            {"cell_id": f"c{i}", "attempt": 1, "split": "test", "image": k, "sha256": str(k),
             "y_true": 1, "score": 0.1 if k < n_wrong else 0.9, "leaked": False}
            for k in range(100)
        ]  # fmt: skip
        store.write("predictions", "s", f"c{i}-1", images)
    flip = effects.effects(store, "s").frame.set_index("level").loc["flip"]
    assert flip["effect"] == pytest.approx(0.07)
    gaps = np.r_[np.ones(6), np.full(2, 0.5), np.zeros(92)]
    castings = 100 * gaps.var(ddof=0) * 100 / 99
    unseen = (1 + (gaps**2).sum()) / (1 + 8)  # not above one image
    assert unseen < 1
    freedom = ((castings + 2) / 1e4 + 1e-4) ** 2 / (((castings + 2) / 1e4) ** 2 / 99 + 1e-4**2 / 1)
    # equal groups: the jackknife's factor is (100 / 99)^2
    half = peer.t.ppf(0.975, freedom) * math.sqrt((castings * 100 / 99 + 2) / 1e4 + 1e-4)
    assert (flip["low"], flip["high"]) == pytest.approx((0.07 - half, 0.07 + half), rel=1e-9)


def test_every_two_rows_are_compared_with_both_p_values(trained: Store) -> None:
    frame = effects.all_pairs(trained, "tiny").frame
    assert len(frame) == 6 * 5 // 2  # two rows and four baselines
    assert (frame["p_holm"] >= frame["p"]).all()
    assert ((frame["low"] <= frame["difference"]) & (frame["difference"] <= frame["high"])).all()
