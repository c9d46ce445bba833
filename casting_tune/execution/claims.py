"""Claims on cells, so that two sweeps of one store never train a cell at the same time.

Input: a source of tasks, a store. Output: the same tasks, each claimed before it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from casting_tune.config import cell_id
from casting_tune.data.pack import Pack
from casting_tune.execution.tasks import Event, Halt, InOrder, Source, Task, Work, ended
from casting_tune.store.attempts import completed_since
from casting_tune.store.locks import claim
from casting_tune.store.store import Store


class Claimed:
    """A source whose cells are claimed in the store.

    A cell that another process holds waits until it is free. If that process completed it, its end
    is reported here.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        dataset_id: str,
        halt: Halt,
        on_event: Callable[[Event], None],
    ) -> None:
        self.source, self.store, self.dataset_id = source, store, dataset_id
        self.halt, self.on_event = halt, on_event
        self.held: dict[int, Callable[[], None]] = {}
        self.waiting: list[int] = []
        self.again: list[int] = []

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the source."""
        return self.source.tasks

    def next_task(self) -> int | None:
        """Claim a task and return its position.

        None: no free task before one of this process ends, or no more tasks.
        """
        while not self.halt.requested.is_set():
            if self.again:
                return self.again.pop(0)
            index = self.source.next_task()
            candidates = self.waiting if index is None else [index]
            if not candidates:
                return None
            claimed = self._claim_first(candidates)
            if claimed is not None:
                return claimed
            if index is None and self.held:
                return None  # called again when one of this process ends
            if index is None and self.waiting:
                self.halt.requested.wait(1.0)  # other processes hold all cells that are left
        return None

    def _claim_first(self, candidates: list[int]) -> int | None:
        """Claim the first task that is free and not completed; the others wait."""
        self.waiting = [i for i in self.waiting if i not in candidates]
        for position, i in enumerate(candidates):
            task = self.tasks[i]
            cell = cell_id(task.config, self.dataset_id)
            release = claim(self.store, cell, self.halt.requested.set)
            if release is None:
                self.waiting.append(i)
            elif (row := self._completed(cell, task)) is not None:
                release()
                self.source.on_ended(i, "completed")
                self.on_event(ended(i, row))
            else:
                self.held[i] = release
                self.waiting += candidates[position + 1 :]
                return i
        return None

    def _completed(self, cell: str, task: Task) -> dict[str, Any] | None:
        return completed_since(self.store, cell, task.attempts, epochs=task.config.epochs)

    def on_ended(self, task: int, status: str) -> None:
        """Release a task that has ended and will not be retried."""
        self.source.on_ended(task, status)
        self.held.pop(task)()

    def hand_out_again(self, task: int) -> None:
        """Make a task that is still held the next one."""
        self.again.append(task)

    def release(self) -> None:
        """Release all claims.

        Raises:
            StoreError: a claim had passed to another process.
        """
        with contextlib.ExitStack() as stack:  # releases all, whichever of them raises
            while self.held:
                stack.callback(self.held.popitem()[1])


@contextlib.contextmanager
def claimed(
    work: Work, pack: Pack, halt: Halt, on_event: Callable[[Event], None]
) -> Iterator[Claimed]:
    """Give the source of a run's tasks, and release its claims at the end."""
    source = work.source or InOrder(work.tasks)
    claims = Claimed(source, work.store, pack.dataset_id, halt, on_event)
    try:
        yield claims
    finally:
        claims.release()
