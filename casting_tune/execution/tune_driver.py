"""The driver's side of a sweep that Ray Tune schedules, without Ray.

Input: tasks and what becomes of them. Output: the next task for Tune, Events, and the rows of
trials that cannot write their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casting_tune.data.pack import Pack
from casting_tune.errors import CastingTuneError
from casting_tune.execution import tasks
from casting_tune.execution.claims import Claimed
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Event, Task, Work
from casting_tune.planning import gpu_sharing
from casting_tune.training.records import Ending


class TuneDriver:
    """What Tune's callbacks and its searcher share.

    Attributes:
        broken: what failed in a callback or in the searcher. It is raised when Tune has ended,
            because an exception there would end Tune with a traceback.
    """

    def __init__(
        self,
        work: Work,
        pack: Pack,
        source: Claimed,
        resources: Resources,
        on_event: Callable[[Event], None],
    ) -> None:
        self.work, self.pack, self.source = work, pack, source
        self.resources, self._on_event = resources, on_event
        self.broken: list[CastingTuneError] = []
        self._n_short: Counter[int] = Counter()  # how often a task's share of a GPU was too small

    def next_trial(self) -> dict[str, Any] | None:
        """Return the configuration of the next Tune trial: a task and its position, or None."""
        if self.broken:
            return None
        try:
            index = self.source.next_task()
        except CastingTuneError as failure:
            self.broken.append(failure)
            return None
        return None if index is None else {"index": index, "task": self._task(index)}

    def _task(self, index: int) -> Task:
        task, share = self.source.tasks[index], self.resources.share
        if share is None:
            return task
        gpus = gpu_sharing.more(share(task.config), times=self._n_short[index])
        return replace(task, gpus=gpus)

    def give_more(self, index: int) -> None:
        """Let a task run again with a larger share of a GPU."""
        self._n_short[index] += 1
        self.source.hand_out_again(index)

    def on_event(self, event: Event) -> None:
        """Pass an event on; the claim of a task that has ended is released first."""
        if event.kind == "ended" and not event.retried:
            try:
                self.source.on_ended(event.task, str(event.status))
            except CastingTuneError as failure:
                self.broken.append(failure)
        self._on_event(event)

    def give_row(self, index: int, ending: Ending) -> None:
        """Write the row of a trial that was lost or stopped, and pass its end on.

        After a halt it gets none: it continues from its checkpoint when the sweep does.
        """
        if self.source.halt.requested.is_set():
            return
        try:
            row = tasks.give_row(self.work, self.pack, self.source.tasks[index], ending)
        except CastingTuneError as failure:
            self.broken.append(failure)
            return
        self.on_event(tasks.ended(index, row))
