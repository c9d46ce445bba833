"""The reason why a Ray did not start.

Input: the text of Ray's error and facts about this machine. Output: one sentence of advice. Imports
no Ray.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casting_tune.errors import ResourcesError

LITTLE_BYTES = 64 * 2**20
"""A folder with less free space counts as full: a start of Ray writes a few MiB."""


OVERLOADED = "The machine may be overloaded. Try again later."
UNKNOWN = "The cause is unknown."
SHM = (
    "/dev/shm is full ({shm_mib:.0f} MiB free). "
    "Delete files there, or enlarge it (Docker: --shm-size=2g)."
)
DISK = (
    "The disk of '{folder}' is full ({folder_gib:.2f} GiB free). "
    "Delete files, or set TMPDIR to another disk."
)
CAUSES = {
    r"AF_UNIX path": (
        "The path '{folder}' is too long for a socket. Set TMPDIR to a short path, such as /tmp."
    ),
    r"Too many open files|Errno 24": (
        "The limit of {n_files} open files is too low. Raise it: ulimit -n 4096."
    ),
    r"start new thread|Resource temporarily unavailable|Errno 11\b": (
        "The limit of processes and threads is reached. End other programs, or raise it: ulimit -u."
    ),
    r"(?s)(?=.*/dev/shm).*(No space left|Errno 28)|Bus error|SIGBUS": SHM,
    r"No space left|Errno 28|Disk quota": DISK,
    r"ddress already in use|Errno 98\b": (
        "A port of Ray is already in use. End that program, or unset RAY_GCS_SERVER_PORT."
    ),
    r"Permission denied|Errno 13\b|Read-only file system|Errno 30\b": (
        "Ray cannot write to '{folder}'. Set TMPDIR to a writable folder."
    ),
    r"object store memory|Cannot allocate memory|Errno 12\b": (
        "Not enough free memory. End other programs."
    ),
}
"""Pattern of an error of Ray or the system at a failed start -> the advice for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts that may explain a failed start.

    Attributes:
        folder: Ray's temporary folder.
        folder_free_bytes: free space of its disk.
        shm_free_bytes: free space of /dev/shm; None: it does not exist.
        n_files: how many files this process may open.
        logs: the errors in Ray's logs of that start.
    """

    folder: str
    folder_free_bytes: int
    shm_free_bytes: int | None
    n_files: int
    logs: str = ""


def _facts(folder: Path) -> Facts:
    """Return the facts about a start of Ray with this temporary folder."""
    shm = Path("/dev/shm")
    return Facts(
        folder=str(folder),
        folder_free_bytes=shutil.disk_usage(folder).free,
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        n_files=_most_files(),
        logs="\n".join(_errors(folder / "session_latest" / "logs")),
    )


def _most_files() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _errors(logs: Path) -> Iterator[str]:
    """Yield the last lines of stderr and the last errors of stdout of each process of Ray."""
    for file in sorted((*logs.glob("*.err"), *logs.glob("*.out"))):
        lines = file.read_text(errors="replace").splitlines()[-50:]
        yield from (
            line for line in lines if file.suffix == ".err" or re.match(r"\[\S+ \S+ [ECF] ", line)
        )


def advice(error: str, known: Facts) -> str:
    """Return advice about a Ray that did not start on this machine: one or two sentences.

    Args:
        error: the text of Ray's exception.
        known: facts about the machine and the failed start.
    """
    cause = _cause(error)
    if cause is None and known.shm_free_bytes is not None and known.shm_free_bytes < LITTLE_BYTES:
        cause = SHM
    if cause is None and known.folder_free_bytes < LITTLE_BYTES:
        cause = DISK
    cause = (
        cause
        or _cause(known.logs)
        or (OVERLOADED if re.search(r"[Tt]imed out", error) else UNKNOWN)
    )
    return cause.format(
        folder=known.folder,
        folder_gib=known.folder_free_bytes / 2**30,
        shm_mib=(known.shm_free_bytes or 0) / 2**20,
        n_files=known.n_files,
    )


def _cause(text: str) -> str | None:
    return next(
        (advice_text for sign, advice_text in CAUSES.items() if re.search(sign, text)), None
    )


def not_started(error: Exception, folder: Path) -> ResourcesError:
    """Return the error for a Ray that did not start: reason, advice, and the place of its logs.

    Args:
        error: what Ray raised.
        folder: Ray's temporary folder of that start.
    """
    text = advice(str(error), _facts(folder))
    logs = folder / "session_latest" / "logs"
    if text in (OVERLOADED, UNKNOWN) and logs.is_dir():
        kept = tempfile.mkdtemp(prefix="casting-tune-ray-")
        shutil.copytree(logs, kept, dirs_exist_ok=True)
        text += f" Ray's logs are in '{kept}'."
    return ResourcesError(
        f"Ray does not start on this machine: {reason(error)}. {text} Or run without Ray: --inline."
    )


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def report(failure: BaseException | None) -> str:
    """Return everything that Ray reports of a failure, without colours.

    It is the traceback of a worker, or how its process ended.
    """
    return "" if failure is None else _COLOUR.sub("", "".join(traceback.format_exception(failure)))


def reason(error: Exception) -> str:
    """Return the first line of an error's text, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
