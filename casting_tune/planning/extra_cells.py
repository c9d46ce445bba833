"""The cells that a sweep gets beside those of its file: baselines that learn nothing, and short passes that only time.

Comes in: a sweep's cells. Goes out: more cells, each once. Knows no images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casting_tune.config import TrialConfig
from casting_tune.planning.cells import Cell

BASELINES = {
    "majority": "majority class",
    "nearest_small": "nearest neighbour, 8 turns",
    "nearest_polar": "nearest neighbour, all turns",
    "linear_probe": "linear probe, random features",
}
"""A name of `baselines.BASELINES` -> its row in a table."""

TIMED_STEPS, TIMED_EPOCHS = 12, 3
"""A timing pass: the median of three epochs of twelve steps, so that the first steps, which warm up, do not count."""


def baselines(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return a cell for each baseline and each way in which the sweep splits its images."""
    splits = dict.fromkeys(
        TrialConfig(
            backbone="baseline:",
            split=config.split,
            split_id=config.split_id,
            n_folds=config.n_folds,
            fold=config.fold,
            validation_share=config.validation_share,
            split_seed=config.split_seed,
            train_images=config.train_images,
            test_images=config.test_images,
            precision="fp32",
        )
        for config in (cell.config for cell in cells)
    )
    rows = {(split.split, split.train_images, split.test_images): "" for split in splits}
    several = len(rows) > 1
    found = []
    for name, about in BASELINES.items():
        for split in splits:
            row = f"{about}, {split.split} split" if several else about
            label = f"{row}, fold {split.fold}" if split.split == "grouped" else row
            config = replace(split, backbone=f"baseline:{name}")
            found.append(Cell(row=row, label=label, config=config, kind="baseline"))
    return tuple(found)


def timings(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return a short pass for each network, size and batch size of a sweep, with the toggles of its first cell."""
    passes: dict[TrialConfig, Cell] = {}
    for cell in cells:
        config = cell.config
        n_images = max(40, round(TIMED_STEPS * config.batch_size / (1 - config.validation_share)))
        short = replace(
            config,
            train_images=n_images,
            test_images=40,
            epochs=TIMED_EPOCHS,
            seed=0,
            fold=0,
            split="official",
            split_id="official",
        )
        timed = replace(short, toggles=())
        passes.setdefault(
            timed, Cell(row=cell.row, label=f"timing: {cell.row}", config=short, kind="timing")
        )
    return tuple(passes.values())
