"""How long a table takes: `python -m tests.benchmarks.queries [--trials 10000] [--images 715] [--repeats 3]`.

Makes a store of 10,000 completed trials with 7.15 million predictions, a file a trial as the store writes them: a grid
of 60 cells as in the study, ten trainings of one model, and a factorial of 330 rows with up to 30 seeds each. Then, in
processes of their own, times every table of those sweeps from nothing to the frame, and the memory it takes; first
without the cache, then with it. Beside it the same number of runs in MLflow (a file store and SQLite, `search_runs`)
and in Ray Tune (`ResultGrid.get_dataframe`): those answer with a row a run, and hold no predictions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from casting_tune import augment, rows, space, store
from casting_tune.space import Cell
from casting_tune.trial import Predictions, cell_id

DATASET, RUN = "0123456789abcdef", "made"
BIG = "full_factorial"
SWEEPS = ("backbone_grid", "summary_model", BIG)


def make(root: Path, *, n_trials: int, n_images: int) -> None:
    """Write a store of `n_trials` completed trials; the largest sweep takes as many seeds a row as are left."""
    random = np.random.default_rng(1)
    images = np.arange(n_images)
    defective = (images % 5 < 3).astype(np.uint8)
    same_for_all = {
        "split": pa.array(["test"] * n_images),
        "image": pa.array(images),
        "path": pa.array([f"test/{'def' if bad else 'ok'}_front/cast_{i}.jpeg" for i, bad in enumerate(defective)]),
        "sha256": pa.array([f"{i:064x}" for i in images]),
        "leaked": pa.array(images % 100 == 0),
        "y_true": pa.array(defective),
    }
    for sweep, cells in _cells(n_trials):
        for table in ("cells", "predictions", "trials"):
            (root / table / sweep).mkdir(parents=True, exist_ok=True)
        keyed = [(cell, cell_id(cell.config, DATASET)) for cell in cells]
        asked = [_asked(sweep, cell, key, position) for position, (cell, key) in enumerate(keyed)]
        _write(pa.Table.from_pylist(asked, schema=store.CELLS), root / "cells" / sweep / f"{RUN}.parquet")
        for cell, key in keyed:
            # rows differ by a few points, seeds by less
            skill = 2.0 + sum(map(ord, cell.row)) % 7 / 4 + random.normal(0, 0.1)
            score = 1 / (1 + np.exp(-random.normal((2 * defective.astype(float) - 1) * skill, 1.0)))
            predicted = Predictions(
                image=images,
                split=np.repeat("test", n_images),
                y_true=defective,
                score=score.astype(np.float32),
                leaked=images % 100 == 0,
            )
            columns = same_for_all | {"score": pa.array(predicted.score)}
            columns |= {"cell_id": pa.array([key] * n_images), "attempt": pa.array([1] * n_images)}
            ordered = pa.table({name: columns[name] for name in store.PREDICTIONS.names}, schema=store.PREDICTIONS)
            _write(ordered, root / "predictions" / sweep / f"{key}-1.parquet")
            trial = pa.Table.from_pylist([_trial(sweep, cell, key, predicted)], schema=store.TRIALS)
            _write(trial, root / "trials" / sweep / f"{key}-1.parquet")


def _cells(n_trials: int) -> Iterator[tuple[str, list[Cell]]]:
    left = n_trials
    for sweep in SWEEPS:
        cells = list(space.read(sweep).cells)
        if sweep == BIG:
            repeated = [
                replace(cell, config=replace(cell.config, seed=seed), label=f"{cell.label}, seed {seed}")
                for cell in cells
                for seed in range(100, 100 + left // len(cells) + 1)
            ]
            cells = repeated
        cells = cells[:left]
        left -= len(cells)
        yield sweep, cells


def _asked(sweep: str, cell: Cell, key: str, position: int) -> dict[str, Any]:
    config = cell.config
    return {
        "run_id": RUN, "sweep": sweep, "asked_at": datetime(2026, 1, 1, tzinfo=UTC), "position": position,
        "cell_id": key, "row": cell.row, "label": cell.label, "backbone": config.backbone,
        "augmentation": augment.name(config.toggles), "batch_size": config.batch_size, "image_px": config.image_px,
        "weights": config.weights, "seed": config.seed, "fold": config.fold, "dataset_id": DATASET, "quick": False,
        "kind": "cell", "study": json.dumps(cell.study) if cell.study else None,
    }  # fmt: skip


def _trial(sweep: str, cell: Cell, key: str, predicted: Predictions) -> dict[str, Any]:
    settings = asdict(cell.config)
    toggles = settings.pop("toggles")
    scored = {name: value for name, value in rows.score(predicted).items() if not name.startswith("validation")} | {
        "validation_accuracy": 0.98
    }
    return settings | scored | {
        "cell_id": key, "attempt": 1, "sweep": sweep, "label": cell.label, "status": "completed",
        "augmentation": augment.name(toggles), **{name: name in toggles for name in augment.TOGGLES},
        "dataset_id": DATASET, "n_train": 5307, "n_validation": 1326, "n_test": len(predicted.image),
        "epoch_s": 30.0, "step_s": 0.02, "image_s": 0.005, "n_steps": 1327, "latency_one_s": 0.01,
        "latency_batch_s": 0.2, "latency_batch_images": 32, "device": "cpu", "n_threads": 2, "n_at_once": 1,
        "started_at": datetime(2026, 1, 1, tzinfo=UTC), "duration_s": 300.0, "precision": "fp32",
    }  # fmt: skip


def _write(rows_: pa.Table, file: Path) -> None:
    """As the store writes, but without waiting for the disk 20,000 times."""
    pq.write_table(rows_, file, compression="zstd", write_page_checksum=True)
