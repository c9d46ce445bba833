"""The options of a run, and the check of their combinations.

Input: the values of options. Output: Options, or a UsageError. Reads no machine and no image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from casting_tune.data.image_folder import Reading
from casting_tune.data.pack import DEFAULT_READING
from casting_tune.data.pixel_rules import RULES, PixelRules
from casting_tune.errors import UsageError
from casting_tune.planning.cells import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a run; `casting-tune sweep --help` explains each.

    Example:
        >>> from casting_tune import Options
        >>> Options(sweep="backbone_grid", quick=True).results
        'results'
    """

    sweep: str
    data: Path | None = None
    results: Path | str = "results"
    quick: bool = False
    only: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    reading: Reading = DEFAULT_READING
    pack_size: int | None = None
    pixels: PixelRules = RULES
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
    """Raise UsageError for the first invalid option or combination of options.

    An option without effect is invalid too, except with --plan: a plan accepts every option of the
    run that it describes.
    """
    _check_ranges(options)
    options.pixels.check()
    for is_invalid, message in (*_without_effect(options), *_conflicts(options, sweep)):
        if is_invalid:
            raise UsageError(message)


def _check_ranges(options: Options) -> None:
    for name, value, least in (
        ("--trials-at-once", options.trials_at_once, 1),
        ("--gpus-per-trial", options.gpus_per_trial, 0),
        ("--retries", options.retries, 0),
        ("--pack-size", options.pack_size, 16),
        ("--price-per-gpu-hour", options.price_per_gpu_hour, 0),
    ):
        if isinstance(value, int | float) and not (value >= least and math.isfinite(value)):
            raise UsageError(f"{name} must be at least {least}; got {value}.")
    for name, limit in (
        ("--max-seconds", options.max_seconds),
        ("--max-memory", options.memory_gib),
    ):
        if limit is not None and not (limit > 0 and math.isfinite(limit)):
            raise UsageError(f"{name} must be greater than 0; got {limit}.")


def _without_effect(options: Options) -> Iterator[tuple[bool, str]]:
    """Yield whether an option has no effect, and the message about it."""
    yield options.probe and not options.plan, "--probe requires --plan. Add it, or remove --probe."
    yield (
        options.price_per_gpu_hour is not None and not options.plan,
        "--price-per-gpu-hour requires --plan. Add it, or remove --price-per-gpu-hour.",
    )
    yield (
        options.fresh and options.retry_failed,
        "--fresh already trains failed cells again. Remove --retry-failed.",
    )
    yield (
        options.skip_bad and options.data is None,
        "--skip-bad requires --data. Add it, or remove --skip-bad.",
    )
    yield (
        options.pixels != RULES and options.data is None,
        "--bits, --resize, --max-megapixels, --gray and --colour require --data. "
        "Add it, or remove them.",
    )


def _conflicts(options: Options, sweep: Sweep) -> Iterator[tuple[bool, str]]:
    """Yield whether options exclude each other, and the message about them."""
    yield (
        options.timing and options.address is not None,
        "--timing measures this machine only and cannot be combined with --address. Remove one.",
    )
    yield (
        options.inline and options.gpus_per_trial == "auto",
        "--inline runs one trial at a time and cannot be combined with --gpus-per-trial auto. "
        "Remove one.",
    )
    yield (
        options.inline and (options.address is not None or (options.trials_at_once or 1) > 1),
        "--inline runs one trial at a time without Ray. Remove --address and --trials-at-once.",
    )
    yield (
        options.inline and sweep.schedule.scheduler == "asha",
        'scheduler = "asha" requires Ray Tune, which --inline does not use. Remove --inline, or '
        'set scheduler = "fifo".',
    )
    yield (
        options.timing and sweep.search is not None,
        "--timing requires cells in the sweep file; a search has none before it runs. "
        "Remove --timing.",
    )
