"""Why a Ray did not start, and whether anything answers at a cluster's address.

Comes in: the text of Ray's error and facts about this machine, or an address. Goes out: one
sentence of advice, or an OSError within seconds. Imports no Ray.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casting_tune.errors import ResourcesError

ANSWER_S = 5.0
"""How long a cluster's head may take to answer.

Ray 2.60 itself tries for up to 13 minutes where nothing answers.
"""

LITTLE_BYTES = 64 * 2**20
"""A folder with less free space counts as full: Ray's logs and sockets of a start take a few MiB."""


OVERLOADED = "The machine may be overloaded: try again when it has less to do."
UNKNOWN = "The cause is not known."
SHM = "/dev/shm is full ({shm_mib:.0f} MiB free). Delete files there, or enlarge it (Docker: --shm-size=2g)."
DISK = "The disk of '{folder}' is full ({folder_gib:.2f} GiB free). Free space, or set TMPDIR to another disk."
CAUSES = {
    r"AF_UNIX path": "The path '{folder}' is too long for a socket. Set TMPDIR to a short path, such as /tmp.",
    r"Too many open files|Errno 24": "The limit of {n_files} open files is too low. Raise it: ulimit -n 4096.",
    r"start new thread|Resource temporarily unavailable|Errno 11\b": (
        "The limit of processes and threads is reached. End other programs, or raise it: ulimit -u."
    ),
    r"(?s)(?=.*/dev/shm).*(No space left|Errno 28)|Bus error|SIGBUS": SHM,
    r"No space left|Errno 28|Disk quota": DISK,
    r"ddress already in use|Errno 98\b": (
        "A port that Ray uses is taken. End the program that uses it, or unset RAY_GCS_SERVER_PORT."
    ),
    r"Permission denied|Errno 13\b|Read-only file system|Errno 30\b": (
        "Ray cannot write to '{folder}'. Set TMPDIR to a folder that you may write to."
    ),
    r"object store memory|Cannot allocate memory|Errno 12\b": "Too little memory is free. End other programs.",
}
"""What Ray and the system write when a start fails, as a pattern, and the advice for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What may explain a failed start.

    Attributes:
        folder: Ray's temporary folder.
        folder_free_bytes: free space of its disk.
        shm_free_bytes: free space of /dev/shm; None where there is none.
        n_files: how many files this process may open.
        logs: the errors in Ray's logs of that start.
    """

    folder: str
    folder_free_bytes: int
    shm_free_bytes: int | None
    n_files: int
    logs: str = ""


def _facts(folder: Path) -> Facts:
    """Return what may explain that a Ray with this temporary folder did not start."""
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
    """Yield the last lines of stderr, and the errors among the last ones of stdout, of each process of Ray."""
    for file in sorted((*logs.glob("*.err"), *logs.glob("*.out"))):
        lines = file.read_text(errors="replace").splitlines()[-50:]
        yield from (
            line for line in lines if file.suffix == ".err" or re.match(r"\[\S+ \S+ [ECF] ", line)
        )


def advice(error: str, known: Facts) -> str:
    """Return what a person can do about a Ray that did not start on this machine: one or two sentences.

    Args:
        error: the text of Ray's exception.
        known: facts about the machine and the failed start.
    """
    found = _cause(error)
    if found is None and known.shm_free_bytes is not None and known.shm_free_bytes < LITTLE_BYTES:
        found = SHM
    if found is None and known.folder_free_bytes < LITTLE_BYTES:
        found = DISK
    found = (
        found
        or _cause(known.logs)
        or (OVERLOADED if re.search(r"[Tt]imed out", error) else UNKNOWN)
    )
    return found.format(
        folder=known.folder,
        folder_gib=known.folder_free_bytes / 2**30,
        shm_mib=(known.shm_free_bytes or 0) / 2**20,
        n_files=known.n_files,
    )


def _cause(text: str) -> str | None:
    return next((told for sign, told in CAUSES.items() if re.search(sign, text)), None)


def not_started(error: Exception, folder: Path) -> ResourcesError:
    """Return the error for a Ray that did not start: Ray's reason, the advice, and where its logs are kept if needed.

    Args:
        error: what Ray raised.
        folder: Ray's temporary folder of that start.
    """
    told = advice(str(error), _facts(folder))
    logs = folder / "session_latest" / "logs"
    if told in (OVERLOADED, UNKNOWN) and logs.is_dir():
        kept = tempfile.mkdtemp(prefix="casting-tune-ray-")
        shutil.copytree(logs, kept, dirs_exist_ok=True)
        told += f" Ray's logs are in '{kept}'."
    return ResourcesError(
        f"Ray does not start on this machine: {reason(error)}. {told} Or run without Ray: --inline."
    )


def reason(error: Exception) -> str:
    """Return the first line of an error's text, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def check_answers(host: str, port: int) -> None:
    """Raise OSError within seconds if no head of a Ray cluster is at an address.

    The head speaks gRPC, which is HTTP/2: a server answers the client's preface with its settings,
    a frame of type 4 (RFC 9113, 3.4). With RAY_USE_TLS=1 it only has to accept the connection.
    """
    with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = connection.recv(4, socket.MSG_WAITALL)
    if answer[3:] != b"\x04":
        raise ConnectionError(
            "what answers there is not a Ray head; the port of 'ray start' is usually 6379"
        )
