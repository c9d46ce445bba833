"""The benchmarks stay alive: a small version of each runs and prints its table. No second is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_orchestration_benchmark_runs_and_prints_its_table() -> None:
    words = ["-m", "tests.benchmarks.orchestration", "--trials", "6", "--peer-trials", "2", "--repeats", "1"]
    ended = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "| casting_tune | 6 x 1 |" in ended.stdout
    assert "| Ray Tune's defaults | 2 x 1 |" in ended.stdout
