"""How many trials fit on one GPU: from measured peak memory to the share of a GPU per trial.

Input: rows of trials and of probes, configurations, the memory of a GPU. Output: shares that Ray
accepts, and the total time of trials that share GPUs. Needs no Ray, torch or store.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from casting_tune.config import TrialConfig
from casting_tune.planning import estimate
from casting_tune.training.memory import CONTEXT_BYTES

MARGIN = 1.25
"""Factor on the measured peak, for fragmentation of torch's allocator and other GPU types."""

MIN_IMAGES_SHARE = 0.95
"""The images use GPU memory too: measurements with a smaller share of images are ignored."""

GRAIN = 10_000
"""Ray counts resources in units of 1/10,000; k shares of 1/k must not exceed 1."""

STEPS = sorted({GRAIN // k for k in range(1, 33)} | {6_000, 7_000, 8_000, 9_000})
"""The possible shares, in grains: few, because Ray reuses a worker only for the same share."""

LIKE = (*estimate.SHAPE, "precision")
SIZES = ("image_px", "batch_size", "dense")  # memory grows with each of them
READ = (
    *LIKE,
    "device",
    "status",
    "micro_batch",
    "peak_memory_bytes",
    "n_train",
    "n_validation",
    "n_test",
)
"""The columns of trials that `learn` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The peak memory of trials and probes with the same values of LIKE, and their images."""

    like: tuple[Any, ...]
    n_images: int
    peak_bytes: int


def like(config: TrialConfig) -> tuple[Any, ...]:
    """Return the settings that determine the memory of a cell."""
    return tuple(getattr(config, name) for name in LIKE)


def learn(
    rows: Iterable[dict[str, Any]], probes: Iterable[dict[str, Any]], *, device: str
) -> tuple[Peak, ...]:
    """Return the measured peaks of completed trials and of probes on a device.

    Trials with halved batches are left out.
    """
    measured = [
        (row, row["n_train"] + row["n_validation"] + row["n_test"])
        for row in rows
        if row["status"] == "completed" and row["micro_batch"] is None
    ]
    measured += [(probe, probe["n_images"]) for probe in probes if probe["n_images"] is not None]
    most: dict[tuple[tuple[Any, ...], int], int] = {}
    for row, n_images in measured:
        if row["device"] == device and row["peak_memory_bytes"] is not None:
            key = tuple(row[name] for name in LIKE), n_images
            most[key] = max(most.get(key, 0), row["peak_memory_bytes"])
    return tuple(Peak(like=key[0], n_images=key[1], peak_bytes=peak) for key, peak in most.items())


def peak_bytes(peaks: Sequence[Peak], config: TrialConfig, n_images: int) -> int | None:
    """Return the highest measured peak of this network and size, None if there is none."""
    wanted = like(config)
    measured = [
        peak.peak_bytes
        for peak in peaks
        if peak.like == wanted and peak.n_images >= MIN_IMAGES_SHARE * n_images
    ]
    return max(measured, default=None)


def bound_bytes(peaks: Sequence[Peak], config: TrialConfig, n_images: int) -> int | None:
    """Return an upper bound of a cell's memory: the smallest peak at no smaller sizes.

    Used for the cells that a search chooses while it runs; None if nothing was measured.
    """
    wanted = like(config)
    measured = [
        peak.peak_bytes
        for peak in peaks
        if peak.n_images >= MIN_IMAGES_SHARE * n_images
        and all(
            known >= least if name in SIZES else known == least
            for name, known, least in zip(LIKE, peak.like, wanted, strict=True)
        )
    ]
    return min(measured, default=None)


def share(peak: int | None, gpu_bytes: int) -> float:
    """Return the share of a GPU for a peak with margin and context, at most 1; unknown is 1."""
    if peak is None:
        return 1.0
    needed = peak * MARGIN + CONTEXT_BYTES
    return next((step / GRAIN for step in STEPS if step / GRAIN * gpu_bytes >= needed), 1.0)


def more(given: float, *, times: int = 1) -> float:
    """Return the share after `times` out-of-memory errors: doubled each time, at most 1."""
    if not given:
        return 0.0
    wanted = round(given * GRAIN) * 2**times
    return next((step / GRAIN for step in STEPS if step >= wanted), 1.0)


def trials_a_gpu(given: float) -> int:
    """Return how many trials with this share fit on one GPU."""
    return GRAIN // round(given * GRAIN)


def makespan(
    seconds: Sequence[float], shares: Sequence[float], *, n_gpus: int, n_at_once: int
) -> float:
    """Return the time until all trials on shared GPUs have ended; they start in the given order.

    Assumes that sharing does not slow a trial. A share of 0 needs no GPU, only one of the
    `n_at_once` places.
    """
    free = [GRAIN] * n_gpus
    running: list[tuple[float, int, int]] = []  # end, GPU, grains
    now = last = 0.0
    for took, given in zip(seconds, shares, strict=True):
        grains = round(given * GRAIN)
        while len(running) >= n_at_once or max(free) < grains:
            now, gpu, back = heapq.heappop(running)
            free[gpu] += back
        # the fullest GPU with enough space, so that whole GPUs stay free
        gpu = min((gpu for gpu in range(n_gpus) if free[gpu] >= grains), key=lambda gpu: free[gpu])
        free[gpu] -= grains
        heapq.heappush(running, (now + took, gpu, grains))
        last = max(last, now + took)
    return last
