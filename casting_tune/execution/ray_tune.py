"""Gives the cells to Ray Tune and reports how each epoch and trial ended.

Input: tasks (a configuration and its label), a pack, a store, the resources of a trial. Output:
Events, in the order in which they happen; the rows are in the store by then. Tune only schedules:
it gets finished cells and no search space, and its own experiment state is deleted. Knows no sweep
files and no tables.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from casting_tune.data.pack import Pack
from casting_tune.execution import node_copy, nodes, ray_cluster
from casting_tune.execution.claims import claimed
from casting_tune.execution.node_copy import PackFile
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Event, Halt, Task, Work, run_task
from casting_tune.execution.tune_driver import TuneDriver
from casting_tune.execution.watchdog import end_with, watched


def run_ray(
    work: Work,
    pack: Pack,
    *,
    resources: Resources,
    on_event: Callable[[Event], None],
    halt: Halt | None = None,
    ahead: ray_cluster.Ahead | None = None,
) -> None:
    """Run every task as a Ray Tune trial, on this machine or on the cluster of `resources`.

    Workers are reused for many trials. The packed images go to each node once (`nodes.sendable`). A
    trial whose process or node dies runs again; one whose process dies too often becomes a row with
    status error. A Ray that was started `ahead` on this machine is used, and ends with the last
    trial.

    Raises:
        ResourcesError: no node has the resources of a trial.
    """
    halt = halt or Halt()
    address, n_slots = resources.address, nodes.slots(resources, work.place)
    with (
        ray_cluster.running(address, n_slots=n_slots, ahead=ahead, unless=halt.requested) as ray,
        claimed(work, pack, halt, on_event) as source,
    ):
        if halt.requested.is_set():
            return  # while Ray was starting
        nodes.check_resources(ray, resources)
        sent = nodes.sendable(ray, pack, here=address is None)
        if address is not None:
            n_starting = _n_starting(ray, resources, in_order=work.source is None)
            os.environ.setdefault(ray_cluster.WAITING, str(n_starting))
        driver = TuneDriver(work, pack, source, resources, on_event)
        scratch = Path(tempfile.mkdtemp(prefix="casting-tune-"))
        try:
            _fit(driver, sent, halt, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if driver.broken:
            raise driver.broken[0]


def _fit(driver: TuneDriver, pack: Pack | PackFile, halt: Halt, scratch: Path) -> None:
    """Let Tune run all tasks."""
    from ray import tune

    from casting_tune.execution import tune_callbacks

    work, resources = driver.work, driver.resources
    is_here = resources.address is None
    # a task travels with its trial
    sent = replace(work, tasks=(), source=None, driver=os.getpid() if is_here else None)
    trainable = tune.with_parameters(_trainable, work=sent, pack=pack)
    # here a slot counts as one CPU for Ray; the lambda is pickled, so it captures numbers only
    cpus, gpus = 1 if is_here else resources.cpus, resources.gpus
    follower = tune_callbacks.Follower(driver)
    tune.Tuner(
        tune.with_resources(
            trainable,
            lambda config: {"cpu": cpus, "gpu": _gpus(config["task"], gpus)},
        ),
        tune_config=tune.TuneConfig(
            search_alg=tune_callbacks.Queue(driver),
            scheduler=tune_callbacks.scheduler(work.asha),
            num_samples=-1 if work.source or resources.share else len(work.tasks),
            max_concurrent_trials=resources.n_at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[follower],
            stop=tune_callbacks.HaltStopper(halt, follower.training),
            failure_config=tune.FailureConfig(max_failures=-1),  # the follower counts
            log_to_file=False,
        ),
    ).fit()


def _n_starting(ray: Any, resources: Resources, *, in_order: bool) -> int:
    """Return how many workers of a cluster may start at the same time; by default Tune starts one.

    A search chooses by the results so far, so it hands out no more trials ahead than there are
    nodes to start. The same holds for trials that share a GPU by their memory.
    """
    if not in_order or resources.share is not None:
        return max(1, len(nodes.startable()))
    needed = {
        kind: amount
        for kind, amount in (("CPU", resources.cpus), ("GPU", resources.gpus))
        if amount
    }
    each = nodes.each(ray, wait=False)
    fitting = (min(int(node.get(kind, 0) / needed[kind]) for kind in needed) for node in each)
    return max(1, sum(fitting))


def _gpus(task: Task, gpus: float) -> float:
    """Return the GPUs of a task: its own share, or that of every trial."""
    return gpus if task.gpus is None else task.gpus


def _trainable(config: dict[str, Any], work: Work, pack: Pack | PackFile) -> None:
    """Run one task in a worker; every report carries one event.

    A trial that ASHA stops stays in its report: Tune ends its thread there when the worker takes
    the next trial.

    Raises:
        RunAgain: the trial ended in an error and may be retried; Tune starts it in a new process.
    """
    from ray import tune

    from casting_tune.execution.tune_callbacks import RunAgain

    task: Task = config["task"]

    def report(event: Event) -> None:
        if event.kind == "started":
            restart_limit()
        result: dict[str, Any] = {"event": asdict(event)}
        epoch = event.epoch
        # a stop after the last epoch would save nothing
        if work.asha and epoch and epoch.epoch < task.config.epochs:
            result |= {"epoch": epoch.epoch, "objective": getattr(epoch, work.asha.objective)}
        tune.report(result)

    if work.driver is not None:
        end_with(work.driver)
    images = node_copy.opened(pack)
    with watched(work, images, task) as restart_limit:
        event = run_task(work, images, config["index"], task, report)
    if event.retried and event.status != "oom":  # with more of a GPU it is another Tune trial
        raise RunAgain
