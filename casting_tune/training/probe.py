"""What a cell costs, measured by training a few steps of it.

Input: a configuration, a pack, a place. Output: one row of probes. Leaves no files.
"""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
import time
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune.config import Epoch, TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.store.store import Store
from casting_tune.training import inputs, memory
from casting_tune.training.image_split import count_images, split_images
from casting_tune.training.network_fit import files_of, fit_network
from casting_tune.training.records import Place, TrialContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEPS = 3
EPOCHS = {"cpu": 2, "cuda": 3}
"""Epochs of a probe; the last one is timed. On a GPU the first warms up, the second is recorded."""


def probe(
    config: TrialConfig, pack: Pack, place: Place, groups: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Train a few steps of a cell and return its cost: a row of probes.

    The last of two or three short epochs is timed, when kernels and memory are warm. Everything
    else, from building the network to timing its latency, counts as fixed. The peak of memory is
    that of the whole cell: if all its images will be on the device, the bytes of images that the
    probe does not use are added.
    """
    import torch

    n_epochs = EPOCHS[place.device]
    n_images = max(8, math.ceil(STEPS * config.batch_size / (1 - config.validation_share)))
    small = replace(
        config,
        epochs=n_epochs,
        train_images=n_images,
        test_images=inputs.EVALUATION_BATCH,
        validation="drawn",
        weights="none",
    )
    parts, epochs = split_images(small, pack, groups), list[Epoch]()
    n_all, n_probed = sum(count_images(config, pack, groups)), sum(map(len, astuple(parts)))
    context = TrialContext(sweep="probe", label="probe", place=place)
    images_from = inputs.images_from(n_all, config, pack, context)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="casting-tune-") as scratch:
        _, measured = fit_network(
            small,
            pack,
            context,
            parts=parts,
            files=files_of(Store(Path(scratch)), "probe"),
            on_epoch=epochs.append,
        )
    duration_s, last = time.perf_counter() - started, epochs[-1]
    peak_bytes = measured.peak_memory_bytes
    if peak_bytes is not None and images_from == "device":
        peak_bytes += (n_all - n_probed) * inputs.image_bytes(config, pack)
    score_s = last.validation_s / len(parts.validation)
    fixed_s = (
        duration_s
        - n_epochs * (last.train_s + last.validation_s)
        - score_s * (n_probed - len(parts.train))
    )
    columns = ("backbone", "image_px", "batch_size", "dense", "in_channels", "precision")
    return {
        **{name: getattr(config, name) for name in columns},
        "device": place.device,
        "n_threads": place.n_threads,
        "step_s": last.train_s / last.n_images * config.batch_size,
        "score_s": score_s,
        "fixed_s": max(0.0, fixed_s),
        "peak_memory_bytes": peak_bytes,
        "torch": importlib.metadata.version("torch"),
        "probed_at": datetime.now(UTC),
        "n_images": n_all,
        "device_memory_bytes": memory.total(torch.device(place.device)),
    }
