from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from casting_tune.execution import ray_failures
from casting_tune.execution.ray_failures import Facts

QUIET = Facts(folder="/tmp/ct-1", folder_free_bytes=2**40, shm_free_bytes=2**30, n_files=256)
TIMED_OUT = (
    "The current node timed out during startup. "
    "This could happen because some of the raylet failed to startup"
)


@pytest.mark.parametrize(
    ("error", "known", "message"),
    [
        (
            "validate_socket_filename failed: "
            "AF_UNIX path length cannot exceed 107 bytes: /tmp/ct-1/s/sockets/raylet",
            QUIET,
            "The path '/tmp/ct-1' is too long for a socket. Set TMPDIR to a short path,",
        ),
        (
            "[Errno 24] Too many open files: '/tmp/ct-1/logs'",
            QUIET,
            "The limit of 256 open files is too low. Raise it: ulimit -n 4096.",
        ),
        (
            "can't start new thread",
            QUIET,
            "The limit of processes and threads is reached. End other programs, or",
        ),
        (
            "[Errno 11] Resource temporarily unavailable",
            QUIET,
            "The limit of processes and threads is reached.",
        ),
        (
            "[Errno 28] No space left on device: '/dev/shm/plasma'",
            QUIET,
            "/dev/shm is full (1024 MiB free).",
        ),
        (
            "[Errno 28] No space left on device",
            QUIET,
            "The disk of '/tmp/ct-1' is full (1024.00 GiB free).",
        ),
        ("bind: Address already in use", QUIET, "A port of Ray is already in use."),
        ("[Errno 13] Permission denied: '/tmp/ct-1/x'", QUIET, "Ray cannot write to '/tmp/ct-1'."),
        (
            "Attempting to cap object store memory usage at 10 bytes, "
            "but the minimum allowed is 78643200 bytes.",
            QUIET,
            "Not enough free memory.",
        ),
        (TIMED_OUT, QUIET, "The machine may be overloaded. Try again later."),
        (TIMED_OUT, replace(QUIET, shm_free_bytes=2**20), "/dev/shm is full (1 MiB free)."),
        (TIMED_OUT, replace(QUIET, shm_free_bytes=None), "The machine may be overloaded"),
        (
            TIMED_OUT,
            replace(QUIET, folder_free_bytes=2**20),
            "The disk of '/tmp/ct-1' is full (0.00 GiB free).",
        ),
        (
            TIMED_OUT,
            replace(QUIET, logs="bind: Address already in use"),
            "A port of Ray is already in use.",
        ),
        ("Something else went wrong", QUIET, "The cause is unknown."),
    ],
)
def test_a_failed_start_gets_the_advice_for_its_cause(
    error: str, known: Facts, message: str
) -> None:
    assert ray_failures.advice(error, known).startswith(message)


def test_the_error_has_rays_first_line_and_names_the_kept_logs_only_if_the_cause_is_not_known(
    tmp_path: Path,
) -> None:
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text(
        "[2026-01-01 00:00:00,000 I 1 1] started, Permission denied counts for nothing\n"
    )
    message = str(ray_failures.not_started(Exception("Broken.\nMore."), tmp_path))
    begins = "Ray does not start on this machine: Broken. The cause is unknown. Ray's logs are in '"
    assert message.startswith(begins)
    assert message.endswith("'. Or run without Ray: --inline.")
    kept = Path(message.removeprefix(begins).partition("'")[0])
    assert [file.name for file in kept.iterdir()] == ["raylet.out"]
    (logs / "raylet.err").write_text("")
    (logs / "raylet.out").write_text(
        "[2026-01-01 00:00:00,000 E 1 1] bind: Address already in use\n"
    )
    message = str(ray_failures.not_started(Exception("Broken."), tmp_path))
    assert "A port of Ray is already in use" in message
    assert "logs" not in message
