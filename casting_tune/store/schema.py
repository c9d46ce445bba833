"""The tables of a store: one explicit Arrow schema each, with its version in every file.

A new column is added here; in older files it is NULL, or a setting's default. The first new column
after a release raises SCHEMA_VERSION. Knows no files.
"""

from __future__ import annotations

from dataclasses import MISSING, fields

import pyarrow as pa

from casting_tune.config import TrialConfig
from casting_tune.metrics import METRICS, OK_VIEW, RANKING
from casting_tune.toggles import MAGNITUDES, TOGGLES

SCHEMA_VERSION = 2
"""1: casting_tune 0.1.0. 2: new columns of trials, cells, predictions and images in 0.2.0."""

VERSION_KEY = b"casting_tune.schema_version"

_COUNTED = ("tp", "fp", "tn", "fn")


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(fields), metadata={VERSION_KEY: str(SCHEMA_VERSION)})


_TEXT, _INT, _REAL, _FLAG, _TIME = (
    pa.string(),
    pa.int64(),
    pa.float64(),
    pa.bool_(),
    pa.timestamp("us", tz="UTC"),
)

TRIALS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("sweep", _TEXT), ("label", _TEXT), ("status", _TEXT),
    ("error", _TEXT),
    ("backbone", _TEXT), ("weights", _TEXT), ("weights_id", _TEXT), ("dense", _INT),
    ("dropout", _REAL),
    ("augmentation", _TEXT), *((toggle, _FLAG) for toggle in TOGGLES),
    *((magnitude, _REAL) for magnitude in MAGNITUDES),
    ("image_px", _INT), ("in_channels", _INT), ("batch_size", _INT), ("epochs", _INT),
    ("seed", _INT),
    ("split", _TEXT), ("split_id", _TEXT), ("n_folds", _INT), ("fold", _INT),
    ("validation", _TEXT), ("validation_share", _REAL), ("split_seed", _INT),
    ("train_images", _INT), ("test_images", _INT), ("base_lr", _REAL), ("weight_decay", _REAL),
    ("warmup_share", _REAL), ("lr_schedule", _TEXT), ("precision", _TEXT), ("layout", _TEXT),
    ("recipe", _INT), ("dataset_id", _TEXT), ("positive", _TEXT),
    ("pixels", _TEXT),
    ("n_train", _INT), ("n_validation", _INT), ("n_test", _INT),
    *(
        (f"{split}_{name}", _REAL)
        for split in ("validation", "test") for name in (*METRICS, *RANKING)
    ),
    *(
        (f"{split}_{name}", _INT)
        for split in ("validation", "test", "test_leaked") for name in _COUNTED
    ),
    *((f"test_{name}_ok", _REAL) for name in OK_VIEW),
    ("epoch_s", _REAL), ("step_s", _REAL), ("image_s", _REAL), ("n_steps", _INT),
    ("latency_one_s", _REAL), ("latency_batch_s", _REAL), ("latency_batch_images", _INT),
    ("peak_memory_bytes", _INT), ("n_parameters", _INT), ("n_statistics", _INT),
    ("host", _TEXT), ("device", _TEXT), ("n_threads", _INT), ("n_at_once", _INT), ("gpus", _REAL),
    ("python", _TEXT), ("torch", _TEXT), ("timm", _TEXT), ("kornia", _TEXT), ("ray", _TEXT),
    ("casting_tune", _TEXT),
    ("git_commit", _TEXT), ("started_at", _TIME), ("duration_s", _REAL), ("resumed_from", _INT),
    ("micro_batch", _INT), ("cuda_graph", _FLAG), ("traceback", _TEXT), ("images_from", _TEXT),
    ("negative", _TEXT),
)  # fmt: skip
"""One row per trial. NULL is unknown.

`positive` and `negative` are the names of the defective and the good class of the dataset.

Metrics are shares in 0..1 at threshold 0.5, with the defect as the positive class; `test_*_ok` has
the good class as the positive class, as in the study. `test_leaked_*` counts test images with a
byte-identical copy in training or validation. `latency_*` are medians. `host` is a hash of the
machine's name. `pixels` has the rules of `data.pixel_rules` as JSON; NULL is the default.
`resumed_from` is the last epoch of the previous attempt that this attempt
continued, 0 from the start. `micro_batch` is the most images that passed through the network at
once; NULL is the whole batch. `gpus` is the GPU share of the trial. `cuda_graph`: the steps were
recorded and launched as one; NULL without a GPU and with fewer than three steps. `images_from` is
device (all images were on the trial's device), memory or disk (read batch by batch). `traceback` is
the end of a failed trial's traceback, or Ray's report of a lost process, without secrets.
"""

SETTINGS = tuple(
    name for f in fields(TrialConfig) for name in (TOGGLES if f.name == "toggles" else (f.name,))
)
"""The columns of trials for a TrialConfig: one per field, and one per toggle.

Every list of settings is made from this one, so a new field of TrialConfig is in all of them.
"""

EPOCHS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("sweep", _TEXT), ("epoch", _INT), ("n_images", _INT),
    ("n_steps", _INT), ("learning_rate", _REAL), ("train_loss", _REAL), ("validation_loss", _REAL),
    ("validation_accuracy", _REAL), ("train_s", _REAL), ("validation_s", _REAL),
    ("ended_at", _TIME),
)  # fmt: skip

PREDICTIONS = _schema(
    ("cell_id", _TEXT), ("attempt", _INT), ("split", _TEXT), ("image", _INT), ("path", _TEXT),
    ("sha256", _TEXT), ("leaked", _FLAG), ("y_true", pa.uint8()), ("score", pa.float32()),
    ("kind", _TEXT),
)  # fmt: skip
"""One row per validation or test image. `kind` is the name of the kind of defect, "" for a good
image; NULL in rows that were written before kinds were stored.
"""

IMAGES = _schema(
    ("dataset_id", _TEXT), ("image", _INT), ("path", _TEXT), ("sha256", _TEXT), ("split", _TEXT),
    ("y_true", pa.uint8()), ("group_id", _INT), ("copy_in_train", _FLAG), ("twin_in_train", _FLAG),
    ("conflict", _FLAG), ("constant", _FLAG), ("outlier", _FLAG), ("finding", _TEXT),
    ("columns", _TEXT), ("kind", _TEXT),
)  # fmt: skip
"""One row per image, written by an audit, or for a list with further columns. `columns` is a JSON
object of these, NULL without any. `group_id` is the number of the group (one photograph).
The audit's findings are in `finding` of its first rows. `kind` is as in PREDICTIONS.
"""

CELLS = _schema(
    ("run_id", _TEXT), ("sweep", _TEXT), ("asked_at", _TIME), ("position", _INT),
    ("cell_id", _TEXT), ("row", _TEXT), ("label", _TEXT), ("backbone", _TEXT),
    ("augmentation", _TEXT), ("batch_size", _INT), ("image_px", _INT), ("weights", _TEXT),
    ("seed", _INT), ("fold", _INT), ("dataset_id", _TEXT), ("quick", _FLAG), ("command", _TEXT),
    ("kind", _TEXT), ("study", _TEXT), ("chosen", _TEXT),
)  # fmt: skip
"""`kind` is cell, baseline or timing; `study` is JSON, the study's published figures by name, or
NULL; `chosen` is JSON, the settings that a search chose.
"""

DEFAULTS = {
    f.name: f.default
    for f in fields(TrialConfig)
    if f.default is not MISSING and f.name in TRIALS.names
}
PROBES = _schema(
    ("backbone", _TEXT), ("image_px", _INT), ("batch_size", _INT), ("dense", _INT),
    ("in_channels", _INT), ("device", _TEXT), ("precision", _TEXT), ("n_threads", _INT),
    ("step_s", _REAL), ("score_s", _REAL), ("fixed_s", _REAL),
    ("peak_memory_bytes", _INT), ("torch", _TEXT), ("probed_at", _TIME),
    ("n_images", _INT), ("device_memory_bytes", _INT),
)  # fmt: skip
"""The cost of a network, measured with a few steps: seconds per step of a batch, per scored image,
and fixed; peak memory with all `n_images` of the cell, and the memory of the GPU or the machine.
"""

SCHEMAS = {
    "trials": TRIALS, "epochs": EPOCHS, "predictions": PREDICTIONS, "cells": CELLS,
    "images": IMAGES, "probes": PROBES,
}  # fmt: skip
