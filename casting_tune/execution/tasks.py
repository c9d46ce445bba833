"""What is to run, in which order, and how one task runs: its retries and its memory.

Input: tasks (a configuration and its label), a pack, a store. Output: Events, in the order in which
they happen; the rows are in the store by then. Does not know Ray: `ray_tune` runs tasks in workers,
`inline` in a plain loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from casting_tune.config import UNLIMITED, Allowance, Epoch, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.store.attempts import attempts_since, read_cell
from casting_tune.store.store import Store
from casting_tune.training.records import Ending, Place, TrialContext
from casting_tune.training.trial import halved, lost, run_trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
HANG_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A cell to train.

    Attributes:
        config: the cell.
        label: its name for a reader.
        attempts: how many attempts the cell had before this run.
        gpus: share of a GPU by the memory of its network; None: all tasks get the same.
    """

    config: TrialConfig
    label: str
    attempts: int = 0
    gpus: float | None = None

    @property
    def may_have_more(self) -> bool:
        """Return whether the task has part of a GPU by its memory, so it can get more."""
        return self.gpus is not None and 0 < self.gpus < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a task: it started, an epoch ended, or the trial ended.

    Attributes:
        task: position of the task.
        kind: what happened.
        epoch: the epoch, for "epoch".
        status: how the trial ended, for "ended".
        error: the reason, if the trial did not complete.
        traceback: of the error, if known; see `schema.TRIALS`.
        test_accuracy: share of correct test images, for a completed trial.
        duration_s: of the trial.
        images_from: where the images of a completed training were; see `schema.TRIALS`.
        retried: the task runs again: the trial ended in an error, or ran out of memory and gets
            more of a GPU.
    """

    task: int
    kind: Literal["started", "epoch", "ended"]
    epoch: Epoch | None = None
    status: str | None = None
    error: str | None = None
    traceback: str | None = None
    test_accuracy: float | None = None
    duration_s: float | None = None
    images_from: str | None = None
    retried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asha:
    """Asynchronous successive halving.

    After `grace_epochs` epochs, and after every `reduction_factor` times as many, a trial continues
    only if its objective is among the best 1 / `reduction_factor` so far (Li et al., "A System for
    Massively Parallel Hyperparameter Tuning", 2020).
    """

    objective: Literal["validation_loss", "validation_accuracy"]
    grace_epochs: int
    reduction_factor: int
    max_epochs: int


class Source(Protocol):
    """Decides in the driver's process what runs next; `tasks` may grow as it does."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks handed out so far, or all of them."""

    def next_task(self) -> int | None:
        """Return the position of the next task.

        None: no task before a running one ends, or no more tasks.
        """

    def on_ended(self, task: int, status: str) -> None:
        """Record that a task has ended and will not be retried; its row is in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a worker needs except the images: small, sent once.

    Attributes:
        tasks: the tasks, in their order.
        store: takes the rows.
        sweep: name of the sweep.
        place: where trials run.
        groups: [n] group number of each image, or None.
        allowance: limits of a trial, and what follows a failure.
        hang_s: a trial that has not ended so long after its time limit loses its process.
        trial: has the signature of `training.trial.run_trial` and writes the trial's rows.
        source: hands out `tasks`, which are its own; None: they run in their order.
        asha: stops weak trials early; None: all trials complete.
        driver: a worker ends with this process of its machine.
    """

    tasks: Sequence[Task]
    store: Store
    sweep: str
    place: Place
    groups: NDArray[np.int64] | None = None
    allowance: Allowance = UNLIMITED
    hang_s: float = HANG_S
    trial: Callable[..., dict[str, Any]] = run_trial
    source: Source | None = None
    asha: Asha | None = None
    driver: int | None = None

    def context(self, task: Task) -> TrialContext:
        """Return the context of a task's trial."""
        return TrialContext(
            sweep=self.sweep,
            label=task.label,
            place=self.place,
            groups=self.groups,
            allowance=self.allowance,
            after=task.attempts,
        )


class Halt:
    """A request to stop: no new trial starts, and running trials stop after their current epoch."""

    def __init__(self) -> None:
        self.requested = threading.Event()

    def __reduce__(self) -> tuple[type[Halt], tuple[()]]:
        return Halt, ()  # Tune copies and pickles its arguments; only the driver can request


class InOrder:
    """The source of a fixed list."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.n_given = 0

    def next_task(self) -> int | None:
        """Return the next position of the list."""
        if self.n_given == len(self.tasks):
            return None
        self.n_given += 1
        return self.n_given - 1

    def on_ended(self, task: int, status: str) -> None:
        """Do nothing: the list is fixed."""


def run_task(
    work: Work, pack: Pack, index: int, task: Task, on_event: Callable[[Event], None]
) -> Event:
    """Run one task in this process and return how it ended.

    `retried` in the result: the task is to run again, in a new process. A trial that ran out of
    memory on a share of a GPU has not ended: it runs again with more.
    """
    on_event(Event(task=index, kind="started"))
    before = _rows_of_this_run(work, pack, task)
    n_errors = sum(row["status"] == "error" for row in before)
    last = before[-1]["status"] if before else None
    if last in ("completed", "diverged", "timeout") or (
        last == "error" and n_errors > work.allowance.retries
    ):  # its process was lost after its row was written, by the watchdog or by chance
        event = ended(index, before[-1])
    else:
        row = _run(work, pack, index, task, before=before, on_event=on_event)
        # attempts of earlier runs of the sweep do not count against this one
        retried = row["status"] == "error" and n_errors < work.allowance.retries
        event = replace(ended(index, row), retried=retried)
        if event.status == "oom" and task.may_have_more:
            error = f"out of memory with {task.gpus:.2g} of a GPU: it runs again with more"
            event = replace(event, retried=True, error=error)
    on_event(event)
    return event


def _run(
    work: Work,
    pack: Pack,
    index: int,
    task: Task,
    *,
    before: list[dict[str, Any]],
    on_event: Callable[[Event], None],
) -> dict[str, Any]:
    """Run the trial of a task, again with smaller forward passes while memory runs out."""
    context = work.context(task)
    if task.gpus is not None:
        context = replace(context, place=replace(work.place, gpus=task.gpus))
    context = replace(context, allowance=_after_oom(work, task, before))
    while True:
        row = work.trial(
            task.config,
            pack,
            work.store,
            context=context,
            on_epoch=lambda epoch: on_event(Event(task=index, kind="epoch", epoch=epoch)),
        )
        before.append(row)
        smaller = _after_oom(work, task, before)
        if row["status"] != "oom" or smaller == context.allowance:
            return row
        on_event(replace(ended(index, row), retried=True))
        on_event(Event(task=index, kind="started"))
        context = replace(context, allowance=smaller)


def _rows_of_this_run(work: Work, pack: Pack, task: Task) -> list[dict[str, Any]]:
    """Return the rows of a task's attempts in this run, in their order.

    Failures of another sweep of this store since the run began do not count; cells that it
    completed do.
    """
    cell, epochs = cell_id(task.config, pack.dataset_id), task.config.epochs
    since = attempts_since(work.store, cell, task.attempts, epochs=epochs)
    rows = read_cell(work.store, "trials", cell, since, epochs=epochs).to_pylist()
    return [row for row in rows if row["sweep"] == work.sweep or row["status"] == "completed"]


def _after_oom(work: Work, task: Task, before: Sequence[dict[str, Any]]) -> Allowance:
    """Return a trial's allowance; with `accumulate`, half the images of the attempt that failed.

    The number never falls below the minimum of the network: then the allowance stays that of the
    last attempt. Attempts on a share of a GPU do not count.
    """
    if task.may_have_more:
        return replace(work.allowance, gpu_share=task.gpus or 1.0)
    out = [
        row
        for row in before
        if row["status"] == "oom" and (task.gpus is None or row.get("gpus") in (None, task.gpus))
    ]
    if work.allowance.on_oom == "fail" or not out:
        return work.allowance
    least = min(row.get("micro_batch") or task.config.batch_size for row in out)
    half = halved(task.config, least)
    if half is None:  # already the minimum
        half = least if least < task.config.batch_size else None
    return replace(work.allowance, micro_batch=half)


def give_row(work: Work, pack: Pack, task: Task, ending: Ending) -> dict[str, Any]:
    """Write and return the row of a trial that cannot write its own."""
    return lost(task.config, pack, work.store, context=work.context(task), ending=ending)


def log(event: Event, label: str) -> None:
    """Log that a task started, or how it ended; epochs are rows of the store."""
    if event.kind == "started":
        LOG.info("%s: started", label)
    elif event.kind == "ended" and event.status in ("completed", "stopped"):
        LOG.info("%s: %s after %.1f s", label, event.status, event.duration_s or 0)
    elif event.kind == "ended":
        LOG.warning(
            "%s: %s%s: %s\n%s",
            label,
            event.status,
            ", runs again" if event.retried else "",
            event.error,
            event.traceback or "No traceback.",
        )


def ended(index: int, row: dict[str, Any]) -> Event:
    """Return the event of a row of trials."""
    return Event(
        task=index,
        kind="ended",
        status=row["status"],
        error=row.get("error"),
        traceback=row.get("traceback"),
        test_accuracy=row.get("test_accuracy"),
        duration_s=row.get("duration_s"),
        images_from=row.get("images_from"),
    )
