"""The Ray of a run: on this machine, started while the driver continues, or a cluster.

Input: an address, or how many trials run at once. Output: a silent Ray, ended or left at the end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from casting_tune.errors import ResourcesError
from casting_tune.execution import ray_failures, ray_head, ray_private

LOG = logging.getLogger(__name__)
MALLOC = (
    # glibc returns large blocks to the system at every free: keeping them made augmentation 1.6 to
    # 2 times faster
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648"
    ":glibc.malloc.top_pad=268435456"
)
SPINS = "10000"
"""How often a waiting thread of torch (GNU OpenMP) looks for work before it sleeps, not 300,000.

If two programs have threads on the same cores, waiting threads block working ones. Two trainings of
mobilenetv2 (batch size 8, 128 px) with two threads each on two cores made 4, 4 and 16 steps
together in 8 s; with 10,000 they made 15 each time, with 1,000 28 to 32. One training alone made
30, 27 and 30; with 10,000 30, 29 and 28, with 1,000 26 to 27.
"""
BLAS_THREADS = "1"
"""Threads of OpenBLAS in numpy and scipy. A product waits, spinning, until all of them have run.

If other programs use the cores, that wait takes most of the time. `photo_groups.find` of 1,000 real
images on two cores at a load of 8 to 9 took 26 and 27 s of CPU with two threads, and 4.3 and 4.5 s
with one (n = 2 each, in turn). Long computations here have their own threads or processes. The
user's environment takes precedence.
"""
SPARING = {"GOMP_SPINCOUNT": SPINS, "OPENBLAS_NUM_THREADS": BLAS_THREADS}
"""For every process, before it imports numpy or torch: waiting threads use no CPU."""
PRELOADED = "casting_tune.execution.worker_imports"
"""Imports of a first training step: Ray's workers do them at their start, for seconds."""
ENVIRONMENT = {
    "GLIBC_TUNABLES": MALLOC,
    **SPARING,
    "RAY_USAGE_STATS_ENABLED": "0",
    # the driver handles SIGTERM, from Ray's first moment on
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_preload_python_modules": PRELOADED,
    # else Ray (2.60) kills idle workers when trials reserve the CPUs, and starts others
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_AIR_NEW_OUTPUT": "0",  # verbose=0 does not turn off its boxes
    # Ray's default is 15: with another busy program, trials would get a thirtieth of the CPU
    "RAY_worker_niceness": "0",
    # a kill by Ray's monitor ends the whole Tune run (ray 2.60); one by the kernel ends one worker
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep handles Ctrl-C
    # its state is not used; for 10,000 trials it is 100 MB each time
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # an event without an epoch has no objective
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
JOINING = ENVIRONMENT | {"RAY_gcs_server_port_wait_time_s": "5"}
"""The environment for joining a cluster: Ray 2.60 tries 5 times to reach its head, not 20."""
WAITING = "TUNE_MAX_PENDING_TRIALS_PG"
"""How many trials may wait for a worker, read when Tune starts; default 1 (ray 2.60)."""


@contextlib.contextmanager
def running(
    address: str | None,
    *,
    n_slots: int,
    ahead: Ahead | None = None,
    unless: threading.Event | None = None,
) -> Iterator[Any]:
    """Join the Ray at `address` and leave it at the end; or start one on this machine and end it.

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
        # Ray 2.60 starts clusters with the token, and joins without it
        wanted["RAY_AUTH_MODE"] = "token"
    with _environment(wanted), _sigterm_stays() as give_back, _quiet() as ray:
        _join(ray, address)
        give_back()
        yield ray


@contextlib.contextmanager
def _sigterm_stays() -> Iterator[Callable[[], None]]:
    """Give a function that restores the handler of SIGTERM.

    A Ray that was imported earlier takes the signal, and aborts.
    """
    before = signal.getsignal(signal.SIGTERM)

    def give_back() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    yield give_back


END_S = 60.0
"""Time limit at the end of a command for a Ray that is still starting; Ray's own is 30 s."""


class _Start:
    """One start of Ray in its thread: `up` when it runs, `over` ends it, `gone` when it ended."""

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
            self.up.set_exception(error)  # for the waiting thread
        finally:
            self.gone.set()


class Ahead:
    """A Ray on this machine that starts in a separate thread while the driver packs and plans.

    The kernel kills Ray's processes with the thread that started them (PR_SET_PDEATHSIG), so the
    thread lives as long as they do, and shuts them down. Then it can start another Ray.
    """

    def __init__(self) -> None:
        self._begun: _Start | None = None

    def start(self, n_slots: int) -> None:
        """Start Ray in a thread, with a worker for each of `n_slots` trials; once.

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
            self._begun.begun.wait()  # an import of Ray from now on finds its environment

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
        """End Ray, or wait up to `END_S` until it has started and end it then.

        After that it ends with this process at the latest.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.over.set()
            if begun.gone.wait(END_S):
                begun.thread.join()


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set missing environment variables, and restore the environment at the end."""
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
            "This process is already connected to a Ray. Call ray.shutdown() first, or run the "
            "sweep in a separate process; to use that cluster, pass its address there (--address)."
        )
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.tune")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # trials report their failures
    try:
        yield ray
    finally:
        _shut_down(ray)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _shut_down(ray: Any) -> None:
    """Shut Ray down and wait for its processes, with garbage collection off.

    If another thread collects the handle of an actor at that moment, Ray 2.60 ends the whole
    process ("the language frontend accesses the Ray's worker after it is shutdown").
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
    """Join a cluster, or raise ResourcesError within seconds."""
    named, origin = address, "--address"
    if address == "auto":
        named, origin = os.environ.get("RAY_ADDRESS") or "auto", "RAY_ADDRESS"
    try:
        if named == "auto":
            origin = "--address auto, the newest cluster on this machine"
            named = ray_private.resolve("auto")
        if named.startswith("ray://"):
            raise ResourcesError(
                f"Ray Client is not supported: '{named}' (from {origin}). Run the command on the "
                "cluster's head with --address auto, for example by 'ray exec' or 'ray job submit'."
            )
        host, _, port = named.rpartition(":")
        if not (host and port.isdigit()) or "/" in host:
            raise ValueError("not host:port")
        host, _, port = ray_private.resolve(named).rpartition(":")
        ray_head.check_answers(host.strip("[]"), int(port))
        ray_head.check_token(named, host.strip("[]"), int(port))
        ray.init(address, **QUIET)
        LOG.info("joined the Ray cluster at %s", named)
    except (OSError, ValueError, OverflowError) as error:
        raise ResourcesError(
            f"No Ray cluster answers at '{named}' (from {origin}): {ray_failures.reason(error)}. "
            "Start one, use 'auto' or host:port, check that RAY_AUTH_MODE and the token are those "
            "of the cluster, or run without --address."
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ResourcesError(
            f"Cannot join the Ray cluster at '{named}' (from {origin}): {reason}"
        ) from error


def _start(ray: Any, n_slots: int, scratch: str, *, over: threading.Event) -> None:
    """Start Ray on the loopback, or raise ResourcesError after the second try.

    If `over` is set there is no second try.
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
        # Ray 2.60 raises Exception if its processes take more than 30 s to start
        except Exception as error:
            LOG.warning("Ray did not start", exc_info=True)
            ray.shutdown(wait_for_processes=True)
            if last or over.is_set():
                raise ray_failures.not_started(error, Path(scratch)) from error


def ray_version() -> str:
    """Return the version of Ray that schedules."""
    return importlib.metadata.version("ray")
