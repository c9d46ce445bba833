"""What cells to come will take, learnt from trials that have been: seconds, memory, disk; and who should start first.

Comes in: configurations with their image counts, completed rows of trials, probes. Goes out: an
Estimate a cell, and the time until the last of them ends. Runs nothing and reads no store.

A trial's time is taken apart as fixed + epochs * n_train * s_train + n_scored * s_scored, with
n_scored = (epochs + 1) * n_validation + n_test. A row tells s_train (its `image_s`); scoring is a
third of it, a forward pass without its backward one; the rest of its duration is fixed.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from casting_tune.config import TrialConfig
from casting_tune.toggles import augmentation_name

FORWARD_SHARE = 1 / 3
ROW_BYTES, EPOCH_BYTES, PREDICTION_BYTES = (
    33_000,
    3_600,
    47,
)  # measured: files of trials and predictions, of an epoch
READ = (
    "device", "precision", "n_threads", "backbone", "image_px", "batch_size", "dense", "in_channels", "augmentation",
    "epochs", "n_train", "n_validation", "n_test", "image_s", "duration_s", "resumed_from", "peak_memory_bytes",
)  # fmt: skip
"""The columns of trials that `learn` reads."""

LIKE = ("device", "precision", "n_threads")
SHAPE = ("backbone", "image_px", "batch_size", "dense", "in_channels")
SAME, KIN = (*SHAPE, *LIKE), ("backbone", *LIKE)

Source = Literal["rows", "similar rows", "probe", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A cell to come: its configuration, and how many images it trains, validates and tests."""

    config: TrialConfig
    n_train: int
    n_validation: int
    n_test: int

    @property
    def n_scored(self) -> int:
        """Images scored over the whole trial, validation after every epoch included."""
        return (self.config.epochs + 1) * self.n_validation + self.n_test

    @property
    def kind(self) -> tuple[object, ...]:
        """All that an estimate reads of it: cells that differ in their seed are of one kind."""
        shape = tuple(getattr(self.config, name) for name in (*SHAPE, "precision", "epochs"))
        return (*shape, self.config.toggles, self.n_train, self.n_validation, self.n_test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a cell should take: seconds and bytes, None where nothing is known; and where the figures come from."""

    seconds: float | None
    peak_memory_bytes: int | None
    disk_bytes: int
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What one row or probe tells of a network: seconds an image, fixed seconds, bytes."""

    row: dict[str, Any]
    train_s: float
    score_s: float
    fixed_s: float
    peak_memory_bytes: int | None


class Learnt:
    """What rows or probes tell, found by what is alike in them: a row is looked at once, not once a cell."""

    def __init__(self, known: Iterable[Known]) -> None:
        self._found: dict[tuple[str, ...], dict[tuple[object, ...], list[Known]]] = {
            SAME: {},
            KIN: {},
        }
        for one in known:
            for names, found in self._found.items():
                found.setdefault(tuple(one.row[name] for name in names), []).append(one)

    def alike(self, wanted: dict[str, Any], names: tuple[str, ...]) -> list[Known]:
        """Return what is alike in all of `names`, which are SAME or KIN."""
        return self._found[names].get(tuple(wanted[name] for name in names), [])


def learn(
    rows: Iterable[dict[str, Any]], probes: Iterable[dict[str, Any]]
) -> tuple[Learnt, Learnt]:
    """Return what completed rows of trials and rows of probes tell, each; trials that went on tell nothing."""
    from_rows = [
        _of_row(row) for row in rows if row["duration_s"] is not None and not row["resumed_from"]
    ]
    from_probes = [
        Known(
            row=probe,
            train_s=probe["step_s"] / probe["batch_size"],
            score_s=probe["score_s"],
            fixed_s=probe["fixed_s"],
            peak_memory_bytes=probe["peak_memory_bytes"],
        )
        for probe in probes
    ]
    return Learnt(from_rows), Learnt(from_probes)


def _of_row(row: dict[str, Any]) -> Known:
    n_trained = row["epochs"] * row["n_train"]
    if row["image_s"] is None:  # a baseline: all its time goes with the images
        return Known(
            row=row,
            train_s=row["duration_s"] / n_trained,
            score_s=0,
            fixed_s=0,
            peak_memory_bytes=None,
        )
    score_s = row["image_s"] * FORWARD_SHARE
    n_scored = (row["epochs"] + 1) * row["n_validation"] + row["n_test"]
    return Known(
        row=row,
        train_s=row["image_s"],
        score_s=score_s,
        fixed_s=max(0.0, row["duration_s"] - n_trained * row["image_s"] - n_scored * score_s),
        peak_memory_bytes=row["peak_memory_bytes"],
    )


def estimates(
    works: Iterable[Work], place: dict[str, Any], from_rows: Learnt, from_probes: Learnt
) -> tuple[Estimate, ...]:
    """Return what each of some cells should take, as `estimate` says; those of one kind are asked once."""
    told: dict[tuple[object, ...], Estimate] = {}
    found = []
    for work in works:
        kind = work.kind
        if kind not in told:
            told[kind] = estimate(work, place, from_rows, from_probes)
        found.append(told[kind])
    return tuple(found)


def estimate(work: Work, place: dict[str, Any], from_rows: Learnt, from_probes: Learnt) -> Estimate:
    """Return what a cell should take at a place (device, n_threads): from its like, a probe, or its nearest kin.

    Rows of the same shape, precision and place count first (with the same augmentation, where there
    are any); then a probe of it; then rows of the same backbone at another size or batch, seconds
    an image scaled with the pixels.
    """
    config = work.config
    wanted = (
        {name: getattr(config, name) for name in SHAPE} | place | {"precision": config.precision}
    )
    disk = (
        ROW_BYTES
        + config.epochs * EPOCH_BYTES
        + PREDICTION_BYTES * (work.n_validation + work.n_test)
    )
    same = from_rows.alike(wanted, SAME)
    augmented = augmentation_name(config.toggles)
    alike = [known for known in same if known.row["augmentation"] == augmented] or same
    source: Source = "rows"
    if not alike:
        alike, source = from_probes.alike(wanted, SAME), "probe"
    if not alike:
        alike, source = from_rows.alike(wanted, KIN), "similar rows"
    if not alike:
        return Estimate(seconds=None, peak_memory_bytes=None, disk_bytes=disk, source="unknown")
    seconds = statistics.median(_seconds(known, work) for known in alike)
    memory = [known.peak_memory_bytes for known in alike if known.peak_memory_bytes is not None]
    return Estimate(
        seconds=seconds, peak_memory_bytes=max(memory, default=None), disk_bytes=disk, source=source
    )


def _seconds(known: Known, work: Work) -> float:
    scale = float(work.config.image_px / known.row["image_px"]) ** 2
    trained = work.config.epochs * work.n_train * known.train_s
    return known.fixed_s + scale * (trained + work.n_scored * known.score_s)


def makespan(seconds: Sequence[float], n_at_once: int) -> float:
    """Return when the last of some trials ends that start in this order, each as soon as a place is free.

    Greedy list scheduling; with the longest first it is at most 4/3 of the best (Graham, "Bounds on
    multiprocessing timing anomalies", 1969).
    """
    ends = [0.0] * min(n_at_once, len(seconds))
    for took in seconds:
        heapq.heapreplace(ends, ends[0] + took)
    return max(ends, default=0.0)


def longest_first(seconds: Sequence[float | None]) -> list[int]:
    """Return the positions in the order in which trials should start; the unknown ones first, in their own order."""
    return sorted(range(len(seconds)), key=lambda i: (seconds[i] is not None, -(seconds[i] or 0.0)))
