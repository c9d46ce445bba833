from __future__ import annotations

from casting_tune.config import TrialConfig
from casting_tune.planning import extra_cells
from casting_tune.planning.cells import Cell
from casting_tune.training import baselines


def cell(**more: object) -> Cell:
    config = TrialConfig(backbone="vgg16", **more)  # type: ignore[arg-type]
    return Cell(row="r", label="l", config=config)


def test_every_baseline_has_a_row_in_the_table() -> None:
    assert {c.row for c in extra_cells.baselines([cell()])} == {
        "majority class",
        "nearest neighbour, 8 turns",
        "nearest neighbour, all turns",
        "linear probe, random features",
    }


def test_cells_that_split_alike_share_their_baselines() -> None:
    found = extra_cells.baselines([cell(batch_size=4), cell(batch_size=8), cell(seed=1)])
    assert [c.config.backbone for c in found] == [
        f"baseline:{name}" for name in baselines.BASELINES
    ]


def test_folds_have_a_baseline_each_in_one_row() -> None:
    found = extra_cells.baselines(
        [cell(split="grouped", split_id="g", fold=fold) for fold in range(3)]
    )
    majority = [c for c in found if c.config.backbone == "baseline:majority"]
    assert {c.row for c in majority} == {"majority class"}
    assert [c.config.fold for c in majority] == [0, 1, 2]


def test_two_ways_of_splitting_are_two_rows() -> None:
    found = extra_cells.baselines([cell(), cell(split="grouped", split_id="g")])
    assert {c.row for c in found if c.config.backbone == "baseline:majority"} == {
        "majority class, official split",
        "majority class, grouped split",
    }


def test_a_timing_pass_is_short_and_each_setting_has_one() -> None:
    found = extra_cells.timings(
        [cell(seed=0), cell(seed=1), cell(toggles=("flip",)), cell(batch_size=2)]
    )
    assert [(c.config.batch_size, c.config.train_images, c.config.epochs) for c in found] == [
        (8, 120, 3),
        (2, 40, 3),
    ]
