"""What training and inference take: seconds a step, an image, an epoch; latency.

Comes in: the answers of a run. Goes out: one table, in which each row says how many trials ran at
once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import run_results
from casting_tune.analysis.run_results import Positive, Table
from casting_tune.models.registry import BACKBONES
from casting_tune.store.store import Store

STUDY_EPOCH_IMAGES = {
    2: 2654,
    4: 1324,
    8: 664,
}  # its steps were divided by the batch size twice: STUDY.md, finding 2
COLUMNS = [
    "backbone", "batch", "px", "n_at_once", "device", "n_threads", "n", "step_s", "image_s", "epoch_s", "n_images",
    "n_steps", "latency_one_s", "latency_image_s", "study_epoch_s", "study_step_s",
]  # fmt: skip


def timing(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Seconds a step, an image and an epoch of training, and latency: medians over the trials and the timing passes.

    A network, batch size and image size has a row for each place where its trials ran: `n_at_once`,
    how many trials might run at the same time there (1 had the device alone, as a timing pass has),
    `device`, `n_threads`. The fewest at once come first. An epoch is all training images once,
    worked out from the seconds an image. `study_step_s` is the study's seconds an epoch over its
    steps; its epochs were shorter (`STUDY_EPOCH_IMAGES`), so only steps compare.
    """
    found = run_results.load(store, sweep, run_id)
    asked = found.asked[found.asked["kind"].isin(["cell", "timing"])]
    timed = found.completed(asked)
    whole = found.completed(asked[asked["kind"] == "cell"])["n_train"].max()
    settings = [
        cells for _, cells in asked.groupby(["backbone", "batch_size", "image_px"], sort=False)
    ]
    rows = []
    for cells in settings:
        own = timed[timed.index.isin(cells["cell_id"])]
        places = [
            part for _, part in own.groupby(["n_at_once", "device", "n_threads"], dropna=False)
        ]
        rows += [_row(cells, part, whole) for part in places or [own]]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"n_at_once": "Int64", "n_threads": "Int64"})
    notes = [*run_results.notes(found, positive)]
    if len(timed):
        notes.append(f"Timed: {run_results.device(timed)}.")
    missing = int((frame["n"] == 0).sum())
    if missing:
        notes.append(f"{missing} of {len(settings)} settings have no completed trial.")
    fewest = frame.groupby(["backbone", "batch", "px"], sort=False)["n_at_once"].min()
    beside = int((fewest > 1).sum())
    if beside:
        notes.append(
            f"{beside} of {len(settings)} settings were timed beside other trials only, which makes a step longer: "
            "--timing adds a pass that has the device alone."
        )
    if any(row["study_epoch_s"] is not None for row in rows):
        notes.append(
            "The study's epochs saw a half, a quarter and an eighth of the images (2,654, 1,324 and 664 at batch size "
            "2, 4 and 8): compare seconds a step."
        )
    return Table(title=f"{sweep}: training and inference times", notes=tuple(notes), frame=frame)


def _row(cells: pd.DataFrame, timed: pd.DataFrame, whole: float) -> dict[str, Any]:
    """Return one setting's times in one place; `whole` is how many images an epoch has (NaN: no trial has ended)."""
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
