"""What can go wrong, as one tree, and the exit code of each branch.

    CastingTuneError            1   a sweep ended, but not every cell completed; two that should agree do not
    |-- UsageError              2   invalid option, sweep file or value
    |-- ImagesError             4   an image folder or a pack that cannot be used
    |-- WeightsError            5   pretrained weights that are not to be had here
    |-- StoreError              6   a results folder, or a place for output, that cannot be read or written
    |-- ResourcesError          7   a machine or cluster that lacks what was asked for
    |-- Diverged                1   a trial whose loss is no longer a finite number
    `-- TimeUp                  1   a trial that took longer than it may

Exit code 0 means that all is well; 20 that `predict --fail-on-defect` found a defect; 3 that the
audit found files with the same bytes in train and test, or in both classes; 130 and 143 are Ctrl-C
and SIGTERM. Every message says the rule, the value, and the way out, in the user's spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FLAWED_IMAGES = 3
"""Exit code of `audit` where files with the same bytes are in train and test, or in both classes: no error either."""

DEFECT_FOUND = 20
"""Exit code of `predict --fail-on-defect` where a casting is defective: no error, and none of the codes of errors."""


class CastingTuneError(Exception):
    """Anything that casting_tune itself reports: one clear line, no traceback."""

    exit_code = 1


class UsageError(CastingTuneError):
    """Invalid option, sweep file or value."""

    exit_code = 2


class ImagesError(CastingTuneError):
    """An image folder or a pack that cannot be used."""

    exit_code = 4


class WeightsError(CastingTuneError):
    """Pretrained weights that are not to be had here."""

    exit_code = 5


class StoreError(CastingTuneError):
    """A results folder that cannot be read or written."""

    exit_code = 6


class ResourcesError(CastingTuneError):
    """A machine or cluster that lacks what was asked for."""

    exit_code = 7


class Diverged(CastingTuneError):
    """A trial whose loss is no longer a finite number."""


class TimeUp(CastingTuneError):
    """A trial that took longer than it may."""


def unreadable(what: object, error: OSError) -> str:
    """Return "Cannot read '<what>': ..." and what to do; a file without permission is not missing, nor broken."""
    if isinstance(error, PermissionError):
        return f"Cannot read '{what}': permission denied. Give this account read permission."
    return f"Cannot read '{what}': {error.strerror or error}. Check the path and the disk."


def unknown(kind: str, value: str, known: Iterable[str]) -> str:
    """Return "Unknown <kind> '<value>'.

    ..." with the nearest known spelling, or with all of them.
    """
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
    return f"Unknown {kind} '{value}'. {hint}"
