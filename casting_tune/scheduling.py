"""Gives the cells to Ray Tune and tells how each epoch and trial ended; or runs the same cells in a plain loop.

Comes in: tasks (a configuration and its label), a pack, a store, and what resources a trial takes. Goes out: Events, in
the order in which things happen; the rows are in the store by then. Tune only schedules: it gets finished cells and no
search space, and its own experiment state is thrown away. Knows no sweep files and no tables.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casting_tune import memory, packing, run, tasks
from casting_tune.errors import CastingTuneError, ResourcesError
from casting_tune.pack import Pack
from casting_tune.rows import Place
from casting_tune.tasks import Asha, Claimed, Event, Halt, Source, Task, Work, claimed, end_with, run_task, watched
from casting_tune.trial import Epoch, TrialConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STARTING_S = 120  # a cluster whose workers are still on their way gets this long to show the first
LOST_WORKERS = 3  # a cell whose process dies more often than this is given up; a node that dies does not count
MALLOC = (
    # glibc returns large blocks to the system at every free: keeping them made augmentation 1.6 to 2 times faster
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648:glibc.malloc.top_pad=268435456"
)
ENVIRONMENT = {
    "GLIBC_TUNABLES": MALLOC,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its boxes cannot be turned off by verbose=0
    "RAY_memory_monitor_refresh_ms": "0",  # its kill ends the whole Tune run (ray 2.60), the kernel's ends one worker
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's to answer
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # its state is thrown away, and of 10,000 trials it is 100 MB a time
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an event that tells of no epoch carries no objective
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a trial takes. `n_at_once` None: as many as fit.

    `share`, where there is one, gives each configuration a share of a GPU of its own, at most `gpus`. A trial whose
    memory runs out on it runs again with twice as much, until it has a whole GPU.
    """

    cpus: float = 1
    gpus: float = 0
    n_at_once: int | None = None
    share: Callable[[TrialConfig], float] | None = None


class _Halted(BaseException):
    """Ends a trial of the plain loop after an epoch, on its way through whatever catches errors."""


def run_inline(work: Work, pack: Pack, *, on_event: Callable[[Event], None], halt: Halt | None = None) -> None:
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
) -> None:
    """Run every task as a Ray Tune trial, on this machine or on the cluster at `address`.

    Workers are reused from trial to trial; the packed images go to each node once, through Ray's object store. A trial
    whose process or node dies runs again; one whose process dies too often becomes a row with status error.

    Raises:
        ResourcesError: no node has what a trial takes.
    """
    halt = halt or Halt()
    with _ray(address) as ray, claimed(work, pack, halt, on_event) as source:
        from ray import tune

        _check_resources(ray, resources)
        _check_object_store(ray, pack)
        scratch = Path(tempfile.mkdtemp(prefix="casting-tune-"))
        broken: list[CastingTuneError] = []
        n_short: Counter[int] = Counter()  # how often a task ran out of the memory of its share

        def give(index: int) -> Task:
            task = source.tasks[index]
            if resources.share is None:
                return task
            return replace(task, gpus=packing.more(resources.share(task.config), times=n_short[index]))

        def give_more(index: int) -> None:
            n_short[index] += 1
            source.hand_out_again(index)

        follower = _follower(work, source, pack, on_event=on_event, give_more=give_more, broken=broken)
        cpus, gpus = resources.cpus, resources.gpus
        try:
            here = os.getpid() if address is None else None
            sent = replace(work, tasks=(), source=None, driver=here)  # a task travels with its trial
            trainable = tune.with_parameters(_trainable, work=sent, pack=pack)
            tune.Tuner(
                tune.with_resources(trainable, lambda config: {"cpu": cpus, "gpu": _share(config["task"], gpus)}),
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
                    stop=_stopper(halt),
                    failure_config=tune.FailureConfig(max_failures=-1),  # the follower counts
                    log_to_file=False,
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if broken:
            raise broken[0]


def _share(task: Task, gpus: float) -> float:
    """Return the GPUs of a task: its own share, or what every trial takes."""
    return gpus if task.gpus is None else task.gpus


def _trainable(config: dict[str, Any], work: Work, pack: Pack) -> None:
    """Run one task in a worker; every report carries one event.

    A trial that ASHA stops stays in its report: Tune ends its thread there when the worker takes the next trial.

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
        if work.asha and epoch and epoch.epoch < task.config.epochs:  # nothing is saved by a stop after the last epoch
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

    Those are the trials that were lost and the trials that ASHA stopped. `broken` takes what fails here: it is raised
    when Tune has ended, since an exception in a callback would end Tune with a traceback.
    """
    from ray import tune

    def tell(event: Event) -> None:
        if event.kind == "ended" and not event.retried:
            try:
                source.told(event.task, str(event.status))
            except CastingTuneError as failure:
                broken.append(failure)
        on_event(event)

    def give_row(index: int, status: Literal["error", "stopped"], error: str | None) -> None:
        if source.halt.wished.is_set():
            return  # it goes on from its checkpoint when the sweep does
        try:
            row = tasks.give_row(work, pack, source.tasks[index], status, error)
        except CastingTuneError as failure:
            broken.append(failure)
            return
        tell(tasks.ended(index, row))

    class Follower(tune.Callback):  # type: ignore[misc]
        def __init__(
            self, tell: Callable[[Event], None], give_row: Callable[..., None], give_more: Callable[[int], None]
        ) -> None:
            # held by the object, not by the class: Tune pickles classes whole, and a console cannot be pickled
            self.tell, self.give_row, self.give_more = tell, give_row, give_more
            self.ended: set[int] = set()
            self.short: set[str] = set()  # Tune trials whose share of a GPU was too small
            self.n_lost: Counter[int] = Counter()

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks into a state that we never restore

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            del iteration, trials, info
            event = dict(result["event"])
            epoch = event.pop("epoch")
            told = Event(**event, epoch=Epoch(**epoch) if epoch else None)
            if told.task in self.ended:
                return  # its process was lost when it had told its end, and the next one only tells it again
            if told.kind == "ended" and not told.retried:
                self.ended.add(told.task)
            if told.retried and told.status == "oom" and trial.config["task"].may_have_more:
                self.short.add(trial.trial_id)
            else:
                self.short.discard(trial.trial_id)
            self.tell(told)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            if trial.config["index"] in self.ended:
                return
            if trial.trial_id in self.short:
                self.give_more(trial.config["index"])
            else:
                self.give_row(trial.config["index"], "stopped", None)

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            cause = _raised(trial)
            asked_for = isinstance(getattr(cause, "cause", None), _Again)
            if not asked_for and not _of_node(cause):
                self.n_lost[trial.config["index"]] += 1
                if self.n_lost[trial.config["index"]] == LOST_WORKERS:
                    trial.max_failures = 0  # once more, and the next loss is its last

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            del iteration, trials, info
            if trial.config["index"] in self.ended:
                return
            told = _raised(trial)
            cause = getattr(told, "cause", None) or told  # what was raised there, without Ray's coloured frame
            named = "Ray names no cause" if cause is None else f"{type(cause).__name__}: {cause}"
            error = f"The trial's process was lost: {named}".strip().splitlines()[0]
            self.give_row(trial.config["index"], "error", error)

    return Follower(tell, give_row, give_more)


def _raised(trial: Any) -> BaseException | None:
    """Return what a Tune trial's last failure was (ray 2.60).

    Tune has written it a moment ago, into the driver's own folder of this run. `Trial.get_pickled_error` looks in the
    storage, where that file comes only with the next synchronisation. None where Tune itself gave the trial up.
    """
    from ray import cloudpickle

    if trial.run_metadata.pickled_error_filename is None:
        return None
    raised: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return raised


def _of_node(cause: BaseException | None) -> bool:
    """Say whether a process was lost with its node (ray 2.60).

    Ray hears of a dead process from its node within a second. Of a dead node it hears nothing: the connection is gone,
    "temporarily unavailable", and only seconds later the health check finds that "its node has died".
    """
    from ray.exceptions import ActorUnavailableError, RayActorError

    if isinstance(cause, ActorUnavailableError):
        return True
    return isinstance(cause, RayActorError) and (cause.preempted or "node has died" in str(cause))


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
        except CastingTuneError as failure:  # an exception in a searcher would end Tune with a traceback
            broken.append(failure)
            return None
        return None if index is None else {"index": index, "task": give(index)}

    return Queue(next_task)


def _stopper(halt: Halt) -> Any:
    """Return what ends every trial at its next event but its last once a halt is wished."""
    from ray.tune import Stopper

    class Halting(Stopper):  # type: ignore[misc]
        def __init__(self, halt: Halt) -> None:
            self.halt = halt

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id
            return self.halt.wished.is_set() and result["event"]["kind"] != "ended"

        def stop_all(self) -> bool:
            return False

    return Halting(halt)


def _scheduler(asha: Asha | None) -> Any:
    """Return Tune's scheduler; its clock is the epoch.

    Tune's own choice of the next trial (ray 2.60) looks at every trial that there ever was, several times a trial:
    with ten thousand that took longer than all else. Only those that have not ended can be chosen.
    """
    from ray.tune import schedulers
    from ray.tune.experiment import Trial

    def first(_: Any, tune_controller: Any) -> Any:
        waiting = [t for t in tune_controller.get_live_trials() if t.status in (Trial.PENDING, Trial.PAUSED)]
        return min(waiting, key=lambda t: (t.status == Trial.PAUSED, t.config["index"]), default=None)

    class Fifo(schedulers.FIFOScheduler):  # type: ignore[misc]
        choose_trial_to_run = first

    class Halving(schedulers.ASHAScheduler):  # type: ignore[misc]
        choose_trial_to_run = first

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


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Start a Ray of our own, or join the one at `address`; quiet, and gone (or left) at the end."""
    wanted = dict(ENVIRONMENT)
    if address is not None and (Path.home() / ".ray" / "auth_token").exists():
        wanted["RAY_AUTH_MODE"] = "token"  # Ray 2.60 starts clusters with the token, and joins without it
    if address is not None and (n_nodes := len(_startable())):
        wanted["TUNE_MAX_PENDING_TRIALS_PG"] = str(n_nodes)  # else one trial waits, and nodes start one after the other
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    scratch = tempfile.mkdtemp(prefix="ct-")  # short: Ray puts sockets below it, and their paths are 107 bytes at most
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.tune")}
    try:
        _start(ray, address, scratch)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray takes it for itself, and aborts
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a trial's failure is a row and a line of ours
        yield ray
    finally:
        _shut_down(ray)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
        shutil.rmtree(scratch, ignore_errors=True)


def _shut_down(ray: Any) -> None:
    """Shut Ray down while nothing is collected.

    A handle of an actor that another thread's garbage collection takes at that moment asks a core that is gone, and Ray
    2.60 then ends the whole process ("the language frontend accesses the Ray's worker after it is shutdown").
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collecting:
            gc.enable()


def _start(ray: Any, address: str | None, scratch: str) -> None:
    """Start Ray on the loopback, or join a cluster; ResourcesError where none answers."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        loopback: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": scratch}
        _start_here(ray, **loopback, **quiet)
        return
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "://" not in address:  # Ray would wait for minutes for a port of nobody's
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, **quiet)
    except (OSError, ValueError) as error:
        raise ResourcesError(
            f"No Ray cluster answers at '{address}' ({str(error).splitlines()[0]}). Start one, write 'auto' or "
            "host:port, see that RAY_AUTH_MODE and the token are the cluster's, or leave out --address."
        ) from error


def _start_here(ray: Any, **options: Any) -> None:
    """Start Ray on this machine, at the second try if need be; ResourcesError where it does not come up."""
    for last in (False, True):
        try:
            ray.init("local", num_cpus=cpus_here(), **options)
            return
        except Exception as error:  # Ray 2.60 raises a bare one if its processes take more than 30 s to come up
            ray.shutdown()
            if last:
                reason = str(error).partition("\n")[0]
                raise ResourcesError(
                    f"Ray does not start on this machine ({reason}). See that it is not overloaded and try again, or "
                    "go without Ray: --inline."
                ) from error


def capacity(address: str | None, *, inline: bool) -> tuple[int, float]:
    """Return how many CPUs and GPUs trials may use: of the cluster at `address`, else those that this machine shows."""
    if address is None or inline:
        if not shows_gpu():
            return cpus_here(), 0
        import torch

        return cpus_here(), torch.cuda.device_count()
    with _ray(address) as ray:
        _check_answers(ray, address)
        nodes = _nodes(ray, wait=True)
        return int(sum(node.get("CPU", 0) for node in nodes)), sum(node.get("GPU", 0) for node in nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The GPUs that trials may share: the memory of the smallest one, how many there are, and CPUs beside them."""

    gpu_bytes: int
    n_gpus: int
    n_cpus: int


def measure(
    configs: Sequence[TrialConfig],
    pack: Pack,
    *,
    place: Place,
    groups: NDArray[np.int64] | None,
    address: str | None,
    on_probe: Callable[[int, int, dict[str, Any] | str], None],
) -> Devices:
    """Ask each node for the memory of its GPU, and probe some configurations, each alone on a GPU, in workers.

    The driver may have no GPU, and where it has one it holds none of its memory. The GPUs of one node count as alike.

    Args:
        configs: what is probed, as many at the same time as there are GPUs.
        pack: the images.
        place: what a trial would be given.
        groups: photographs of the images, [n], where a split needs them.
        address: of the cluster; None starts Ray here.
        on_probe: told (position, how many have ended, row of probes or the error in its place).
    """
    with _ray(address) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes] or ["DEFAULT"]
        # a hundredth, since another sweep may hold the rest; a task that holds part of a GPU ends with its process
        ask = ray.remote(num_cpus=0, num_gpus=0.01)(_device_bytes)
        gpu_bytes = min(ray.get([ask.options(scheduling_strategy=on).remote(place.device) for on in strategies]))
        probe = ray.remote(num_cpus=1, num_gpus=1)(_probe)
        sent = ray.put(pack)
        running = {probe.remote(config, sent, place, groups): i for i, config in enumerate(configs)}
        n_probes = len(running)
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            position = running.pop(ended)
            on_probe(position, n_probes - len(running), ray.get(ended))
        each = _nodes(ray, wait=False)
        n_gpus = int(sum(node.get("GPU", 0) for node in each))
        return Devices(gpu_bytes=gpu_bytes, n_gpus=n_gpus, n_cpus=int(sum(node.get("CPU", 0) for node in each)))


def _device_bytes(device: str) -> int:
    import torch

    return memory.total(torch.device(device))


def _probe(config: TrialConfig, pack: Pack, place: Place, groups: NDArray[np.int64] | None) -> dict[str, Any] | str:
    """Return a row of probes, or why there is none: the trial itself will say it in its row."""
    try:
        return run.probe(config, pack, place, groups)
    except Exception as error:  # whatever a network, driver or kernel raises
        return f"{type(error).__name__}: {error}".splitlines()[0]


def shows_gpu() -> bool:
    """Say whether this machine may have a GPU; a Linux without a device file has none, and need not wait for torch."""
    devices = ("nvidia[0-9]*", "dxg", "kfd")  # of CUDA, of WSL, of ROCm
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in devices)


def ray_version() -> str:
    """Return the version of Ray that schedules."""
    return importlib.metadata.version("ray")


def cpus_here() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_resources(ray: Any, resources: Resources) -> None:
    """Raise ResourcesError where no node could ever run a trial: Ray would wait for such a node for ever."""
    nodes = _nodes(ray, wait=False)
    for kind, needed in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > most:
            raise ResourcesError(
                f"A trial asks for {needed:g} {kind}, and the largest node has {most:g}. Ask for less."
            )


def _check_object_store(ray: Any, pack: Pack) -> None:
    """Raise ResourcesError where the images do not fit a node's object store, to which they go whole.

    Ray 2.60 would put them into files on that node's disk instead, and every batch would be read from there.
    """
    here = ray.get_runtime_context().get_node_id()
    needed, stores = pack.images.nbytes, []
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and "object_store_memory" in has and (has.get("CPU") or node["NodeID"] == here):
            stores.append(has["object_store_memory"])
    least = min(stores, default=float("inf"))
    if needed > least:
        raise ResourcesError(
            f"The packed images take {needed / 2**30:.2f} GiB, and a node's Ray object store holds "
            f"{least / 2**30:.2f} GiB. Pack them smaller with --pack-size, or give Ray more: 'ray start "
            f"--object-store-memory {int(1.2 * needed)}' on a cluster, RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION=0.6 "
            "on this machine; --inline needs none."
        )


def _check_answers(ray: Any, address: str) -> None:
    """Raise ResourcesError where a cluster lets us in and then runs nothing for us, which only a trial would show.

    Ray 2.60 does so where it asks for no token and we send one. Without the token of a cluster that asks for one, none
    is let in. A cluster without room is no fault: it answers later.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return

    class Probe:
        def answer(self) -> bool:
            return True

    try:
        ray.get(ray.remote(num_cpus=0)(Probe).remote().answer.remote(), timeout=STARTING_S)
    except ray.exceptions.RayActorError as error:
        raise ResourcesError(
            f"The Ray cluster at '{address}' lets us in and runs nothing for us: it asks for no token, and "
            "RAY_AUTH_MODE=token, or a ~/.ray/auth_token, is here. Start its nodes with RAY_AUTH_MODE=token and that "
            "token, or set RAY_AUTH_MODE=disabled here."
        ) from error
    except ray.exceptions.GetTimeoutError:
        return


def _nodes(ray: Any, *, wait: bool) -> list[dict[str, float]]:
    """Return what each node has or, where the cluster starts nodes for waiting trials, what each of those will have.

    Just after `ray up` there is the head alone, on which no trial runs: `wait` gives the others time to come.
    """
    deadline = time.monotonic() + (STARTING_S if wait else 0)
    while True:
        nodes = _startable() or [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU") for node in nodes) or time.monotonic() >= deadline:
            return nodes
        time.sleep(1)


def _startable() -> list[dict[str, float]]:
    """Return the resources of the nodes that `ray up` lets the autoscaler start, read on its head; none elsewhere."""
    file = Path.home() / "ray_bootstrap_config.yaml"
    if not file.is_file():
        return []
    import yaml

    kinds = yaml.safe_load(file.read_text())["available_node_types"].values()
    # with machines of one's own Ray knows no resources before the machine has joined
    return [kind["resources"] for kind in kinds if kind["resources"] for _ in range(kind.get("max_workers", 0))]
