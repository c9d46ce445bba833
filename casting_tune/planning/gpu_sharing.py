"""How many trials fit on one GPU: from the most bytes that their like took to the share of a GPU that each asks for.

Comes in: rows of trials and of probes, configurations, the bytes of a GPU. Goes out: shares that
Ray can count, and when the last of some trials ends that share GPUs. Knows no Ray, no torch and no
store.
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
"""On the measured peak: what torch's allocator cannot use between its blocks, and what another GPU of a kind needs."""

AS_MANY = 0.95
"""The images lie on the GPU too: what took less than this share of a cell's images says nothing about the cell."""

GRAIN = 10_000
"""Ray counts resources in ten-thousandths, and k times 1/k must not be more than 1."""

STEPS = sorted({GRAIN // k for k in range(1, 33)} | {6_000, 7_000, 8_000, 9_000})
"""The shares that are given, in grains: few, since a worker is used again only by a trial of the same share."""

LIKE = (*estimate.SHAPE, "precision")
SIZES = ("image_px", "batch_size", "dense")  # a network takes more with each of them
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
    """The most bytes that trials and probes of one network and size took; `like` as LIKE, with how many images."""

    like: tuple[Any, ...]
    n_images: int
    peak_bytes: int


def like(config: TrialConfig) -> tuple[Any, ...]:
    """Return what two cells must share to take the same memory."""
    return tuple(getattr(config, name) for name in LIKE)


def learn(
    rows: Iterable[dict[str, Any]], probes: Iterable[dict[str, Any]], *, device: str
) -> tuple[Peak, ...]:
    """Return what completed rows of trials and rows of probes tell of a device's memory.

    Trials whose batches were halved tell nothing.
    """
    found = [
        (row, row["n_train"] + row["n_validation"] + row["n_test"])
        for row in rows
        if row["status"] == "completed" and row["micro_batch"] is None
    ]
    found += [(probe, probe["n_images"]) for probe in probes if probe["n_images"] is not None]
    most: dict[tuple[tuple[Any, ...], int], int] = {}
    for row, n_images in found:
        if row["device"] == device and row["peak_memory_bytes"] is not None:
            key = tuple(row[name] for name in LIKE), n_images
            most[key] = max(most.get(key, 0), row["peak_memory_bytes"])
    return tuple(Peak(like=key[0], n_images=key[1], peak_bytes=peak) for key, peak in most.items())


def peak_bytes(peaks: Sequence[Peak], config: TrialConfig, n_images: int) -> int | None:
    """Return the most bytes that the like of a cell took, None where nothing tells of exactly this network and size."""
    wanted = like(config)
    found = [
        peak.peak_bytes
        for peak in peaks
        if peak.like == wanted and peak.n_images >= AS_MANY * n_images
    ]
    return max(found, default=None)


def bound_bytes(peaks: Sequence[Peak], config: TrialConfig, n_images: int) -> int | None:
    """Return what a cell takes at most, judged by the same network at sizes that are no smaller; None: nothing tells.

    It serves the cells that a search chooses while it runs, within the ends of its ranges.
    """
    wanted = like(config)
    found = [
        peak.peak_bytes
        for peak in peaks
        if peak.n_images >= AS_MANY * n_images
        and all(
            known >= least if name in SIZES else known == least
            for name, known, least in zip(LIKE, peak.like, wanted, strict=True)
        )
    ]
    return min(found, default=None)


def share(peak: int | None, gpu_bytes: int) -> float:
    """Return the share of a GPU that holds a peak with its margin and a CUDA context, at most 1; unknown: 1."""
    if peak is None:
        return 1.0
    needed = peak * MARGIN + CONTEXT_BYTES
    return next((step / GRAIN for step in STEPS if step / GRAIN * gpu_bytes >= needed), 1.0)


def more(given: float, *, times: int = 1) -> float:
    """Return the share after memory ran out so many times: twice as much each time, at most 1; 0 stays 0."""
    if not given:
        return 0.0
    wanted = round(given * GRAIN) * 2**times
    return next((step / GRAIN for step in STEPS if step >= wanted), 1.0)


def trials_a_gpu(given: float) -> int:
    """Return how many trials of a share fit on one GPU."""
    return GRAIN // round(given * GRAIN)


def makespan(
    seconds: Sequence[float], shares: Sequence[float], *, n_gpus: int, n_at_once: int
) -> float:
    """Return when the last of some trials ends that start in this order on shares of GPUs, none before the one ahead.

    Each takes as long as it would alone. A share of 0 needs no GPU, only one of the `n_at_once`
    places.
    """
    free = [GRAIN] * n_gpus
    running: list[tuple[float, int, int]] = []  # end, GPU, grains
    now = last = 0.0
    for took, given in zip(seconds, shares, strict=True):
        grains = round(given * GRAIN)
        while len(running) >= n_at_once or max(free) < grains:
            now, gpu, back = heapq.heappop(running)
            free[gpu] += back
        # the fullest that has room, so that whole GPUs stay whole
        gpu = min((gpu for gpu in range(n_gpus) if free[gpu] >= grains), key=lambda gpu: free[gpu])
        free[gpu] -= grains
        heapq.heappush(running, (now + took, gpu, grains))
        last = max(last, now + took)
    return last
