"""CPUs and GPUs of the machines of a Ray, whether trials fit, and probes in its workers.

Input: what a trial takes, a pack, an address. Output: CPUs, GPUs, rows of probes, or an error that
says what is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune import machine
from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.data.pixel_source import file_of
from casting_tune.errors import ResourcesError
from casting_tune.execution import node_copy, ray_cluster
from casting_tune.execution.node_copy import PackFile
from casting_tune.training import memory
from casting_tune.training.probe import probe
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
STARTING_S = 120
"""Time limit for the first worker of a cluster whose workers are still starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a trial takes, and of which machines.

    Attributes:
        cpus: CPUs of a trial.
        gpus: GPUs of a trial, or a share of one.
        n_at_once: how many trials may run at the same time; None: as many as fit.
        share: gives each configuration its own share of a GPU, at most `gpus`. A trial whose memory
            runs out runs again with twice as much, until it has a whole GPU. None: all get `gpus`.
        address: of the cluster; None: this machine.
    """

    cpus: float = 1
    gpus: float = 0
    n_at_once: int | None = None
    share: Callable[[TrialConfig], float] | None = None
    address: str | None = None


def capacity(address: str | None, *, inline: bool) -> tuple[int, float]:
    """Return the numbers of CPUs and GPUs of the cluster at `address`, or of this machine."""
    if address is None or inline:
        if not machine.has_gpu_device():
            return machine.cpus(), 0
        import torch

        return machine.cpus(), torch.cuda.device_count()
    with ray_cluster.running(address, n_slots=0) as ray:
        nodes = each(ray, wait=True)
        return int(sum(node.get("CPU", 0) for node in nodes)), sum(
            node.get("GPU", 0) for node in nodes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The GPUs that trials may share, and the CPUs; `gpu_bytes` is that of the smallest GPU."""

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
    """Measure the GPU memory of each node, and probe configurations, each alone on a GPU.

    This happens in workers: the driver may have no GPU, and must not hold memory of one. The GPUs
    of one node count as equal.

    Args:
        configs: to probe, as many at the same time as there are GPUs.
        pack: the images.
        place: the resources of a trial.
        groups: [n] group number of each image, if a split needs them.
        address: of the cluster; None starts Ray here.
        on_probe: called with (position, how many have ended, row of probes or the error).
    """
    n_cpus, n_gpus = (0, 0.0) if address else capacity(None, inline=False)
    with ray_cluster.running(address, n_slots=max(1, int(n_gpus))) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        strategies = [
            NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in nodes
        ] or ["DEFAULT"]
        # a hundredth, because another sweep may hold the rest; a task that holds part of a GPU ends
        # with its process
        ask = ray.remote(num_cpus=0, num_gpus=0.01)(_device_bytes)
        gpu_bytes = min(
            ray.get([ask.options(scheduling_strategy=on).remote(place.device) for on in strategies])
        )
        remote_probe = ray.remote(num_cpus=1, num_gpus=1)(_probe)
        sent = ray.put(sendable(ray, pack, here=address is None))
        running = {
            remote_probe.remote(config, sent, place, groups): i for i, config in enumerate(configs)
        }
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
    config: TrialConfig, pack: Pack | PackFile, place: Place, groups: NDArray[np.int64] | None
) -> dict[str, Any] | str:
    """Return a row of probes, or the error; the trial itself will record it in its row."""
    try:
        return probe(config, node_copy.opened(pack), place, groups)
    except Exception as error:  # whatever a network, driver or kernel raises
        return f"{type(error).__name__}: {error}".splitlines()[0]


def slots(resources: Resources, place: Place) -> int:
    """Return the number of CPUs for Ray on this machine: one per trial at the same time.

    Ray starts one worker per CPU at once, and each imports the modules of a trial (0.3 GiB). A
    machine has many more CPUs than a GPU has trials. As many trials without a GPU may run as well.
    """
    return resources.n_at_once or min(machine.cpus(), 2 * place.n_at_once)


def check_resources(ray: Any, resources: Resources) -> None:
    """Raise ResourcesError if no node can ever run a trial: Ray would wait forever."""
    nodes = each(ray, wait=False)
    if resources.address is None:  # see `slots`
        nodes = [node | {"CPU": machine.cpus()} for node in nodes]
    for kind, needed in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > most:
            raise ResourcesError(
                f"A trial requires {needed:g} {kind}; the largest node has {most:g}. Request less."
            )


def sendable(ray: Any, pack: Pack, *, here: bool) -> Pack | PackFile:
    """Return what the workers get: the pack, or everything but its pixels and the file of these.

    Workers of this machine open the file of the pack. On a cluster the pixels go through Ray's
    object store if they fit there, because that keeps one copy per node in memory; otherwise each
    node keeps one copy on its disk.

    Raises:
        ResourcesError: the images are not a file, and do not fit the object store.
    """
    is_file = file_of(pack.images) is not None
    if not (here and is_file):
        try:
            check_object_store(ray, pack)
        except ResourcesError:
            if not is_file:
                raise
        else:
            return pack
    LOG.info("the workers read the packed images from a file of their node")
    return node_copy.sent(pack, node=ray.get_runtime_context().get_node_id())


def check_object_store(ray: Any, pack: Pack) -> None:
    """Raise ResourcesError if the images do not fit the object store of a node.

    Ray 2.60 would put them into files on the disk of that node, and every batch would be read from
    there.
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
            f"The packed images need {needed / 2**30:.2f} GiB; Ray's object store holds "
            f"{least / 2**30:.2f} GiB on one node. Use a smaller --pack-size or --inline, or "
            f"enlarge the store: 'ray start --object-store-memory {int(1.2 * needed)}' on a "
            "cluster, RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION=0.6 on this machine."
        )


def each(ray: Any, *, wait: bool) -> list[dict[str, float]]:
    """Return the resources of each node, or of each node that the cluster can start.

    Just after `ray up` there is only the head, on which no trial runs: `wait` gives the other nodes
    time to start.
    """
    deadline = time.monotonic() + (STARTING_S if wait else 0)
    while True:
        nodes = startable() or [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU") for node in nodes) or time.monotonic() >= deadline:
            return nodes
        time.sleep(1)


def startable() -> list[dict[str, float]]:
    """Return the resources of the nodes that the autoscaler can start; only its head knows them."""
    file = Path.home() / "ray_bootstrap_config.yaml"
    if not file.is_file():
        return []
    import yaml

    kinds = yaml.safe_load(file.read_text())["available_node_types"].values()
    # for the user's own machines Ray knows no resources before the machine has joined
    return [
        kind["resources"]
        for kind in kinds
        if kind["resources"]
        for _ in range(kind.get("max_workers", 0))
    ]
