"""Gives the cells to Ray Tune and tells how each epoch and trial ended; or runs the same cells in a plain loop.

Comes in: tasks (a configuration and its label), a pack, a store, and what resources a trial takes.
Goes out: Events, in the order in which things happen; the rows are in the store by then. Tune only
schedules: it gets finished cells and no search space, and its own experiment state is thrown away.
Knows no sweep files and no tables.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from casting_tune.config import Epoch
from casting_tune.data.pack import Pack
from casting_tune.errors import CastingTuneError
from casting_tune.execution import nodes, ray_cluster, ray_private, tasks
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import (
    Asha,
    Claimed,
    Event,
    Halt,
    Source,
    Task,
    Work,
    claimed,
    end_with,
    run_task,
    watched,
)
from casting_tune.planning import gpu_sharing

LOG = logging.getLogger(__name__)
LOST_WORKERS = (
    3  # a cell whose process dies more often than this is given up; a node that dies does not count
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Halted(BaseException):
    """Ends a trial of the plain loop after an epoch, on its way through whatever catches errors."""


def run_inline(
    work: Work, pack: Pack, *, on_event: Callable[[Event], None], halt: Halt | None = None
) -> None:
    """Run every task in this process, one after the other."""
    halt = halt or Halt()

    def tell(event: Event) -> None:
        on_event(event)
        if halt.wished.is_set() and event.kind != "ended":
            raise _Halted

    with claimed(work, pack, halt, on_event) as source, contextlib.suppress(_Halted):
        while (index := source.next_task()) is not None:
            while (event := run_task(work, pack, index, source.tasks[index], tell)).retried:
                pass
            source.told(index, str(event.status))


def run_ray(
    work: Work,
    pack: Pack,
    *,
    resources: Resources,
    address: str | None,
    on_event: Callable[[Event], None],
    halt: Halt | None = None,
    ahead: ray_cluster.Ahead | None = None,
) -> None:
    """Run every task as a Ray Tune trial, on this machine or on the cluster at `address`.

    Workers are reused from trial to trial; the packed images go to each node once, through Ray's
    object store. A trial whose process or node dies runs again; one whose process dies too often
    becomes a row with status error. A Ray that was started `ahead` on this machine is used, and
    ended with the last trial.

    Raises:
        ResourcesError: no node has what a trial takes.
    """
    halt = halt or Halt()
    n_slots = nodes.slots(resources, work.place)
    with (
        ray_cluster.running(address, n_slots=n_slots, ahead=ahead, unless=halt.wished) as ray,
        claimed(work, pack, halt, on_event) as source,
    ):
        if halt.wished.is_set():
            return  # while Ray was starting

        from ray import tune

        nodes.check_resources(ray, resources, address)
        nodes.check_object_store(ray, pack)
        scratch = Path(tempfile.mkdtemp(prefix="casting-tune-"))
        broken: list[CastingTuneError] = []
        n_short: Counter[int] = Counter()  # how often a task ran out of the memory of its share

        def give(index: int) -> Task:
            task = source.tasks[index]
            if resources.share is None:
                return task
            return replace(
                task, gpus=gpu_sharing.more(resources.share(task.config), times=n_short[index])
            )

        def give_more(index: int) -> None:
            n_short[index] += 1
            source.hand_out_again(index)

        follower = _follower(
            work, source, pack, on_event=on_event, give_more=give_more, broken=broken
        )
        cpus, gpus = (
            1 if address is None else resources.cpus,
            resources.gpus,
        )  # here a slot is a CPU to Ray
        if address is not None:
            os.environ.setdefault(
                ray_cluster.WAITING, str(_n_starting(ray, resources, in_order=work.source is None))
            )
        try:
            here = os.getpid() if address is None else None
            sent = replace(
                work, tasks=(), source=None, driver=here
            )  # a task travels with its trial
            trainable = tune.with_parameters(_trainable, work=sent, pack=pack)
            tune.Tuner(
                tune.with_resources(
                    trainable, lambda config: {"cpu": cpus, "gpu": _share(config["task"], gpus)}
                ),
                tune_config=tune.TuneConfig(
                    search_alg=_queue(source, give, broken),
                    scheduler=_scheduler(work.asha),
                    num_samples=-1 if work.source or resources.share else len(work.tasks),
                    max_concurrent_trials=resources.n_at_once,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[follower],
                    stop=_stopper(halt, follower.training),
                    failure_config=tune.FailureConfig(max_failures=-1),  # the follower counts
                    log_to_file=False,
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if broken:
            raise broken[0]


def _n_starting(ray: Any, resources: Resources, *, in_order: bool) -> int:
    """Return how many workers of a cluster may start at the same time: with one, they start one after the other.

    A search chooses by what others found and takes no more trials ahead than there are nodes to be
    started for them; neither do trials that take what they need of a GPU.
    """
    if not in_order or resources.share is not None:
        return max(1, len(nodes.startable()))
    takes = {
        kind: needed
        for kind, needed in (("CPU", resources.cpus), ("GPU", resources.gpus))
        if needed
    }
    each = nodes.each(ray, wait=False)
    return max(1, sum(min(int(node.get(kind, 0) / takes[kind]) for kind in takes) for node in each))


def _share(task: Task, gpus: float) -> float:
    """Return the GPUs of a task: its own share, or what every trial takes."""
    return gpus if task.gpus is None else task.gpus


def _trainable(config: dict[str, Any], work: Work, pack: Pack) -> None:
    """Run one task in a worker; every report carries one event.

    A trial that ASHA stops stays in its report: Tune ends its thread there when the worker takes
    the next trial.

    Raises:
        _Again: the trial ended in an error and has a retry left; Tune starts it afresh in a new process.
    """
    from ray import tune

    task: Task = config["task"]

    def report(event: Event) -> None:
        if event.kind == "started":
            begin_again()
        result: dict[str, Any] = {"event": asdict(event)}
        epoch = event.epoch
        if (
            work.asha and epoch and epoch.epoch < task.config.epochs
        ):  # nothing is saved by a stop after the last epoch
            result |= {"epoch": epoch.epoch, "objective": getattr(epoch, work.asha.objective)}
        tune.report(result)

    if work.driver is not None:
        end_with(work.driver)
    with watched(work, pack, task) as begin_again:
        ended = run_task(work, pack, config["index"], task, report)
    if ended.retried and ended.status != "oom":  # with more of a GPU it is another Tune trial
        raise _Again


class _Again(Exception):
    """Asks Tune to run a task once more."""


def _follower(
    work: Work,
    source: Claimed,
    pack: Pack,
    *,
    on_event: Callable[[Event], None],
    give_more: Callable[[int], None],
    broken: list[CastingTuneError],
) -> Any:
    """Return the Tune callback that passes events on and gives trials rows that could not write their own.

    Those are the trials that were lost and the trials that ASHA stopped. `broken` takes what fails
    here: it is raised when Tune has ended, since an exception in a callback would end Tune with a
    traceback.
    """
    from ray import tune

    def tell(event: Event) -> None:
        if event.kind == "ended" and not event.retried:
            try:
                source.told(event.task, str(event.status))
            except CastingTuneError as failure:
                broken.append(failure)
        on_event(event)

    def give_row(
        index: int, status: Literal["error", "stopped"], error: str | None, detail: str = ""
    ) -> None:
        if source.halt.wished.is_set():
            return  # it goes on from its checkpoint when the sweep does
        try:
            row = tasks.give_row(work, pack, source.tasks[index], status, error, detail=detail)
        except CastingTuneError as failure:
            broken.append(failure)
            return
        tell(tasks.ended(index, row))

    class Follower(tune.Callback):  # type: ignore[misc]
        def __init__(
            self,
            tell: Callable[[Event], None],
            give_row: Callable[..., None],
            give_more: Callable[[int], None],
        ) -> None:
            # held by the object, not by the class: Tune pickles classes whole, and a console cannot
            # be pickled
            self.tell, self.give_row, self.give_more = tell, give_row, give_more
            self.ended: set[int] = set()
            self.short: set[str] = set()  # Tune trials whose share of a GPU was too small
            self.n_lost: Counter[int] = Counter()
            self.training: set[str] = (
                set()
            )  # Tune trials whose task has started and will report again

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks into a state that we never restore

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            del iteration, trials, info
            event = dict(result["event"])
            epoch = event.pop("epoch")
            told = Event(**event, epoch=Epoch(**epoch) if epoch else None)
            (self.training.discard if told.kind == "ended" else self.training.add)(trial.trial_id)
            if told.task in self.ended:
                # its process was lost when it had told its end, and the next one only tells it
                # again
                return
            if told.kind == "ended" and not told.retried:
                self.ended.add(told.task)
            if told.retried and told.status == "oom" and trial.config["task"].may_have_more:
                self.short.add(trial.trial_id)
            else:
                self.short.discard(trial.trial_id)
            self.tell(told)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            self.training.discard(trial.trial_id)
            if trial.config["index"] in self.ended:
                return
            if trial.trial_id in self.short:
                self.give_more(trial.config["index"])
            else:
                self.give_row(trial.config["index"], "stopped", None)

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            self.training.discard(trial.trial_id)
            cause = ray_private.last_failure(trial)
            asked_for = isinstance(getattr(cause, "cause", None), _Again)
            if not asked_for:
                LOG.warning(
                    "%s: its process was lost: %s", trial.config["task"].label, _report(cause)
                )
            if not asked_for and not ray_private.died_with_node(cause):
                self.n_lost[trial.config["index"]] += 1
                if self.n_lost[trial.config["index"]] == LOST_WORKERS:
                    ray_private.allow_one_more_failure(trial)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            self.training.discard(trial.trial_id)
            if trial.config["index"] in self.ended:
                return
            told = ray_private.last_failure(trial)
            cause = (
                getattr(told, "cause", None) or told
            )  # what was raised there, without Ray's coloured frame
            named = "Ray names no cause" if cause is None else f"{type(cause).__name__}: {cause}"
            error = f"The trial's process was lost: {named}".strip().splitlines()[0]
            self.give_row(trial.config["index"], "error", error, _report(told))

    return Follower(tell, give_row, give_more)


def _report(raised: BaseException | None) -> str:
    """Return all that Ray reports of a failure, without colours: a worker's traceback, or how its process ended."""
    return "" if raised is None else _COLOUR.sub("", "".join(traceback.format_exception(raised)))


def _queue(source: Source, give: Callable[[int], Task], broken: list[CastingTuneError]) -> Any:
    """Return a Tune searcher that hands out the source's tasks, one a request: no list is copied, however long."""
    from ray.tune.search import Searcher

    class Queue(Searcher):  # type: ignore[misc]
        def __init__(self, next_task: Callable[[], dict[str, Any] | None]) -> None:
            super().__init__()
            self.next_task = next_task
            self.n_running = 0

        def __getstate__(self) -> dict[str, Any]:
            return {}  # pickled with the Tuner, never restored

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            del trial_id
            given = self.next_task()
            if given is None:
                return None if self.n_running else str(Searcher.FINISHED)
            self.n_running += 1
            return given

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            del trial_id, result, error
            self.n_running -= 1  # what there is to learn of it, the follower tells

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: the store says what is left."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing to restore: the store says what is left."""

    def next_task() -> dict[str, Any] | None:
        try:
            index = None if broken else source.next_task()
        except (
            CastingTuneError
        ) as failure:  # an exception in a searcher would end Tune with a traceback
            broken.append(failure)
            return None
        return None if index is None else {"index": index, "task": give(index)}

    return Queue(next_task)


def _stopper(halt: Halt, training: Collection[str]) -> Any:
    """Return what ends every trial at its next event but its last once a halt is wished.

    Trials that wait for a worker report nothing: Tune stops them all as soon as none is `training`
    any more.
    """
    from ray.tune import Stopper

    class Halting(Stopper):  # type: ignore[misc]
        def __init__(self, halt: Halt, training: Collection[str]) -> None:
            self.halt, self.training = halt, training

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id
            return self.halt.wished.is_set() and result["event"]["kind"] != "ended"

        def stop_all(self) -> bool:
            return self.halt.wished.is_set() and not self.training

    return Halting(halt, training)


def _scheduler(asha: Asha | None) -> Any:
    """Return Tune's scheduler; its clock is the epoch.

    It names no trial to run next, so Tune (ray 2.60) starts what waits in its order, and gives a
    worker that is free to a trial that has none. Tune's own choice looks at every trial that there
    ever was, several times a trial: of ten thousand that took longer than all else. And it names
    trials whose worker is still starting: that worker is ended for the free one, so that trials
    shorter than a worker's start never get a second worker, and start it for ever.
    """
    from ray.tune import schedulers

    def none(*_: Any) -> None:
        return None

    class Fifo(schedulers.FIFOScheduler):  # type: ignore[misc]
        choose_trial_to_run = none

    class Halving(schedulers.ASHAScheduler):  # type: ignore[misc]
        choose_trial_to_run = none

    if asha is None:
        return Fifo()
    return Halving(
        time_attr="epoch",
        metric="objective",
        mode="min" if asha.objective == "validation_loss" else "max",
        max_t=max(asha.max_epochs, asha.grace_epochs),
        grace_period=asha.grace_epochs,
        reduction_factor=asha.reduction_factor,
        stop_last_trials=False,  # else it would stop a trial before its last epoch's predictions
    )
