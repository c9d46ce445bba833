"""Runs tasks in a plain loop in this process, without Ray.

Input: tasks, a pack, a store. Output: Events, in the order in which they happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from casting_tune.data.pack import Pack
from casting_tune.execution.claims import claimed
from casting_tune.execution.tasks import Event, Halt, Work, run_task


class _Halted(BaseException):
    """Ends a trial after an epoch; no `except Exception` on its way catches it."""


def run_inline(
    work: Work, pack: Pack, *, on_event: Callable[[Event], None], halt: Halt | None = None
) -> None:
    """Run every task in this process, one after the other."""
    halt = halt or Halt()

    def on_task_event(event: Event) -> None:
        on_event(event)
        if halt.requested.is_set() and event.kind != "ended":
            raise _Halted

    with claimed(work, pack, halt, on_event) as source, contextlib.suppress(_Halted):
        while (index := source.next_task()) is not None:
            task = source.tasks[index]
            while (event := run_task(work, pack, index, task, on_task_event)).retried:
                pass
            source.on_ended(index, str(event.status))
