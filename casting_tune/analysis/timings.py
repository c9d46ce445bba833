"""Training and inference times: seconds per step, image and epoch; latency.

Input: the results of a run. Output: one table; each row says how many trials ran at the same time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import result_table, run_results
from casting_tune.analysis.result_table import Positive, Table
from casting_tune.models.registry import BACKBONES
from casting_tune.store.store import Store

# by batch size; the study divided its steps by the batch size twice: STUDY.md, finding 2
STUDY_EPOCH_IMAGES = {2: 2654, 4: 1324, 8: 664}
COLUMNS = [
    "backbone",
    "batch",
    "px",
    "n_at_once",
    "device",
    "n_threads",
    "n",
    "step_s",
    "image_s",
    "epoch_s",
    "n_images",
    "n_steps",
    "latency_one_s",
    "latency_image_s",
    "study_epoch_s",
    "study_step_s",
]


def timing(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Return seconds per step, image and epoch, and latency: medians over trials and timing passes.

    A network, batch size and image size has one row per place: `n_at_once`, the number of trials
    that could run at the same time (1 for a timing pass); `device`; `n_threads`. Lowest `n_at_once`
    first. An epoch is all training images once, computed from the seconds per image.
    `study_step_s` is the study's seconds per epoch divided by its steps; its epochs were shorter
    (`STUDY_EPOCH_IMAGES`), so only steps are comparable.
    """
    run = run_results.load(store, sweep, run_id)
    measured = run.cells[run.cells["kind"].isin(["cell", "timing"])]
    timed = run.completed(measured)
    whole = run.completed(measured[measured["kind"] == "cell"])["n_train"].max()
    settings = [
        cells for _, cells in measured.groupby(["backbone", "batch_size", "image_px"], sort=False)
    ]
    rows = []
    for cells in settings:
        own = timed[timed.index.isin(cells["cell_id"])]
        places = [
            part for _, part in own.groupby(["n_at_once", "device", "n_threads"], dropna=False)
        ]
        rows += [_row(cells, part, whole) for part in places or [own]]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"n_at_once": "Int64", "n_threads": "Int64"})
    notes = _notes(frame, n_settings=len(settings))
    if len(timed):
        notes.insert(0, f"Measured on: {result_table.device(timed)}.")
    return Table(
        title=f"{sweep}: training and inference times",
        notes=(*result_table.notes(run, positive), *notes),
        frame=frame,
    )


def _notes(frame: pd.DataFrame, *, n_settings: int) -> list[str]:
    """Return notes about settings without a trial or without a trial alone, and about the study."""
    notes = []
    missing = int((frame["n"] == 0).sum())
    if missing:
        notes.append(f"{missing} of {n_settings} settings have no completed trial.")
    fewest = frame.groupby(["backbone", "batch", "px"], sort=False)["n_at_once"].min()
    n_shared = int((fewest > 1).sum())
    if n_shared:
        notes.append(
            f"{n_shared} of {n_settings} settings were measured only while other trials ran, which "
            "makes a step longer: --timing adds a pass with nothing else on the device."
        )
    if frame["study_epoch_s"].notna().any():
        notes.append(
            "An epoch of the study has only a half, a quarter and an eighth of the images (2,654, "
            "1,324 and 664 at batch size 2, 4 and 8): compare seconds per step."
        )
    return notes


def _row(cells: pd.DataFrame, timed: pd.DataFrame, whole: float) -> dict[str, Any]:
    """Return the times of one setting in one place.

    Args:
        cells: of this setting.
        timed: its completed trials in this place.
        whole: images of an epoch, NaN without a completed trial.
    """
    first = cells.iloc[0]
    batch, known = int(first["batch_size"]), BACKBONES.get(first["backbone"])
    study_s = next(
        (figures["epoch_s"] for figures in cells["figures"] if "epoch_s" in figures), None
    )
    study_steps = STUDY_EPOCH_IMAGES.get(batch, np.nan) / batch
    return {
        "backbone": known.study_name if known else first["backbone"],
        "batch": batch,
        "px": int(first["image_px"]),
        **{
            name: timed[name].iloc[0] if len(timed) else None
            for name in ("n_at_once", "device", "n_threads")
        },
        "n": len(timed),
        "step_s": timed["step_s"].median(),
        "image_s": timed["image_s"].median(),
        "epoch_s": timed["image_s"].median() * whole,
        "n_images": whole,
        "n_steps": np.ceil(whole / batch),
        "latency_one_s": timed["latency_one_s"].median(),
        "latency_image_s": (timed["latency_batch_s"] / timed["latency_batch_images"]).median(),
        "study_epoch_s": study_s,
        "study_step_s": None if study_s is None else study_s / study_steps,
    }
