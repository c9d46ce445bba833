"""What is to run, in which order, and how one task runs: its retries, its time, its memory.

Comes in: tasks (a configuration and its label), a pack, a store. Goes out: Events, in the order in
which things happen; the rows are in the store by then. Knows no Ray: `scheduling` runs tasks in
workers or in a plain loop.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import psutil

from casting_tune.config import UNLIMITED, Allowance, Epoch, Status, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.store.store import Store
from casting_tune.training import trial as run
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
HANG_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A cell to train, how often that was tried before this run, and on what.

    `gpus` is the share of a GPU that it was given by the memory of its network; None: all tasks are
    given the same.
    """

    config: TrialConfig
    label: str
    attempts: int = 0
    gpus: float | None = None

    @property
    def may_have_more(self) -> bool:
        """Say whether the task shares a GPU by its memory, so that it can be given more if that was too little."""
        return self.gpus is not None and 0 < self.gpus < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a task: it started, an epoch ended, or the trial ended.

    Attributes:
        task: position of the task.
        kind: what happened.
        epoch: the epoch, for "epoch".
        status: how the trial ended, for "ended".
        error: why, where it did not complete.
        traceback: where, if that is known; see `schema.TRIALS`.
        test_accuracy: share of the test images that it got right, for a completed trial.
        duration_s: of the trial.
        retried: the task runs once more: the trial ended in an error, or ran out of memory and gets more of a GPU.
    """

    task: int
    kind: Literal["started", "epoch", "ended"]
    epoch: Epoch | None = None
    status: str | None = None
    error: str | None = None
    traceback: str | None = None
    test_accuracy: float | None = None
    duration_s: float | None = None
    retried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020).

    After `grace_epochs` epochs, and after every `reduction_factor` times as many, a trial goes on
    only if its objective is among the best 1 / `reduction_factor` of those that came so far.
    """

    objective: Literal["validation_loss", "validation_accuracy"]
    grace_epochs: int
    reduction_factor: int
    max_epochs: int


class Source(Protocol):
    """Decides in the driver's process what runs next, and learns how it ended; `tasks` grows as it does."""

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks handed out so far, or all of them."""

    def next_task(self) -> int | None:
        """Return the position of the next task; None: none until a running one has ended, or none at all."""

    def told(self, task: int, status: str) -> None:
        """Take in that a task has ended for good; its row is in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything a worker needs beside the images: small, sent once.

    `groups` numbers the photographs, [n] or None; `trial` has the signature of `run.run_trial` and
    writes its rows. `source`, where there is one, hands out `tasks`, which are its own; else they
    run in their order. A trial whose memory ran out runs again with half as many images at a time
    where `on_oom` says accumulate. A trial that does not end `hang_s` seconds after its time is up
    loses its process. A worker ends with the process `driver` of its machine.
    """

    tasks: Sequence[Task]
    store: Store
    sweep: str
    place: Place
    retries: int
    groups: NDArray[np.int64] | None = None
    allowance: Allowance = UNLIMITED
    on_oom: Literal["fail", "accumulate"] = "fail"
    hang_s: float = HANG_S
    trial: Callable[..., dict[str, Any]] = run.run_trial
    source: Source | None = None
    asha: Asha | None = None
    driver: int | None = None


class Halt:
    """A wish to stop: no new trial starts, and those that run stop after the epoch that they are in."""

    def __init__(self) -> None:
        self.wished = threading.Event()

    def __reduce__(self) -> tuple[type[Halt], tuple[()]]:
        return Halt, ()  # Tune copies and pickles what it is given; the wish is the driver's alone


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

    def told(self, task: int, status: str) -> None:
        """Nothing to learn: the tasks are decided."""


class Claimed:
    """A source whose cells are claimed in the store, so that two sweeps never train one cell at the same time.

    A cell that another process holds waits until it is free; one that was completed there meanwhile
    is told as ended.
    """

    def __init__(
        self,
        inner: Source,
        store: Store,
        dataset_id: str,
        halt: Halt,
        tell: Callable[[Event], None],
    ) -> None:
        self.inner, self.store, self.dataset_id, self.halt, self.tell = (
            inner,
            store,
            dataset_id,
            halt,
            tell,
        )
        self.held: dict[int, Callable[[], None]] = {}
        self.waiting: list[int] = []
        self.again: list[int] = []

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the source within."""
        return self.inner.tasks

    def next_task(self) -> int | None:
        """Claim a task and return it; None: none that is free, until one of ours has ended, or none at all."""
        while not self.halt.wished.is_set():
            if self.again:
                return self.again.pop(0)
            index = self.inner.next_task()
            tried = self.waiting if index is None else [index]
            if not tried:
                return None
            self.waiting = [i for i in self.waiting if i not in tried]
            for i in tried:
                cell = cell_id(self.tasks[i].config, self.dataset_id)
                claim = self.store.claim(cell, self.halt.wished.set)
                if claim is None:
                    self.waiting.append(i)
                elif (row := self._completed(cell, self.tasks[i])) is not None:
                    claim()
                    self.inner.told(i, "completed")
                    self.tell(ended(i, row))
                else:
                    self.held[i] = claim
                    self.waiting += tried[tried.index(i) + 1 :]
                    return i
            if index is None and self.held:
                return None  # asked again when one of ours has ended
            if index is None and self.waiting:
                self.halt.wished.wait(1.0)  # only cells that others hold are left
        return None

    def _completed(self, cell: str, task: Task) -> dict[str, Any] | None:
        return self.store.completed_since(cell, task.attempts, epochs=task.config.epochs)

    def told(self, task: int, status: str) -> None:
        """Let go of a task that has ended for good."""
        self.inner.told(task, status)
        self.held.pop(task)()

    def hand_out_again(self, task: int) -> None:
        """Let a task that is held still be the next."""
        self.again.append(task)

    def release(self) -> None:
        """Let go of what is held still.

        Raises StoreError if any of it had passed to another process.
        """
        with contextlib.ExitStack() as stack:  # of all of it, whatever one says
            while self.held:
                stack.callback(self.held.popitem()[1])


@contextlib.contextmanager
def claimed(work: Work, pack: Pack, halt: Halt, tell: Callable[[Event], None]) -> Iterator[Claimed]:
    """Give the source of a run's tasks, each claimed before it runs."""
    source = Claimed(work.source or InOrder(work.tasks), work.store, pack.dataset_id, halt, tell)
    try:
        yield source
    finally:
        source.release()


def run_task(
    work: Work, pack: Pack, index: int, task: Task, on_event: Callable[[Event], None]
) -> Event:
    """Run one task in this process and return how it ended; retried: it is to run once more, in a new process.

    Memory that ran out on a share of a GPU is not the trial's end: it is to run again with more.
    """
    on_event(Event(task=index, kind="started"))
    before = _of_this_run(work, pack, task)
    n_errors = sum(row["status"] == "error" for row in before)
    last = before[-1]["status"] if before else None
    if last in ("completed", "diverged", "timeout") or (
        last == "error" and n_errors > work.retries
    ):
        event = ended(
            index, before[-1]
        )  # its process was lost after its row was written: by `watched`, or by chance
        on_event(event)
        return event
    allowance = _after_oom(work, task, before)
    place = work.place if task.gpus is None else replace(work.place, gpus=task.gpus)
    while True:
        row = work.trial(
            task.config,
            pack,
            work.store,
            sweep=work.sweep,
            label=task.label,
            place=place,
            groups=work.groups,
            allowance=allowance,
            on_epoch=lambda epoch: on_event(Event(task=index, kind="epoch", epoch=epoch)),
            after=task.attempts,
        )
        before.append(row)
        smaller = _after_oom(work, task, before)
        if row["status"] != "oom" or smaller == allowance:
            break
        on_event(replace(ended(index, row), retried=True))
        on_event(Event(task=index, kind="started"))
        allowance = smaller
    # attempts of earlier runs of the sweep are not held against this one
    event = replace(ended(index, row), retried=row["status"] == "error" and n_errors < work.retries)
    if event.status == "oom" and task.may_have_more:
        told = f"its memory ran out on {task.gpus:.2g} of a GPU: it runs again with more"
        event = replace(event, retried=True, error=told)
    on_event(event)
    return event


def _of_this_run(work: Work, pack: Pack, task: Task) -> list[dict[str, Any]]:
    """Return the rows of a task's attempts in this run, in their order: there are some if it runs again.

    What another sweep of the store has failed at since this run began is not held against it; what
    it completed counts.
    """
    cell, epochs = cell_id(task.config, pack.dataset_id), task.config.epochs
    since = work.store.attempts_since(cell, task.attempts, epochs=epochs)
    rows = work.store.read_cell("trials", cell, since, epochs=epochs).to_pylist()
    return [row for row in rows if row["sweep"] == work.sweep or row["status"] == "completed"]


def _after_oom(work: Work, task: Task, before: Sequence[dict[str, Any]]) -> Allowance:
    """Return a trial's allowance, with half as many images at a time as when memory ran out, if that is asked for.

    They are never fewer than the network can be trained with: then the allowance stays that of the
    last attempt. A share of a GPU that was too small counts for nothing: only a whole one can be.
    """
    if task.may_have_more:
        return replace(work.allowance, gpu_share=task.gpus or 1.0)
    out = [
        row
        for row in before
        if row["status"] == "oom" and (task.gpus is None or row.get("gpus") in (None, task.gpus))
    ]
    if work.on_oom == "fail" or not out:
        return work.allowance
    least = min(row.get("micro_batch") or task.config.batch_size for row in out)
    half = run.halved(task.config, least)
    if half is None:  # the network cannot train with fewer: once more as it was, or the trial's end
        half = least if least < task.config.batch_size else None
    return replace(work.allowance, micro_batch=half)


@cache
def end_with(driver: int) -> None:
    """End this process soon after a driver that was killed; once asked, for good.

    Ray needs up to seven seconds for that (seen with 2.60), in which a new driver and the old
    workers would train the same cells.
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
    """End this process if a trial hangs: a row with status timeout first, and a hard end where even that is stuck.

    Gives what starts the time anew, for a task that is tried again in the same process.
    """
    if work.allowance.max_seconds is None:
        yield lambda: None
        return

    def expire() -> None:
        told = f"The trial hung: it did not end within {work.allowance.max_seconds:g} s, nor {work.hang_s:g} s later."
        stack = traceback.format_stack(sys._current_frames().get(trial))
        give_row(work, pack, task, "timeout", told, detail="".join(stack))
        os.kill(os.getpid(), signal.SIGKILL)

    latest, trial = work.allowance.max_seconds + work.hang_s, threading.get_ident()
    watches: list[threading.Timer] = []

    def end() -> None:
        faulthandler.cancel_dump_traceback_later()
        while watches:
            watches.pop().cancel()

    def begin() -> None:
        end()
        watches.append(threading.Timer(latest, expire))
        watches[0].daemon = True
        watches[0].start()
        faulthandler.dump_traceback_later(
            latest + work.hang_s, exit=True
        )  # needs no turn of the interpreter

    begin()
    try:
        yield begin
    finally:
        end()


def give_row(
    work: Work, pack: Pack, task: Task, status: Status, error: str | None, *, detail: str = ""
) -> dict[str, Any]:
    """Write the row of a trial that cannot write its own; `detail` is the traceback, or what else is known."""
    return run.lost(
        task.config,
        pack,
        work.store,
        sweep=work.sweep,
        label=task.label,
        place=work.place,
        groups=work.groups,
        status=status,
        error=error,
        detail=detail,
        after=task.attempts,
    )


def log(event: Event, label: str) -> None:
    """Log what happened to a task: that it started, or how it ended; epochs are rows of the store."""
    if event.kind == "started":
        LOG.info("%s: started", label)
    elif event.kind == "ended" and event.status in ("completed", "stopped"):
        LOG.info("%s: %s after %.1f s", label, event.status, event.duration_s or 0)
    elif event.kind == "ended":
        again = ", runs again" if event.retried else ""
        LOG.warning(
            "%s: %s%s: %s\n%s",
            label,
            event.status,
            again,
            event.error,
            event.traceback or "No traceback.",
        )


def ended(index: int, row: dict[str, Any]) -> Event:
    """Return the event that a row of trials tells."""
    return Event(
        task=index,
        kind="ended",
        status=row["status"],
        error=row.get("error"),
        traceback=row.get("traceback"),
        test_accuracy=row.get("test_accuracy"),
        duration_s=row.get("duration_s"),
    )
