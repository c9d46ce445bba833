"""A Ray for the trials: one of this machine, which starts while the driver goes on, or the one that is joined.

Comes in: an address, or how many trials run at once. Goes out: Ray, quiet, gone or left at the end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from casting_tune.errors import ResourcesError

LOG = logging.getLogger(__name__)
MALLOC = (
    # glibc returns large blocks to the system at every free: keeping them made augmentation 1.6 to 2 times faster
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648:glibc.malloc.top_pad=268435456"
)
SPINS = "10000"
"""How often a thread of torch's (GNU OpenMP) that waits looks for work before it sleeps, in place of 300,000 times.

Where two programs have threads on the same cores, those that look keep those that work waiting. Two trainings of
mobilenetv2 (batch size 8, 128 px) with two threads each on two cores made 4, 4 and 16 steps together in 8 s, with this
15 each time, with 1,000 28 to 32; one alone 30, 27 and 30, with this 30, 29 and 28, with 1,000 26 to 27.
"""
BLAS_THREADS = "1"
"""Threads of numpy's and scipy's OpenBLAS. One product waits, spinning, until all of them have run.

Where other programs have the cores, that wait is most of the time. `photographs.find` of 1,000 real images on two cores
at a load of 8 to 9 took 26 and 27 s of CPU with two threads, and 4.3 and 4.5 s with one (n = 2 each, in turn). What
takes long here has threads or processes of its own. The environment may say otherwise.
"""
SPARING = {"GOMP_SPINCOUNT": SPINS, "OPENBLAS_NUM_THREADS": BLAS_THREADS}
"""For every process of ours, before it imports numpy or torch: threads that wait use no CPU."""
PRELOADED = "casting_tune.warm"
"""What a first training step needs: Ray's workers import it at their start, for seconds, while the driver goes on."""
ENVIRONMENT = {
    "GLIBC_TUNABLES": MALLOC,
    **SPARING,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # SIGTERM is ours to answer, from Ray's first moment on
    "RAY_preload_python_modules": PRELOADED,
    # else Ray (2.60) kills idle workers as soon as trials reserve the CPUs, and starts others for them
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_AIR_NEW_OUTPUT": "0",  # its boxes cannot be turned off by verbose=0
    # Ray's default is 15: with another busy program on the machine, trials would get a thirtieth of the CPU
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # its kill ends the whole Tune run (ray 2.60), the kernel's ends one worker
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's to answer
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # its state is thrown away, and of 10,000 trials it is 100 MB a time
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an event that tells of no epoch carries no objective
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
WAITING = "TUNE_MAX_PENDING_TRIALS_PG"
"""How many trials Tune lets wait for a worker, read when it starts; 1 where nothing is said (ray 2.60)."""


@contextlib.contextmanager
def running(address: str | None, *, n_slots: int, ahead: Ahead | None = None) -> Iterator[Any]:
    """Give the Ray at `address`, and leave it at the end; or one of this machine, and end it."""
    if address is None:
        with ahead or Ahead() as here, _sigterm_stays() as give_back:
            here.start(n_slots)
            with _plain_actors():  # imports Tune while Ray starts
                ray = here.ray()
                give_back()
                yield ray
        return
    wanted = dict(ENVIRONMENT)
    if (Path.home() / ".ray" / "auth_token").exists():
        wanted["RAY_AUTH_MODE"] = "token"  # Ray 2.60 starts clusters with the token, and joins without it
    with _environment(wanted), _sigterm_stays() as give_back, _quiet() as ray:
        _join(ray, address)
        give_back()
        yield ray


@contextlib.contextmanager
def _sigterm_stays() -> Iterator[Callable[[], None]]:
    """Give what sets SIGTERM's handler again: a Ray that was imported before us takes the signal, and aborts."""
    before = signal.getsignal(signal.SIGTERM)

    def give_back() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    yield give_back


ACTORS_OWN = ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")


@contextlib.contextmanager
def _plain_actors() -> Iterator[None]:
    """Let Tune's actors run in the workers that Ray has started already.

    Tune (ray 2.60) gives each actor environment variables of its own, and Ray an actor with such a process of its own,
    which would import everything once more. On this machine workers have the driver's environment anyway.
    """
    from ray.tune.execution import class_cache

    before = {name: getattr(class_cache, name) for name in ACTORS_OWN if hasattr(class_cache, name)}
    for name, variables in before.items():
        setattr(class_cache, name, type(variables)())
    try:
        yield
    finally:
        for name, variables in before.items():
            setattr(class_cache, name, variables)


class Ahead:
    """A Ray on this machine that starts in a thread of its own while the driver reads, packs and plans.

    The kernel kills Ray's processes with the thread that started them (PR_SET_PDEATHSIG): it lives as long as they do,
    and shuts them down. Once it has ended it can start another.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._up: Future[Any] = Future()
        self._begun, self._over = threading.Event(), threading.Event()

    def start(self, n_slots: int) -> None:
        """Begin to start Ray, with a worker for each of `n_slots` trials at once; only the first call does."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, args=(n_slots,), name="ray", daemon=True)
            self._thread.start()
            self._begun.wait()  # whatever imports Ray now finds its environment

    def ray(self) -> Any:
        """Wait until Ray is up, and return it; ResourcesError where it does not come up."""
        return self._up.result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *raised: object) -> None:
        """End Ray; where it is still starting, as soon as it is up."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._reset()

    def _live(self, n_slots: int) -> None:
        try:
            with _environment(ENVIRONMENT):
                self._begun.set()
                with (  # a short name: paths of the sockets below it have 107 bytes at most
                    tempfile.TemporaryDirectory(prefix="ct-", ignore_cleanup_errors=True) as scratch,
                    _quiet() as ray,
                ):
                    _start(ray, n_slots, scratch, over=self._over)
                    self._up.set_result(ray)
                    self._over.wait()
        except BaseException as error:
            if self._up.done():
                raise
            self._up.set_exception(error)  # for whoever waits


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Put what is `wanted` into the environment where that says nothing else, and leave it as it was."""
    before = {name: os.environ.get(name) for name in (*wanted, WAITING)}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Give Ray, silent, and shut it down."""
    import ray

    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.tune")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a trial's failure is a row and a line of ours
    try:
        yield ray
    finally:
        _shut_down(ray)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


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
        LOG.info("Ray is shut down")
    finally:
        if collecting:
            gc.enable()


UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""What Ray (2.60) starts on a head and a sweep on one machine has no use for."""
QUIET: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}


def _join(ray: Any, address: str) -> None:
    """Join a cluster; ResourcesError where none answers."""
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "://" not in address:  # Ray would wait for minutes for a port of nobody's
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, **QUIET)
        LOG.info("joined the Ray cluster at %s", address)
    except (OSError, ValueError) as error:
        raise ResourcesError(
            f"No Ray cluster answers at '{address}' ({str(error).splitlines()[0]}). Start one, write 'auto' or "
            "host:port, see that RAY_AUTH_MODE and the token are the cluster's, or leave out --address."
        ) from error


def _start(ray: Any, n_slots: int, scratch: str, *, over: threading.Event) -> None:
    """Start Ray on the loopback, at the second try if need be; ResourcesError where it does not come up.

    Once it is `over` there is no second try.
    """
    loopback: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": scratch}
    for last in (False, True):
        try:
            LOG.info("Ray %s starts on this machine for %d trials at once", ray_version(), n_slots)
            started = time.monotonic()
            with _few_processes():
                ray.init("local", num_cpus=n_slots, **loopback, **QUIET)
            LOG.info("Ray is up after %.1f s", time.monotonic() - started)
            return
        except Exception as error:  # Ray 2.60 raises a bare one if its processes take more than 30 s to come up
            LOG.warning("Ray did not start", exc_info=True)
            ray.shutdown()
            if last or over.is_set():
                reason = str(error).partition("\n")[0]
                raise ResourcesError(
                    f"Ray does not start on this machine ({reason}). See that it is not overloaded and try again, or "
                    "go without Ray: --inline."
                ) from error


@contextlib.contextmanager
def _few_processes() -> Iterator[None]:
    """Let Ray start without what a sweep on one machine has no use for.

    The processes of autoscaler, dashboard and log forwarding (ray 2.60 starts the dashboard's, without its pages, even
    where it is not wanted) each import Ray for a second or two, one after the other, before any worker starts.
    """
    from ray._private.node import Node

    def leave_out(node: object, **options: object) -> None:
        del node, options

    unused = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}
    for name in unused:
        setattr(Node, name, leave_out)
    try:
        yield
    finally:
        for name, start in unused.items():
            setattr(Node, name, start)


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
