"""What the machines of a Ray have, whether trials fit, and the memory that networks take in their workers.

Comes in: what a trial takes, a pack, an address. Goes out: CPUs, GPUs, rows of probes, or what is
lacking in one line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.errors import ResourcesError
from casting_tune.execution import ray_cluster
from casting_tune.training import memory, trial
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STARTING_S = 120  # a cluster whose workers are still on their way gets this long to show the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a trial takes. `n_at_once` None: as many as fit.

    `share`, where there is one, gives each configuration a share of a GPU of its own, at most
    `gpus`. A trial whose memory runs out on it runs again with twice as much, until it has a whole
    GPU.
    """

    cpus: float = 1
    gpus: float = 0
    n_at_once: int | None = None
    share: Callable[[TrialConfig], float] | None = None


def capacity(address: str | None, *, inline: bool) -> tuple[int, float]:
    """Return how many CPUs and GPUs trials may use: of the cluster at `address`, else those that this machine shows."""
    if address is None or inline:
        if not ray_cluster.shows_gpu():
            return ray_cluster.cpus_here(), 0
        import torch

        return ray_cluster.cpus_here(), torch.cuda.device_count()
    with ray_cluster.running(address, n_slots=0) as ray:
        _check_answers(ray, address)
        nodes = each(ray, wait=True)
        return int(sum(node.get("CPU", 0) for node in nodes)), sum(
            node.get("GPU", 0) for node in nodes
        )


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

    The driver may have no GPU, and where it has one it holds none of its memory. The GPUs of one
    node count as alike.

    Args:
        configs: what is probed, as many at the same time as there are GPUs.
        pack: the images.
        place: what a trial would be given.
        groups: photographs of the images, [n], where a split needs them.
        address: of the cluster; None starts Ray here.
        on_probe: told (position, how many have ended, row of probes or the error in its place).
    """
    n_cpus, n_gpus = (0, 0.0) if address else capacity(None, inline=False)
    with ray_cluster.running(address, n_slots=max(1, int(n_gpus))) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        strategies = [
            NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes
        ] or ["DEFAULT"]
        # a hundredth, since another sweep may hold the rest; a task that holds part of a GPU ends
        # with its process
        ask = ray.remote(num_cpus=0, num_gpus=0.01)(_device_bytes)
        gpu_bytes = min(
            ray.get([ask.options(scheduling_strategy=on).remote(place.device) for on in strategies])
        )
        probe = ray.remote(num_cpus=1, num_gpus=1)(_probe)
        sent = ray.put(pack)
        running = {probe.remote(config, sent, place, groups): i for i, config in enumerate(configs)}
        n_probes = len(running)
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            position = running.pop(ended)
            on_probe(position, n_probes - len(running), ray.get(ended))
        alive = each(ray, wait=False)
        n_gpus = sum(node.get("GPU", 0) for node in alive)
        n_cpus = n_cpus or int(sum(node.get("CPU", 0) for node in alive))
        return Devices(gpu_bytes=gpu_bytes, n_gpus=int(n_gpus), n_cpus=n_cpus)


def _device_bytes(device: str) -> int:
    import torch

    return memory.total(torch.device(device))


def _probe(
    config: TrialConfig, pack: Pack, place: Place, groups: NDArray[np.int64] | None
) -> dict[str, Any] | str:
    """Return a row of probes, or why there is none: the trial itself will say it in its row."""
    try:
        return trial.probe(config, pack, place, groups)
    except Exception as error:  # whatever a network, driver or kernel raises
        return f"{type(error).__name__}: {error}".splitlines()[0]


def slots(resources: Resources, place: Place) -> int:
    """Return how many CPUs our own Ray on this machine is told of: one a trial that runs at the same time.

    Ray starts a worker a CPU at once, and each imports what a trial needs, into 0.3 GiB: a machine
    has many more CPUs than a GPU has trials. Beside these, as many trials that need no GPU may run.
    """
    return resources.n_at_once or min(ray_cluster.cpus_here(), 2 * place.n_at_once)


def check_resources(ray: Any, resources: Resources, address: str | None) -> None:
    """Raise ResourcesError where no node could ever run a trial: Ray would wait for such a node for ever."""
    nodes = each(ray, wait=False)
    if address is None:  # see `slots`
        nodes = [node | {"CPU": ray_cluster.cpus_here()} for node in nodes]
    for kind, needed in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > most:
            raise ResourcesError(
                f"A trial asks for {needed:g} {kind}, and the largest node has {most:g}. Ask for less."
            )


def check_object_store(ray: Any, pack: Pack) -> None:
    """Raise ResourcesError where the images do not fit a node's object store, to which they go whole.

    Ray 2.60 would put them into files on that node's disk instead, and every batch would be read
    from there.
    """
    here = ray.get_runtime_context().get_node_id()
    needed, stores = pack.images.nbytes, []
    for node in ray.nodes():
        has = node["Resources"]
        if (
            node["Alive"]
            and "object_store_memory" in has
            and (has.get("CPU") or node["NodeID"] == here)
        ):
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

    Ray 2.60 does so where it asks for no token and we send one. Without the token of a cluster that
    asks for one, none is let in. A cluster without room is no fault: it answers later.
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


def each(ray: Any, *, wait: bool) -> list[dict[str, float]]:
    """Return what each node has or, where the cluster starts nodes for waiting trials, what each of those will have.

    Just after `ray up` there is the head alone, on which no trial runs: `wait` gives the others
    time to come.
    """
    deadline = time.monotonic() + (STARTING_S if wait else 0)
    while True:
        nodes = startable() or [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU") for node in nodes) or time.monotonic() >= deadline:
            return nodes
        time.sleep(1)


def startable() -> list[dict[str, float]]:
    """Return the resources of the nodes that `ray up` lets the autoscaler start, read on its head; none elsewhere."""
    file = Path.home() / "ray_bootstrap_config.yaml"
    if not file.is_file():
        return []
    import yaml

    kinds = yaml.safe_load(file.read_text())["available_node_types"].values()
    # with machines of one's own Ray knows no resources before the machine has joined
    return [
        kind["resources"]
        for kind in kinds
        if kind["resources"]
        for _ in range(kind.get("max_workers", 0))
    ]
