"""What a run of a sweep would do, and what it would cost.

Comes in: keyed cells, a store, what the cells should take. Goes out: a Plan: done, to do, failed;
and its Costs. Starts nothing, prints nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from casting_tune.config import TrialConfig
from casting_tune.planning import estimate, gpu_sharing
from casting_tune.planning.cells import Cell
from casting_tune.planning.estimate import Estimate, Learnt, Work
from casting_tune.store.store import Store

MANY = 10_000
"""A run of more cells than this is asked for with --yes."""

START_S = 8.0
"""Until workers have started and loaded their libraries, once a run."""


State = Literal["done", "to do", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell and what the store knows of it.

    Attributes:
        state: done; to do; stopped by the sweep's scheduler; or failed: it ended before without completing.
        status: how a cell ended last that did not complete.
        runs: a run of this plan would train it.
    """

    cell: Cell
    cell_id: str
    state: Literal["done", "stopped", "to do", "failed"]
    status: str | None = None
    runs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cells of a sweep in the sweep's order."""

    planned: tuple[Planned, ...]

    @property
    def to_do(self) -> tuple[Planned, ...]:
        """The cells that a run would train."""
        return tuple(planned for planned in self.planned if planned.runs)

    def count(self, state: State) -> int:
        """Return how many cells are in a state."""
        return sum(planned.state == state for planned in self.planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a run of a plan should take; sums are over the cells that something is known of.

    Attributes:
        estimates: one a cell to do, in the plan's order.
        trial_s: seconds of all trials together.
        wall_s: seconds until the last has ended.
        gpu_hours: hours that GPUs are held, 0 on the CPU.
        memory_bytes: peak of one trial, None where nothing is known.
        disk_bytes: rows of all trials.
        sources: where the figures come from, a count each.
        trials_a_gpu: the fewest and the most trials that fit on one GPU, where trials share GPUs by their memory.
        n_unmeasured: cells of these whose memory is not known, so that each is counted with a whole GPU.
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
    """Return what is done and what is to do; a cell that another sweep trained is done.

    Args:
        cells: the sweep's cells.
        cell_ids: their keys.
        store: what was trained already.
        fresh: every cell is trained again, whatever the store holds.
        retry_failed: cells that failed before run again.
        scheduler: with "asha" a cell that a scheduler stopped is settled; without, it goes on.
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
    """Return what cells to do should take, from the store's completed trials and probes.

    Args:
        works: the cells to do, with their image counts.
        store: where like trials and probes are looked for.
        place: device ("cpu" or "cuda") and n_threads of a trial.
        gpus: GPUs (or the share of one) that a trial holds.
        n_at_once: trials at the same time.
    """
    known = _known(store)
    estimates = estimate.estimates(works, place, *known)
    seconds = [found.seconds for found in estimates if found.seconds is not None]
    memory = [found.peak_memory_bytes for found in estimates if found.peak_memory_bytes is not None]
    trial_s = sum(seconds)
    return Costs(
        estimates=estimates,
        trial_s=trial_s,
        wall_s=(START_S if works else 0.0)
        + estimate.makespan(sorted(seconds, reverse=True), n_at_once),
        gpu_hours=trial_s * gpus / 3600,
        memory_bytes=max(memory, default=None),
        disk_bytes=sum(found.disk_bytes for found in estimates),
        sources=dict(Counter(found.source for found in estimates)),
    )


def on_shared_gpus(
    found: Costs, shares: Sequence[float], *, n_unmeasured: int, n_gpus: int, n_at_once: int
) -> Costs:
    """Return the costs of cells that share GPUs: hours and the end of the last by the share that each of them holds.

    Args:
        found: the costs, each cell on a GPU of its own.
        shares: one a cell to do, in the plan's order; 0 for a cell that needs no GPU.
        n_unmeasured: how many of them are whole GPUs only because their memory is not known.
        n_gpus: GPUs of the machine or cluster.
        n_at_once: trials at the same time that its CPUs allow, or the person.
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


def tell(found: Costs, *, price_per_gpu_hour: float | None) -> tuple[str, ...]:
    """Return the costs as sentences: time, GPU-hours and money, memory, disk, and what the figures rest on."""
    if not found.estimates:
        return ("Nothing is to be trained.",)
    n, lacking = len(found.estimates), found.sources.get("unknown", 0)
    if lacking == n:
        unknown = f"Of none of the {n} trials is the time known yet: --probe times a few steps of each network."
        return (unknown, *sharing(found))
    counted = ", ".join(
        f"{count} from {_SOURCES[name]}"
        for name, count in found.sources.items()
        if name != "unknown"
    )
    least = "at least " if lacking else "about "
    time = f"Time: {least}{duration(found.wall_s)}; {duration(found.trial_s)} of trials ({counted}"
    told = [
        f"{time}; {lacking} unknown: --probe times a few steps of their networks)."
        if lacking
        else f"{time})."
    ]
    if found.gpu_hours:
        money = (
            f", {found.gpu_hours * price_per_gpu_hour:,.2f} in money" if price_per_gpu_hour else ""
        )
        told.append(f"GPUs: {least}{found.gpu_hours:.2f} hours{money}.")
    elif price_per_gpu_hour is not None:
        told.append("GPUs: none is used, so none is paid for.")
    memory = (
        f"{found.memory_bytes / 2**30:.1f} GiB at most a trial" if found.memory_bytes else "unknown"
    )
    return (
        *told,
        *sharing(found),
        f"Memory: {memory}. Disk: {found.disk_bytes / 2**20:.1f} MiB of rows.",
    )


def sharing(found: Costs) -> tuple[str, ...]:
    """Return how many trials fit on a GPU as a sentence, where they share GPUs."""
    if found.trials_a_gpu is None:
        return ()
    fewest, most = found.trials_a_gpu
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    least = (
        f"; {found.n_unmeasured} trials have one each until a run has probed their memory"
        if found.n_unmeasured
        else ""
    )
    return (
        f"On one GPU: {count} at once, by their memory{least}. Each is counted as fast as alone.",
    )


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


_SOURCES = {
    "rows": "trials like them",
    "probe": "probes",
    "similar rows": "trials of the same network at another size",
}


def unknown(
    works: Sequence[Work], store: Store, *, place: dict[str, Any]
) -> tuple[TrialConfig, ...]:
    """Return one configuration of each network, size and batch size that neither a trial nor a probe tells of."""
    known = _known(store)
    lacking = {}
    for work, found in zip(works, estimate.estimates(works, place, *known), strict=True):
        if not work.config.backbone.startswith("baseline:") and found.source in (
            "similar rows",
            "unknown",
        ):
            lacking[tuple(getattr(work.config, name) for name in estimate.SHAPE)] = work.config
    return tuple(lacking.values())


def _known(store: Store) -> tuple[Learnt, Learnt]:
    trials = store.read("trials", columns=[*estimate.READ, "status"]).to_pylist()
    completed = (row for row in trials if row["status"] == "completed")
    return estimate.learn(completed, store.read("probes").to_pylist())
