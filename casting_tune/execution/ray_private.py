"""All uses of Ray beyond its public API, in one place.

Ray may change any of it in a minor version. The dependency in pyproject.toml therefore has an upper
bound, and `check_version` rejects other versions. tests/execution/test_ray_private.py has a test
for each private name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version

from casting_tune.errors import ResourcesError

TESTED = "2.60"
"""The minor version of Ray that the tests run with; its patch versions are accepted."""

NODE_PROCESSES = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of `ray._private.node.Node` that start processes which a local sweep does not need."""

ACTOR_VARIABLES = ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")
"""Environment variables that `ray.tune.execution.class_cache` gives to every actor."""


def check_version(installed: str | None = None) -> None:
    """Raise ResourcesError for a version of Ray that is not tested.

    Args:
        installed: the version; None reads that of the installed package.
    """
    version = Version(installed or importlib.metadata.version("ray"))
    if version.release[:2] != Version(TESTED).release:
        minor = Version(TESTED).release[1]
        raise ResourcesError(
            f"Ray {version} is not supported; tested with Ray {TESTED}. Install it: "
            f"pip install 'ray[tune]>={TESTED},<2.{minor + 1}', or run without Ray: --inline."
        )


@contextlib.contextmanager
def lean_start() -> Iterator[None]:
    """Let `ray.init` start fewer processes, and end those of a start that fails.

    The processes of autoscaler, dashboard and log forwarding each import Ray for a second or two,
    one after the other, before any worker starts; Ray 2.60 starts the dashboard's even with
    include_dashboard=False. Where a start fails, `ray.shutdown` does not know the processes that
    are already running (`Node.all_processes`): they would stay until this process ends.
    """
    from ray._private.node import Node

    construct: Callable[..., None] = Node.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **options: Any) -> None:
        try:
            construct(self, *args, **options)
        except BaseException:
            if getattr(self, "all_processes", None):
                self.kill_all_processes(check_alive=False, wait=True)
            raise

    def leave_out(node: object, **options: object) -> None:
        del node, options

    patches: dict[str, Callable[..., None]] = dict.fromkeys(NODE_PROCESSES, leave_out) | {
        "__init__": init
    }
    before = {name: getattr(Node, name) for name in patches}
    for name, patch in patches.items():
        setattr(Node, name, patch)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def plain_actors() -> Iterator[None]:
    """Let Tune's actors run in the workers that Ray has already started.

    Tune gives each actor environment variables of its own, and Ray starts a new process for an
    actor with such variables, which imports everything once more. On this machine workers have the
    driver's environment anyway.
    """
    from ray.tune.execution import class_cache

    before = {name: getattr(class_cache, name) for name in ACTOR_VARIABLES}
    for name, variables in before.items():
        setattr(class_cache, name, type(variables)())
    try:
        yield
    finally:
        for name, variables in before.items():
            setattr(class_cache, name, variables)


def resolve(address: str) -> str:
    """Return host:port of the cluster that `ray.init(address)` would join.

    Args:
        address: host:port, or "auto": RAY_ADDRESS, else the newest cluster of this machine. Ray
            replaces a loopback address by that of this machine.

    Raises:
        ConnectionError: "auto" finds no cluster.
        ValueError: the address is not host:port.
    """
    from ray._private import services

    resolved: str | None = services.canonicalize_bootstrap_address(address)
    if resolved is None:  # "local"
        raise ValueError("not host:port")
    return resolved


def last_failure(trial: Any) -> BaseException | None:
    """Return the exception of a Tune trial's last failure; None if Tune itself ended the trial.

    Tune has just written it into the driver's folder of this run. `Trial.get_pickled_error` reads
    it from the storage, where the file arrives with the next synchronisation only.
    """
    from ray import cloudpickle

    if trial.run_metadata.pickled_error_filename is None:
        return None
    raised: BaseException = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return raised


def allow_one_more_failure(trial: Any) -> None:
    """Let Tune restart a trial once more, and end it at the next failure."""
    trial.max_failures = 0


def died_with_node(cause: BaseException | None) -> bool:
    """Return whether a process was lost together with its node.

    A node reports a dead process to Ray within a second. A dead node reports nothing: at first the
    connection is closed ("temporarily unavailable"), and seconds later the health check reports
    "its node has died".
    """
    from ray.exceptions import ActorUnavailableError, RayActorError

    if isinstance(cause, ActorUnavailableError):
        return True
    return isinstance(cause, RayActorError) and (cause.preempted or "node has died" in str(cause))


def prepare_cluster_file(written: dict[str, Any]) -> dict[str, Any]:
    """Return a cluster file as `ray up` completes it; raise what `ray up` would raise for it.

    Changes `written`.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(written)
    validate_config(prepared)
    return prepared
