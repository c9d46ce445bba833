"""What a person asks of a run, and what of that cannot be meant.

Comes in: the values of options. Goes out: Options, or a UsageError. Looks at no machine and no
image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from casting_tune.errors import UsageError
from casting_tune.planning.cells import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person asks of a run; see `casting-tune sweep --help` for each."""

    sweep: str
    data: Path | None = None
    results: Path | str = "results"
    quick: bool = False
    only: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    positive: str = "def_front"
    pack_size: int | None = None
    skip_bad: bool = False
    inline: bool = False
    address: str | None = None
    trials_at_once: int | None = None
    gpus_per_trial: float | Literal["auto"] | None = None
    retries: int = 1
    timing: bool = False
    baselines: bool = True
    plan: bool = False
    probe: bool = False
    price_per_gpu_hour: float | None = None
    fresh: bool = False
    retry_failed: bool = False
    yes: bool = False
    keep: tuple[Literal["last", "best"], ...] = ()
    max_seconds: float | None = None
    memory_gib: float | None = None
    on_oom: Literal["fail", "accumulate"] | None = None
    command: str = ""


def check(options: Options, sweep: Sweep) -> None:
    """Raise UsageError for the first option that cannot be meant, alone or with another or with the sweep.

    An option without effect counts as such, except beside --plan: a plan takes every option of the
    run that it is of.
    """
    for name, value, least in (
        ("--trials-at-once", options.trials_at_once, 1),
        ("--gpus-per-trial", options.gpus_per_trial, 0),
        ("--retries", options.retries, 0),
        ("--pack-size", options.pack_size, 16),
        ("--price-per-gpu-hour", options.price_per_gpu_hour, 0),
    ):
        if isinstance(value, int | float) and not (value >= least and math.isfinite(value)):
            raise UsageError(f"{name} is {least} or more, not {value}.")
    if not options.plan and (options.probe or options.price_per_gpu_hour is not None):
        told = "--probe" if options.probe else "--price-per-gpu-hour"
        raise UsageError(f"{told} is about what a run would cost: give it together with --plan.")
    if options.fresh and options.retry_failed:
        raise UsageError(
            "--fresh trains every cell again, those that failed too: leave out --retry-failed."
        )
    if options.skip_bad and options.data is None:
        raise UsageError(
            "--skip-bad is about files of an image folder: give it together with --data."
        )
    if options.timing and options.address:
        raise UsageError(
            "--timing measures the device of this machine, alone, and --address trains on others: drop one."
        )
    for name, limit in (
        ("--max-seconds", options.max_seconds),
        ("--max-memory", options.memory_gib),
    ):
        if limit is not None and not (limit > 0 and math.isfinite(limit)):
            raise UsageError(f"{name} is more than 0, not {limit}.")
    if options.inline and options.gpus_per_trial == "auto":
        raise UsageError(
            "--gpus-per-trial auto packs several trials on a GPU, and --inline runs one: drop one of them."
        )
    if options.inline and (options.address or (options.trials_at_once or 1) > 1):
        raise UsageError(
            "--inline runs one trial after the other, without Ray: leave out --address, --trials-at-once."
        )
    if options.inline and sweep.schedule.scheduler == "asha":
        raise UsageError(
            'scheduler = "asha" stops trials through Ray Tune, and --inline goes without it. Leave out --inline, or '
            'write scheduler = "fifo".'
        )
    if options.timing and sweep.search is not None:
        raise UsageError(
            "--timing times the cells of a file, and a search has none before it runs. Leave it out."
        )
