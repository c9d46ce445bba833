"""End a worker's process if its trial hangs, or if the driver has ended.

Input: a task and its time limit, or the process id of the driver. Output: a row of trials, and the
end of the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache

import psutil

from casting_tune.data.pack import Pack
from casting_tune.execution import tasks
from casting_tune.execution.tasks import Task, Work
from casting_tune.training.records import Ending


@cache
def end_with(driver: int) -> None:
    """End this process soon after the process `driver` was killed; a second call has no effect.

    Ray needs up to seven seconds for that (measured with 2.60). In that time a new driver and the
    old workers would train the same cells.
    """

    def watch(parent: psutil.Process) -> None:
        while parent.is_running():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        parent = psutil.Process(driver)
    except psutil.NoSuchProcess:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=watch, args=(parent,), daemon=True).start()


@contextlib.contextmanager
def watched(work: Work, pack: Pack, task: Task) -> Iterator[Callable[[], None]]:
    """End this process if a trial hangs, after writing a row with status timeout.

    If writing the row hangs too, `faulthandler` ends the process. Gives a function that restarts
    the time limit, for a task that runs again in the same process.
    """
    if work.allowance.max_seconds is None:
        yield lambda: None
        return

    limit_s = work.allowance.max_seconds
    latest_s, trial_thread = limit_s + work.hang_s, threading.get_ident()
    timers: list[threading.Timer] = []

    def expire() -> None:
        stack = traceback.format_stack(sys._current_frames().get(trial_thread))
        ending = Ending(
            status="timeout",
            error=f"The trial hung: time limit {limit_s:g} s, no reaction for {work.hang_s:g} s.",
            traceback="".join(stack),
        )
        tasks.give_row(work, pack, task, ending)
        os.kill(os.getpid(), signal.SIGKILL)

    def end() -> None:
        faulthandler.cancel_dump_traceback_later()
        while timers:
            timers.pop().cancel()

    def begin() -> None:
        end()
        timers.append(threading.Timer(latest_s, expire))
        timers[0].daemon = True
        timers[0].start()
        # it needs no Python interpreter
        faulthandler.dump_traceback_later(latest_s + work.hang_s, exit=True)

    begin()
    try:
        yield begin
    finally:
        end()
