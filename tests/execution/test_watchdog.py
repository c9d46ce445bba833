from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("again", "code"), [("begin_again()", 0), ("pass", -9)])
def test_each_try_of_a_task_in_one_process_has_all_its_time(again: str, code: int) -> None:
    program = f"""
import time
from types import SimpleNamespace
from casting_tune.execution import tasks, watchdog
tasks.give_row = lambda *row: print(row[3].status, row[3].error, row[3].traceback, flush=True)
work = SimpleNamespace(allowance=SimpleNamespace(max_seconds=1.5), hang_s=1.5)
with watchdog.watched(work, None, None) as begin_again:
    for _ in range(2):
        {again}
        time.sleep(1.8)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ended.returncode == code
    if code:  # what is kept of a trial that hangs: where it does
        assert "timeout The trial hung" in ended.stdout
        assert 'File "<string>", line 10, in <module>' in ended.stdout
