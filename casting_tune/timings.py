"""What training and inference take: seconds a step, an image, an epoch; latency.

Comes in: the answers of a run. Goes out: one table, of trials alone that had their device for themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune import answers
from casting_tune.answers import Positive, Table
from casting_tune.backbones import BACKBONES
from casting_tune.store import Store

STUDY_EPOCH_IMAGES = {2: 2654, 4: 1324, 8: 664}  # its steps were divided by the batch size twice: STUDY.md, finding 2


def timing(store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective") -> Table:
    """Seconds a step, an image and an epoch of training, and latency, from trials that had their device alone.

    An epoch is all training images once, worked out from the seconds an image. `study_step_s` is the study's seconds an
    epoch over its steps; its epochs were shorter (`STUDY_EPOCH_IMAGES`), so only steps compare.
    """
    found = answers.load(store, sweep, run_id)
    asked = found.asked[found.asked["kind"].isin(["cell", "timing"])]
    alone = found.completed(asked)
    alone = alone[alone["n_at_once"] == 1]
    devices = sorted(set(alone["device"]))
    alone = alone[alone["device"] == devices[0]] if devices else alone
    whole = found.completed(asked[asked["kind"] == "cell"])["n_train"].max()
    by_setting = asked.groupby(["backbone", "batch_size", "image_px"], sort=False)
    rows = [_row(cells, alone.loc[alone.index.isin(cells["cell_id"])], whole) for _, cells in by_setting]
    notes = [*answers.notes(found, positive)]
    notes.append(f"Timed: {answers.device(alone)}." if len(alone) else "No trial had its device alone.")
    missing = sum(row["n"] == 0 for row in rows)
    if missing:
        notes.append(f"{missing} of {len(rows)} rows are not measured: run the sweep with --timing.")
    if any(row["study_epoch_s"] is not None for row in rows):
        notes.append(
            "The study's epochs saw a half, a quarter and an eighth of the images (2,654, 1,324 and 664 at batch size "
            "2, 4 and 8): compare seconds a step."
        )
    return Table(title=f"{sweep}: training and inference times", notes=tuple(notes), frame=pd.DataFrame(rows))


def _row(cells: pd.DataFrame, timed: pd.DataFrame, whole: float) -> dict[str, Any]:
    """Return one setting's times; `whole` is how many images an epoch of the sweep has (NaN: no trial has ended)."""
    first = cells.iloc[0]
    batch, known = int(first["batch_size"]), BACKBONES.get(first["backbone"])
    study_s = next((figures["epoch_s"] for figures in cells["figures"] if "epoch_s" in figures), None)
    study_steps = STUDY_EPOCH_IMAGES.get(batch, np.nan) / batch
    return {
        "backbone": known.study_name if known else first["backbone"],
        "batch": batch,
        "px": int(first["image_px"]),
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
