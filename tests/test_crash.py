"""What is left when a run fails at any step, and whether the same command then ends as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def crash(folder: Path, stride: int) -> dict[str, int]:
    """Run the crash harness in a process of its own; return the injections survived, by kind."""
    environment = os.environ | {"HOME": str(folder.parent / "home"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "crashes.py"
    ended = subprocess.run(
        [sys.executable, str(script), str(folder), str(stride)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    print(f"{sum(told['survived'].values())} injections at {told['steps']} steps survived: {told['survived']}")
    survived: dict[str, int] = told["survived"]
    return survived


def test_a_run_survives_a_failure_at_steps_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "crash").mkdir()
    survived = crash(tmp_path / "crash", 16)
    assert set(survived) == {"kill -9", "ENOSPC", "EIO", "exception"}
    assert sum(survived.values()) >= 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives_a_failure_at_every_step_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "crash").mkdir()
    survived = crash(tmp_path / "crash", 1)
    assert len(set(survived.values())) == 1
    assert sum(survived.values()) >= 4 * 80
