"""The cells that a sweep gets in addition to those of its file: simple baselines and timing passes.

Input: the cells of a sweep. Output: more cells, each once. Needs no images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casting_tune.config import BASELINE, TrialConfig
from casting_tune.planning.cells import Cell
from casting_tune.training.baselines import BASELINES

TIMED_STEPS, TIMED_EPOCHS = 12, 3
"""A timing pass takes the median of three epochs of twelve steps, to leave out the warm-up."""


def baselines(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return one cell for each baseline and each different split of the images."""
    splits = dict.fromkeys(
        TrialConfig(
            backbone=BASELINE,
            split=config.split,
            split_id=config.split_id,
            n_folds=config.n_folds,
            fold=config.fold,
            validation=config.validation,
            validation_share=config.validation_share,
            split_seed=config.split_seed,
            train_images=config.train_images,
            test_images=config.test_images,
            precision="fp32",
        )
        for config in (cell.config for cell in cells)
    )
    several = len({(split.split, split.train_images, split.test_images) for split in splits}) > 1
    baseline_cells = []
    for name, text in BASELINES.items():
        for split in splits:
            row = f"{text}, {split.split} split" if several else text
            label = f"{row}, fold {split.fold}" if split.split == "grouped" else row
            config = replace(split, backbone=f"{BASELINE}{name}")
            baseline_cells.append(Cell(row=row, label=label, config=config, kind="baseline"))
    return tuple(baseline_cells)


def timings(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return a short pass for each network, image size and batch size of a sweep.

    It uses the toggles of the first cell with these settings.
    """
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
            validation="drawn",
        )
        timed = replace(short, toggles=())
        passes.setdefault(
            timed, Cell(row=cell.row, label=f"timing: {cell.row}", config=short, kind="timing")
        )
    return tuple(passes.values())
