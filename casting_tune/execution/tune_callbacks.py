"""The classes that Ray Tune calls: callback, searcher, stopper, schedulers.

Input: a TuneDriver. Output: objects that Tune calls. Importing this module imports Ray Tune.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import Any

from ray import tune
from ray.tune import schedulers
from ray.tune.search import Searcher

from casting_tune.config import Epoch
from casting_tune.execution import ray_failures, ray_private
from casting_tune.execution.tasks import Asha, Event, Halt
from casting_tune.execution.tune_driver import TuneDriver
from casting_tune.training.records import Ending

LOG = logging.getLogger(__name__)
LOST_WORKERS = 3
"""A cell whose process dies more often is given up; the death of a node does not count."""


class RunAgain(Exception):
    """Make Tune run a task again, in a new process."""


class Follower(tune.Callback):  # type: ignore[misc]
    """Passes events on, and writes rows for trials that could not: lost ones and stopped ones.

    Attributes:
        training: Tune trials whose task has started and will report again.
    """

    def __init__(self, driver: TuneDriver) -> None:
        self.driver = driver
        self.ended: set[int] = set()
        self.short: set[str] = set()  # Tune trials whose share of a GPU was too small
        self.n_lost: Counter[int] = Counter()
        self.training: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into a state that is never restored

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass an event of a worker on."""
        del iteration, trials, info
        columns = dict(result["event"])
        epoch = columns.pop("epoch")
        event = Event(**columns, epoch=Epoch(**epoch) if epoch else None)
        if event.kind == "ended":
            self.training.discard(trial.trial_id)
        else:
            self.training.add(trial.trial_id)
        if event.task in self.ended:
            return  # its process was lost after it reported its end; the next one reports it again
        if event.kind == "ended" and not event.retried:
            self.ended.add(event.task)
        if event.retried and event.status == "oom" and trial.config["task"].may_have_more:
            self.short.add(trial.trial_id)
        else:
            self.short.discard(trial.trial_id)
        self.driver.on_event(event)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Give a larger share of a GPU, or a row to a trial that the scheduler stopped."""
        del iteration, trials, info
        self.training.discard(trial.trial_id)
        index = trial.config["index"]
        if index in self.ended:
            return
        if trial.trial_id in self.short:
            self.driver.give_more(index)
        else:
            self.driver.give_row(index, Ending(status="stopped"))

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Count how often a task lost its process."""
        del iteration, trials, info
        self.training.discard(trial.trial_id)
        failure = ray_private.last_failure(trial)
        if isinstance(getattr(failure, "cause", None), RunAgain):
            return
        index, task = trial.config["index"], trial.config["task"]
        LOG.warning("%s: its process was lost: %s", task.label, ray_failures.report(failure))
        if not ray_private.died_with_node(failure):
            self.n_lost[index] += 1
            if self.n_lost[index] == LOST_WORKERS:
                ray_private.allow_one_more_failure(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Give a row to a trial that is given up."""
        del iteration, trials, info
        self.training.discard(trial.trial_id)
        index = trial.config["index"]
        if index in self.ended:
            return
        failure = ray_private.last_failure(trial)
        cause = getattr(failure, "cause", None) or failure  # without Ray's coloured frame
        reason = "Ray names no cause" if cause is None else f"{type(cause).__name__}: {cause}"
        error = f"The trial's process was lost: {reason}".strip().splitlines()[0]
        report = ray_failures.report(failure)
        self.driver.give_row(index, Ending(status="error", error=error, traceback=report))


class Queue(Searcher):  # type: ignore[misc]
    """Hands out one task per request, so that no list is copied, however long it is."""

    def __init__(self, driver: TuneDriver) -> None:
        super().__init__()
        self.driver = driver
        self.n_running = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled with the Tuner, never restored

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial; None: not yet."""
        del trial_id
        config = self.driver.next_trial()
        if config is None:
            return None if self.n_running else str(Searcher.FINISHED)
        self.n_running += 1
        return config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Count a trial that has ended; the follower reports how."""
        del trial_id, result, error
        self.n_running -= 1

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store shows what is left."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store shows what is left."""


class HaltStopper(tune.Stopper):  # type: ignore[misc]
    """Ends every trial at its next event, except its last one, after a halt was requested.

    Trials that wait for a worker report nothing: Tune stops them all when no trial is `training`.
    """

    def __init__(self, halt: Halt, training: Collection[str]) -> None:
        self.halt, self.training = halt, training

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial is to stop."""
        del trial_id
        return self.halt.requested.is_set() and result["event"]["kind"] != "ended"

    def stop_all(self) -> bool:
        """Return whether all trials are to stop."""
        return self.halt.requested.is_set() and not self.training


def _no_choice(*_: Any) -> None:
    """Name no trial to run next; see `scheduler`."""


class _Fifo(schedulers.FIFOScheduler):  # type: ignore[misc]
    choose_trial_to_run = _no_choice


class _Halving(schedulers.ASHAScheduler):  # type: ignore[misc]
    choose_trial_to_run = _no_choice


def scheduler(asha: Asha | None) -> Any:
    """Return Tune's scheduler; its unit of time is the epoch.

    It names no trial to run next, so Tune (ray 2.60) starts waiting trials in their order and gives
    a free worker to a trial that has none. Tune's own choice looks at every trial so far, several
    times per trial: with ten thousand that takes longer than everything else. It also names trials
    whose worker is still starting, and ends that worker in favour of the free one: trials shorter
    than the start of a worker never get a second worker, and start it again and again.
    """
    if asha is None:
        return _Fifo()
    return _Halving(
        time_attr="epoch",
        metric="objective",
        mode="min" if asha.objective == "validation_loss" else "max",
        max_t=max(asha.max_epochs, asha.grace_epochs),
        grace_period=asha.grace_epochs,
        reduction_factor=asha.reduction_factor,
        stop_last_trials=False,  # else it stops trials before the predictions of the last epoch
    )
