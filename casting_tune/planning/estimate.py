"""Estimate the time, memory and disk space of cells from completed trials and probes.

Input: configurations with their image counts, rows of completed trials, probes. Output: one
Estimate per cell, the total time, and the best order. Runs nothing and reads no store.

The time of a trial is fixed + epochs * n_train * s_train + n_scored * s_scored, with
n_scored = (epochs + 1) * n_validation + n_test. Of a completed trial, s_train is `image_s`;
s_scored is a third of it (a forward pass without a backward pass); the rest of the time is fixed.
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
# measured: files of trials and predictions of one trial, file of an epoch, one prediction
ROW_BYTES, EPOCH_BYTES, PREDICTION_BYTES = 33_000, 3_600, 47
PLACE = ("device", "precision", "n_threads")
SHAPE = ("backbone", "image_px", "batch_size", "dense", "in_channels")
SAME, SIMILAR = (*SHAPE, *PLACE), ("backbone", *PLACE)

READ = (
    *SAME, "augmentation", "epochs", "n_train", "n_validation", "n_test", "image_s", "duration_s",
    "resumed_from", "peak_memory_bytes",
)  # fmt: skip
"""The columns of trials that `learn` reads."""

Source = Literal["rows", "similar rows", "probe", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A cell to train: its configuration and its numbers of images."""

    config: TrialConfig
    n_train: int
    n_validation: int
    n_test: int

    @property
    def n_scored(self) -> int:
        """Return the number of images scored in the whole trial, including validation."""
        return (self.config.epochs + 1) * self.n_validation + self.n_test

    @property
    def kind(self) -> tuple[object, ...]:
        """Return everything that an estimate depends on; cells that differ in seed are equal."""
        shape = tuple(getattr(self.config, name) for name in (*SHAPE, "precision", "epochs"))
        return (*shape, self.config.toggles, self.n_train, self.n_validation, self.n_test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimated cost of a cell, None where unknown, and the source of the estimate."""

    seconds: float | None
    peak_memory_bytes: int | None
    disk_bytes: int
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The cost of a network in one trial or probe: seconds per image, fixed seconds, bytes."""

    row: dict[str, Any]
    train_s: float
    score_s: float
    fixed_s: float
    peak_memory_bytes: int | None


class Measurements:
    """Measurements indexed by their settings, so that each is read once and not once per cell."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self._by_settings: dict[tuple[str, ...], dict[tuple[object, ...], list[Measurement]]] = {
            SAME: {},
            SIMILAR: {},
        }
        for one in measurements:
            for names, index in self._by_settings.items():
                index.setdefault(tuple(one.row[name] for name in names), []).append(one)

    def matching(self, settings: dict[str, Any], names: tuple[str, ...]) -> list[Measurement]:
        """Return the measurements with the same values of `names`, which is SAME or SIMILAR."""
        return self._by_settings[names].get(tuple(settings[name] for name in names), [])


def learn(
    rows: Iterable[dict[str, Any]], probes: Iterable[dict[str, Any]]
) -> tuple[Measurements, Measurements]:
    """Return the measurements of completed trials and of probes; resumed trials are left out."""
    from_rows = [
        _of_trial(row) for row in rows if row["duration_s"] is not None and not row["resumed_from"]
    ]
    from_probes = [
        Measurement(
            row=probe,
            train_s=probe["step_s"] / probe["batch_size"],
            score_s=probe["score_s"],
            fixed_s=probe["fixed_s"],
            peak_memory_bytes=probe["peak_memory_bytes"],
        )
        for probe in probes
    ]
    return Measurements(from_rows), Measurements(from_probes)


def _of_trial(row: dict[str, Any]) -> Measurement:
    n_trained = row["epochs"] * row["n_train"]
    if row["image_s"] is None:  # a baseline: its whole time grows with the images
        return Measurement(
            row=row,
            train_s=row["duration_s"] / n_trained,
            score_s=0,
            fixed_s=0,
            peak_memory_bytes=None,
        )
    score_s = row["image_s"] * FORWARD_SHARE
    n_scored = (row["epochs"] + 1) * row["n_validation"] + row["n_test"]
    return Measurement(
        row=row,
        train_s=row["image_s"],
        score_s=score_s,
        fixed_s=max(0.0, row["duration_s"] - n_trained * row["image_s"] - n_scored * score_s),
        peak_memory_bytes=row["peak_memory_bytes"],
    )


def estimates(
    works: Iterable[Work], place: dict[str, Any], from_rows: Measurements, from_probes: Measurements
) -> tuple[Estimate, ...]:
    """Return the `estimate` of each cell; cells of the same kind are estimated once."""
    by_kind: dict[tuple[object, ...], Estimate] = {}
    in_order = []
    for work in works:
        kind = work.kind
        if kind not in by_kind:
            by_kind[kind] = estimate(work, place, from_rows, from_probes)
        in_order.append(by_kind[kind])
    return tuple(in_order)


def estimate(
    work: Work, place: dict[str, Any], from_rows: Measurements, from_probes: Measurements
) -> Estimate:
    """Return the estimated cost of a cell.

    Uses the first of these that exists: trials of the same shape, precision and place (with the
    same augmentation if possible); a probe; trials of the same backbone at another image or batch
    size, with the seconds per image scaled by the number of pixels.

    Args:
        work: the cell.
        place: device and n_threads of the trial.
        from_rows: measurements of trials.
        from_probes: measurements of probes.
    """
    config = work.config
    settings = (
        {name: getattr(config, name) for name in SHAPE} | place | {"precision": config.precision}
    )
    disk = (
        ROW_BYTES
        + config.epochs * EPOCH_BYTES
        + PREDICTION_BYTES * (work.n_validation + work.n_test)
    )
    same = from_rows.matching(settings, SAME)
    augmented = augmentation_name(config.toggles)
    used = [one for one in same if one.row["augmentation"] == augmented] or same
    source: Source = "rows"
    if not used:
        used, source = from_probes.matching(settings, SAME), "probe"
    if not used:
        used, source = from_rows.matching(settings, SIMILAR), "similar rows"
    if not used:
        return Estimate(seconds=None, peak_memory_bytes=None, disk_bytes=disk, source="unknown")
    seconds = statistics.median(_seconds(one, work) for one in used)
    memory = [one.peak_memory_bytes for one in used if one.peak_memory_bytes is not None]
    return Estimate(
        seconds=seconds, peak_memory_bytes=max(memory, default=None), disk_bytes=disk, source=source
    )


def _seconds(measured: Measurement, work: Work) -> float:
    scale = float(work.config.image_px / measured.row["image_px"]) ** 2
    trained_s = work.config.epochs * work.n_train * measured.train_s
    return measured.fixed_s + scale * (trained_s + work.n_scored * measured.score_s)


def makespan(seconds: Sequence[float], n_at_once: int) -> float:
    """Return the time until all trials have ended if `n_at_once` run at the same time.

    Greedy list scheduling in the given order; longest first is at most 4/3 of the optimum (Graham,
    "Bounds on multiprocessing timing anomalies", 1969).
    """
    ends = [0.0] * min(n_at_once, len(seconds))
    for took in seconds:
        heapq.heapreplace(ends, ends[0] + took)
    return max(ends, default=0.0)


def longest_first(seconds: Sequence[float | None]) -> list[int]:
    """Return the positions of trials in the order of start: unknown times first, longest next."""
    return sorted(range(len(seconds)), key=lambda i: (seconds[i] is not None, -(seconds[i] or 0.0)))
