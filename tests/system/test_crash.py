"""A run fails at any step; the same command, run again, ends as if nothing had failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALL = ("kill -9", "ENOSPC", "EIO", "exception")


def crash(folder: Path, stride: int, *halves: tuple[str, ...]) -> dict[str, int]:
    """Run the crash harness, one process per half of the kinds; return kind -> survived."""
    environment = os.environ | {"HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    started = []
    for n, kinds in enumerate(halves):
        (folder / f"crash-{n}").mkdir()
        words = [
            sys.executable,
            Path(__file__).parent / "crashes.py",
            folder / f"crash-{n}",
            str(stride),
            *kinds,
        ]
        started.append(
            subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    survived: dict[str, int] = {}
    try:
        for process in started:
            out, error = process.communicate()
            assert process.returncode == 0, error[-3000:]
            report = json.loads(out.splitlines()[-1])
            print(
                f"{sum(report['survived'].values())} injections at {report['steps']} steps "
                f"survived: {report['survived']}"
            )
            survived |= report["survived"]
    finally:
        for process in started:
            process.kill()
            process.communicate()  # a handle that is left open fails a later test
    return survived


@pytest.mark.slow
def test_a_run_survives_a_failure_at_steps_of_every_kind(tmp_path: Path) -> None:
    survived = crash(tmp_path, 96, ALL)
    assert set(survived) == set(ALL)
    assert sum(survived.values()) >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives_a_failure_at_every_step_of_every_kind(tmp_path: Path) -> None:
    survived = crash(tmp_path, 1, ALL[:2], ALL[2:])
    assert set(survived) == set(ALL)
    assert len(set(survived.values())) == 1
    assert sum(survived.values()) >= 4 * 80
