"""The plan of a run: which cells are done, failed or to be trained, and the estimated costs.

Input: cells with their keys, a store. Output: a Plan, Costs, and sentences about them. Starts
nothing and prints nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from casting_tune.config import BASELINE, TrialConfig
from casting_tune.planning import estimate, gpu_sharing
from casting_tune.planning.cells import Cell
from casting_tune.planning.estimate import Estimate, Measurements, Work
from casting_tune.store.store import Store

MANY = 10_000
"""A run of more cells than this requires --yes."""

START_S = 8.0
"""Seconds until workers have started and loaded their libraries, once per run."""

State = Literal["done", "to do", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell and its state in the store.

    Attributes:
        state: "done"; "to do"; "stopped" by the scheduler of the sweep; "failed": ended without
            completing.
        status: the last status of a cell that did not complete.
        runs: whether a run of this plan trains the cell.
    """

    cell: Cell
    cell_id: str
    state: State
    status: str | None = None
    runs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cells of a sweep in the sweep's order."""

    planned: tuple[Planned, ...]

    @property
    def to_do(self) -> tuple[Planned, ...]:
        """Return the cells that a run trains."""
        return tuple(planned for planned in self.planned if planned.runs)

    def count(self, state: State) -> int:
        """Return the number of cells in a state."""
        return sum(planned.state == state for planned in self.planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The estimated costs of a run; sums are over the cells with an estimate.

    Attributes:
        estimates: one per cell to train, in the order of the plan.
        trial_s: seconds of all trials together.
        wall_s: seconds until the last trial has ended.
        gpu_hours: hours for which GPUs are reserved, 0 on the CPU.
        memory_bytes: peak of one trial, None if unknown.
        disk_bytes: size of the results of all trials.
        sources: number of estimates by source.
        trials_a_gpu: the lowest and highest number of trials per GPU, if trials share GPUs.
        n_unmeasured: cells with unknown memory, each counted with a whole GPU.
    """

    estimates: tuple[Estimate, ...]
    trial_s: float
    wall_s: float
    gpu_hours: float
    memory_bytes: int | None
    disk_bytes: int
    sources: dict[str, int]
    trials_a_gpu: tuple[int, int] | None = None
    n_unmeasured: int = 0


def make(
    cells: Sequence[Cell],
    cell_ids: Sequence[str],
    store: Store,
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    scheduler: Literal["fifo", "asha"] = "fifo",
) -> Plan:
    """Return the plan of a run; a cell that another sweep trained is done.

    Args:
        cells: the cells of the sweep.
        cell_ids: their keys.
        store: the results so far.
        fresh: train every cell again.
        retry_failed: train failed cells again.
        scheduler: with "asha", stopped cells stay stopped; with "fifo", they continue.
    """
    done, failed = store.completed(), store.failed()
    planned = []
    for cell, cell_id in zip(cells, cell_ids, strict=True):
        status = failed.get(cell_id)
        state: State = "done" if cell_id in done else "to do" if status is None else "failed"
        if state == "failed" and status == "stopped":
            state = "stopped" if scheduler == "asha" else "to do"
        runs = fresh or state == "to do" or (state == "failed" and retry_failed)
        planned.append(Planned(cell=cell, cell_id=cell_id, state=state, status=status, runs=runs))
    return Plan(planned=tuple(planned))


def costs(
    works: Sequence[Work], store: Store, *, place: dict[str, Any], gpus: float, n_at_once: int
) -> Costs:
    """Return the estimated costs of cells, from the store's completed trials and probes.

    Args:
        works: the cells to train, with their image counts.
        store: holds trials and probes.
        place: device ("cpu" or "cuda") and n_threads of a trial.
        gpus: GPUs (or the share of one) per trial.
        n_at_once: trials at the same time.
    """
    estimates = estimate.estimates(works, place, *_measurements(store))
    seconds = [one.seconds for one in estimates if one.seconds is not None]
    memory = [one.peak_memory_bytes for one in estimates if one.peak_memory_bytes is not None]
    trial_s = sum(seconds)
    return Costs(
        estimates=estimates,
        trial_s=trial_s,
        wall_s=(START_S if works else 0.0)
        + estimate.makespan(sorted(seconds, reverse=True), n_at_once),
        gpu_hours=trial_s * gpus / 3600,
        memory_bytes=max(memory, default=None),
        disk_bytes=sum(one.disk_bytes for one in estimates),
        sources=dict(Counter(one.source for one in estimates)),
    )


def on_shared_gpus(
    found: Costs, shares: Sequence[float], *, n_unmeasured: int, n_gpus: int, n_at_once: int
) -> Costs:
    """Return the costs of cells that share GPUs.

    Args:
        found: the costs with one GPU per cell.
        shares: one per cell to train, in the order of the plan; 0 for a cell that needs no GPU.
        n_unmeasured: how many get a whole GPU only because their memory is unknown.
        n_gpus: GPUs of the machine or cluster.
        n_at_once: maximum number of trials at the same time.
    """
    held = [
        (cell.seconds, shares[i])
        for i, cell in enumerate(found.estimates)
        if cell.seconds is not None
    ]
    held.sort(key=lambda cell: -cell[0])
    ends = (
        gpu_sharing.makespan(*zip(*held, strict=True), n_gpus=n_gpus, n_at_once=n_at_once)
        if held
        else 0.0
    )
    fitting = [gpu_sharing.trials_a_gpu(share) for share in shares if share]
    return replace(
        found,
        wall_s=(START_S if found.estimates else 0.0) + ends,
        gpu_hours=sum(seconds * share for seconds, share in held) / 3600,
        trials_a_gpu=(min(fitting), max(fitting)) if fitting else None,
        n_unmeasured=n_unmeasured,
    )


def cost_sentences(costs: Costs, *, price_per_gpu_hour: float | None) -> tuple[str, ...]:
    """Return the costs as sentences: time and its sources, GPU time and money, memory, disk."""
    if not costs.estimates:
        return ("No trials to run.",)
    n, n_unknown = len(costs.estimates), costs.sources.get("unknown", 0)
    if n_unknown == n:
        first = (
            f"No time estimate yet for these {n} trials; add --probe to time a few steps of each "
            "network."
        )
        return (first, *sharing_sentences(costs))
    at_least = "at least " if n_unknown else "about "
    sentences = [_time_sentence(costs, at_least)]
    if costs.gpu_hours:
        money = f", cost {costs.gpu_hours * price_per_gpu_hour:,.2f}" if price_per_gpu_hour else ""
        sentences.append(f"GPU time: {at_least}{costs.gpu_hours:.2f} hours{money}.")
    elif price_per_gpu_hour is not None:
        sentences.append("GPU time: none, so there is no GPU cost.")
    memory = (
        f"at most {costs.memory_bytes / 2**30:.1f} GiB per trial"
        if costs.memory_bytes
        else "unknown"
    )
    return (
        *sentences,
        *sharing_sentences(costs),
        f"Memory: {memory}. Disk: {costs.disk_bytes / 2**20:.1f} MiB of results.",
    )


def _time_sentence(costs: Costs, at_least: str) -> str:
    sources = [
        f"{count} from {_SOURCES[name]}"
        for name, count in costs.sources.items()
        if name != "unknown"
    ]
    n_unknown = costs.sources.get("unknown", 0)
    if n_unknown:
        sources.append(f"{n_unknown} unknown: add --probe to time a few steps of their networks")
    return (
        f"Time: {at_least}{duration(costs.wall_s)}; the sum over all trials is "
        f"{duration(costs.trial_s)} ({', '.join(sources)})."
    )


def sharing_sentences(costs: Costs) -> tuple[str, ...]:
    """Return a sentence about the number of trials per GPU, if trials share GPUs."""
    if costs.trials_a_gpu is None:
        return ()
    fewest, most = costs.trials_a_gpu
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    unmeasured = (
        f"; trials with unknown memory ({costs.n_unmeasured}) get a whole GPU until they are probed"
        if costs.n_unmeasured
        else ""
    )
    return (
        f"Trials per GPU: {count}, limited by memory{unmeasured}. "
        "The estimate assumes that sharing does not slow a trial.",
    )


def duration(seconds: float) -> str:
    """Return a duration for a reader: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


_SOURCES = {
    "rows": "similar trials",
    "probe": "probes",
    "similar rows": "trials of the same network at another size",
}


def unmeasured(
    works: Sequence[Work], store: Store, *, place: dict[str, Any]
) -> tuple[TrialConfig, ...]:
    """Return one configuration of each network, image and batch size without a trial or probe."""
    measurements = _measurements(store)
    configs = {}
    for work, one in zip(works, estimate.estimates(works, place, *measurements), strict=True):
        is_network = not work.config.backbone.startswith(BASELINE)
        if is_network and one.source in ("similar rows", "unknown"):
            configs[tuple(getattr(work.config, name) for name in estimate.SHAPE)] = work.config
    return tuple(configs.values())


def _measurements(store: Store) -> tuple[Measurements, Measurements]:
    trials = store.read("trials", columns=[*estimate.READ, "status"]).to_pylist()
    completed = (row for row in trials if row["status"] == "completed")
    return estimate.learn(completed, store.read("probes").to_pylist())
