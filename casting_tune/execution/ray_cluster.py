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
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from casting_tune.errors import ResourcesError
from casting_tune.execution import ray_failures, ray_private

LOG = logging.getLogger(__name__)
MALLOC = (
    # glibc returns large blocks to the system at every free: keeping them made augmentation 1.6 to
    # 2 times faster
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648:glibc.malloc.top_pad=268435456"
)
SPINS = "10000"
"""How often a thread of torch's (GNU OpenMP) that waits looks for work before it sleeps, in place of 300,000 times.

Where two programs have threads on the same cores, those that look keep those that work waiting. Two
trainings of mobilenetv2 (batch size 8, 128 px) with two threads each on two cores made 4, 4 and 16
steps together in 8 s, with this 15 each time, with 1,000 28 to 32; one alone 30, 27 and 30, with
this 30, 29 and 28, with 1,000 26 to 27.
"""
BLAS_THREADS = "1"
"""Threads of numpy's and scipy's OpenBLAS. One product waits, spinning, until all of them have run.

Where other programs have the cores, that wait is most of the time. `photographs.find` of 1,000 real
images on two cores at a load of 8 to 9 took 26 and 27 s of CPU with two threads, and 4.3 and 4.5 s
with one (n = 2 each, in turn). What takes long here has threads or processes of its own. The
environment may say otherwise.
"""
SPARING = {"GOMP_SPINCOUNT": SPINS, "OPENBLAS_NUM_THREADS": BLAS_THREADS}
"""For every process of ours, before it imports numpy or torch: threads that wait use no CPU."""
PRELOADED = "casting_tune.execution.worker_imports"
"""What a first training step needs: Ray's workers import it at their start, for seconds, while the driver goes on."""
ENVIRONMENT = {
    "GLIBC_TUNABLES": MALLOC,
    **SPARING,
    "RAY_USAGE_STATS_ENABLED": "0",
    # SIGTERM is ours to answer, from Ray's first moment on
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_preload_python_modules": PRELOADED,
    # else Ray (2.60) kills idle workers as soon as trials reserve the CPUs, and starts others for
    # them
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_AIR_NEW_OUTPUT": "0",  # its boxes cannot be turned off by verbose=0
    # Ray's default is 15: with another busy program on the machine, trials would get a thirtieth of
    # the CPU
    "RAY_worker_niceness": "0",
    # its kill ends the whole Tune run (ray 2.60), the kernel's ends one worker
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's to answer
    # its state is thrown away, and of 10,000 trials it is 100 MB a time
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # an event that tells of no epoch carries no objective
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
JOINING = ENVIRONMENT | {"RAY_gcs_server_port_wait_time_s": "5"}
"""The environment in which a cluster is joined: Ray 2.60 tries 5 times to reach its head, not 20 times."""
WAITING = "TUNE_MAX_PENDING_TRIALS_PG"
"""How many trials Tune lets wait for a worker, read when it starts; 1 where nothing is said (ray 2.60)."""


@contextlib.contextmanager
def running(
    address: str | None,
    *,
    n_slots: int,
    ahead: Ahead | None = None,
    unless: threading.Event | None = None,
) -> Iterator[Any]:
    """Give the Ray at `address`, and leave it at the end; or one of this machine, and end it.

    Gives None if `unless` is set before the Ray of this machine has started.
    """
    if address is None:
        with ahead or Ahead() as here, _sigterm_stays() as give_back:
            here.start(n_slots)
            with ray_private.plain_actors():  # imports Tune while Ray starts
                ray = here.ray(unless=unless)
                give_back()
                yield ray
        return
    ray_private.check_version()
    wanted = dict(JOINING)
    if (Path.home() / ".ray" / "auth_token").exists():
        wanted["RAY_AUTH_MODE"] = (
            "token"  # Ray 2.60 starts clusters with the token, and joins without it
        )
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


END_S = 60.0
"""How long the end of a command waits for a Ray that is still starting.

Ray's own limit for a start is 30 s.
"""


class _Start:
    """One start of Ray in its thread: `up` when it runs, `over` when it is to end, `gone` when it has ended."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.up: Future[Any] = Future()
        self.begun, self.over, self.gone = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._live, name="ray", daemon=True)

    def _live(self) -> None:
        try:
            with _environment(ENVIRONMENT):
                self.begun.set()
                with (  # a short name: paths of the sockets below it have 107 bytes at most
                    tempfile.TemporaryDirectory(
                        prefix="ct-", ignore_cleanup_errors=True
                    ) as scratch,
                    _quiet() as ray,
                ):
                    if self.over.is_set():
                        return
                    _start(ray, self.n_slots, scratch, over=self.over)
                    self.up.set_result(ray)
                    self.over.wait()
        except BaseException as error:
            if self.up.done():
                raise
            self.up.set_exception(error)  # for whoever waits
        finally:
            self.gone.set()


class Ahead:
    """A Ray on this machine that starts in a thread of its own while the driver reads, packs and plans.

    The kernel kills Ray's processes with the thread that started them (PR_SET_PDEATHSIG): it lives
    as long as they do, and shuts them down. Once it has ended it can start another.
    """

    def __init__(self) -> None:
        self._begun: _Start | None = None

    def start(self, n_slots: int) -> None:
        """Begin to start Ray, with a worker for each of `n_slots` trials at once; only the first call does.

        Raises:
            ResourcesError: this version of Ray is not supported, or no thread can be started.
        """
        if self._begun is None:
            ray_private.check_version()
            self._begun = _Start(n_slots)
            try:
                self._begun.thread.start()
            except RuntimeError as error:  # "can't start new thread"
                self._begun = None
                raise ray_failures.not_started(error, Path(tempfile.gettempdir())) from error
            self._begun.begun.wait()  # whatever imports Ray now finds its environment

    def ray(self, *, unless: threading.Event | None = None) -> Any:
        """Wait until Ray has started, and return it; None if `unless` is set before.

        Raises:
            ResourcesError: it does not start.
        """
        assert self._begun is not None
        while not wait([self._begun.up], timeout=0.1).done:
            if unless is not None and unless.is_set():
                return None
        return self._begun.up.result()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *raised: object) -> None:
        """End Ray; where it is still starting, as soon as it has started.

        After `END_S` it is left to its thread: it ends with this process at the latest.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.over.set()
            if begun.gone.wait(END_S):
                begun.thread.join()


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
    """Give Ray, silent, and shut it down.

    Raises:
        ResourcesError: this process uses Ray already; that Ray is left alone.
    """
    import ray

    if ray.is_initialized():
        raise ResourcesError(
            "This process is already connected to a Ray. Call ray.shutdown() first, or run the sweep in a process of "
            "its own; to use that cluster, pass its address there (--address)."
        )
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.tune")}
    for name in levels:
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # a trial's failure is a row and a line of ours
    try:
        yield ray
    finally:
        _shut_down(ray)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _shut_down(ray: Any) -> None:
    """Shut Ray down and wait for its processes, while nothing is collected.

    A handle of an actor that another thread's garbage collection takes at that moment asks a core
    that is gone, and Ray 2.60 then ends the whole process ("the language frontend accesses the
    Ray's worker after it is shutdown").
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown(wait_for_processes=True)
        LOG.info("Ray is shut down")
    finally:
        if collecting:
            gc.enable()


QUIET: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}


def _join(ray: Any, address: str) -> None:
    """Join a cluster; ResourcesError within seconds if none answers."""
    named, origin = address, "--address"
    if address == "auto":
        named, origin = os.environ.get("RAY_ADDRESS") or "auto", "RAY_ADDRESS"
    try:
        if named == "auto":
            origin = "--address auto, the newest cluster on this machine"
            named = ray_private.resolve("auto")
        if named.startswith("ray://"):
            raise ResourcesError(
                f"Ray Client is not supported: '{named}' (from {origin}). Run the command on the cluster's head with "
                "--address auto, for example by 'ray exec' or 'ray job submit'."
            )
        host, _, port = named.rpartition(":")
        if not (host and port.isdigit()) or "/" in host:
            raise ValueError("not host:port")
        host, _, port = ray_private.resolve(named).rpartition(":")
        ray_failures.check_answers(host.strip("[]"), int(port))
        ray.init(address, **QUIET)
        LOG.info("joined the Ray cluster at %s", named)
    except (OSError, ValueError, OverflowError) as error:
        raise ResourcesError(
            f"No Ray cluster answers at '{named}' (from {origin}): {ray_failures.reason(error)}. Start one, use 'auto' "
            "or host:port, check that RAY_AUTH_MODE and the token are the cluster's, or run without --address."
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ResourcesError(
            f"Cannot join the Ray cluster at '{named}' (from {origin}): {reason}"
        ) from error


def _start(ray: Any, n_slots: int, scratch: str, *, over: threading.Event) -> None:
    """Start Ray on the loopback, at the second try if need be; ResourcesError where it does not start.

    Once it is `over` there is no second try.
    """
    loopback: dict[str, Any] = {
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": scratch,
    }
    for last in (False, True):
        try:
            LOG.info("Ray %s starts on this machine for %d trials at once", ray_version(), n_slots)
            started = time.monotonic()
            with ray_private.lean_start():
                ray.init("local", num_cpus=n_slots, **loopback, **QUIET)
            LOG.info("Ray is up after %.1f s", time.monotonic() - started)
            return
        except (
            Exception
        ) as error:  # Ray 2.60 raises a bare one if its processes take more than 30 s to start
            LOG.warning("Ray did not start", exc_info=True)
            ray.shutdown(wait_for_processes=True)
            if last or over.is_set():
                raise ray_failures.not_started(error, Path(scratch)) from error


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
