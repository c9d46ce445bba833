"""The resources of each trial of a run: CPUs, a GPU or a share of one, memory, time; and its place.

Input: Options, the machine or the cluster. Output: Resources, a Place, an Allowance. Starts no
trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casting_tune import machine
from casting_tune.config import Allowance, TrialConfig
from casting_tune.errors import ResourcesError, UsageError
from casting_tune.execution import nodes, ray_cluster
from casting_tune.execution.gpu_probes import Shares
from casting_tune.execution.nodes import Resources
from casting_tune.planning import gpu_sharing
from casting_tune.planning.cells import Sweep
from casting_tune.planning.options import Options
from casting_tune.training.records import Place


def decide(options: Options, n_cells: int) -> tuple[Resources, Place]:
    """Return the resources of a trial: a GPU if there is one, else an equal share of the CPUs."""
    n_cpus, n_gpus = nodes.capacity(options.address, inline=options.inline)
    requested = options.gpus_per_trial
    gpus = 1 if requested == "auto" else min(1, n_gpus) if requested is None else requested
    if gpus > 0 and n_gpus == 0:
        named = requested if requested == "auto" else f"{gpus:g}"
        raise ResourcesError(
            f"--gpus-per-trial {named}: there is no GPU here. Omit the option to train on the CPU."
        )
    if gpus > 0 and options.memory_gib:
        raise UsageError(
            "--max-memory limits trials on the CPU; these train on a GPU. Omit the option."
        )
    cpus = machine.cpus()
    at_once = options.trials_at_once
    if options.inline:
        at_once = 1
    elif at_once is None and gpus == 0 and options.address is None:
        at_once = min(cpus, n_cells)
    share = max(1, cpus // at_once) if at_once and gpus == 0 else 1
    place = Place(
        device="cuda" if gpus else "cpu",
        n_threads=share,
        n_at_once=at_once or max(1, int(n_gpus / gpus) if gpus else n_cpus),
        gpus=gpus,
        ray=None if options.inline else ray_cluster.ray_version(),
        git_commit=machine.git_commit(),
    )
    fitting = min(share, cpus / at_once) if at_once else share
    return Resources(cpus=fitting, gpus=gpus, n_at_once=at_once, address=options.address), place


def shared(
    resources: Resources,
    place: Place,
    shares: Shares,
    configs: Sequence[TrialConfig],
    at_once: int | None,
) -> tuple[Resources, Place]:
    """Give each trial the share of a GPU that its memory needs; returns the new number at once."""
    least = min((share for share in map(shares.of, configs) if share), default=1.0)
    fitting = shares.devices.n_gpus * gpu_sharing.trials_a_gpu(least)
    place = replace(
        place, n_at_once=at_once or max(1, min(fitting, shares.devices.n_cpus)), gpus=None
    )
    return replace(resources, share=shares.of), place


def like(place: Place) -> dict[str, object]:
    """Return the columns of places that must be equal for the times of trials to be comparable."""
    return {"device": place.device, "n_threads": place.n_threads}


def allowance(options: Options, sweep: Sweep, place: Place, *, free_bytes: int) -> Allowance:
    """Return the limits of one trial: the user's, else on the CPU an equal share of free memory.

    `free_bytes` was measured before Ray started, because the imports of a worker count towards the
    limit of its trial.
    """
    gib = options.memory_gib or sweep.limits.memory_gib
    share = 0.9 * free_bytes / place.n_at_once
    return Allowance(
        max_seconds=options.max_seconds or sweep.limits.max_seconds,
        memory_bytes=int(gib * 2**30) if gib else int(share) if options.address is None else None,
        keep=options.keep,
        retries=options.retries,
        on_oom=options.on_oom or sweep.limits.on_oom,
    )
