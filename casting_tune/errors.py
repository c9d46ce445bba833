"""The exceptions, as one tree, and their exit codes.

    CastingTuneError            1   not every cell of a sweep completed; or results do not agree
    |-- UsageError              2   invalid option, sweep file or value
    |-- ImagesError             4   an invalid image folder or pack
    |-- WeightsError            5   pretrained weights that are not available
    |-- StoreError              6   results or output that cannot be read or written
    |-- ResourcesError          7   a machine or cluster without the required resources
    |-- Diverged                1   a trial whose loss is not a finite number
    `-- TimeUp                  1   a trial that exceeded its time limit

Exit code 0 is success; 20: `predict --fail-on-defect` found a defect; 3: the audit found files with
the same bytes in train and test, or in both classes; 130 and 143: Ctrl-C and SIGTERM. Every message
gives the rule, the value and a solution, in the user's spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FLAWED_IMAGES = 3
"""Exit code of `audit` if files have the same bytes in train and test or both classes: no error."""

DEFECT_FOUND = 20
"""Exit code of `predict --fail-on-defect` for a defective casting: no error."""


class CastingTuneError(Exception):
    """An error that casting_tune reports in one line, without traceback.

    Args:
        message: the line.
        details: lines below it, such as the possible names of an ambiguous one.

    Example:
        >>> from casting_tune import CastingTuneError, Store
        >>> try:
        ...     Store("http://results")
        ... except CastingTuneError as error:
        ...     print(error)
        Invalid results address 'http://results'. Use a folder or s3://BUCKET/PREFIX with --results.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class UsageError(CastingTuneError):
    """Invalid option, sweep file or value."""

    exit_code = 2


class ImagesError(CastingTuneError):
    """An invalid image folder or pack."""

    exit_code = 4


class WeightsError(CastingTuneError):
    """Pretrained weights that are not available."""

    exit_code = 5


class StoreError(CastingTuneError):
    """Results or output that cannot be read or written."""

    exit_code = 6


class ResourcesError(CastingTuneError):
    """A machine or cluster without the required resources."""

    exit_code = 7


class Diverged(CastingTuneError):
    """A trial whose loss is not a finite number."""


class TimeUp(CastingTuneError):
    """A trial that exceeded its time limit."""


def unreadable(what: object, error: OSError) -> str:
    """Return "Cannot read '<what>': ..." with a solution, also for a missing permission."""
    if isinstance(error, PermissionError):
        return f"Cannot read '{what}': permission denied. Give this account read permission."
    return f"Cannot read '{what}': {error.strerror or error}. Check the path and the disk."


def unknown(kind: str, value: str, known: Iterable[str]) -> str:
    """Return "Unknown <kind> '<value>'." with the nearest known name, or with all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
    return f"Unknown {kind} '{value}'. {hint}"
