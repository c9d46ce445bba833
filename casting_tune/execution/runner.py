"""`python -m casting_tune.sweep NAME`: read, check everything, plan, schedule, tell.

Comes in: Options, as a person gave them. Goes out: the store's rows, and Events while it works. Two
steps: `prepare` finds every fault that can be found before the first trial; `execute` trains what
the store lacks. Prints nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil

from casting_tune.config import Allowance, cell_id
from casting_tune.data import image_folder
from casting_tune.data.pack import Pack
from casting_tune.errors import UsageError
from casting_tune.execution import dataset, gpu_probes, nodes, ray_cluster, ray_tune, search
from casting_tune.execution.gpu_probes import Shares
from casting_tune.execution.nodes import Resources
from casting_tune.execution.placement import allowance, decide, like, shared
from casting_tune.execution.ray_cluster import Ahead
from casting_tune.execution.search import NO_PAST, Chosen, Past, Study
from casting_tune.execution.tasks import Asha, Event, Halt, Task, Work, log
from casting_tune.failpoints import step
from casting_tune.models import build
from casting_tune.planning import estimate, expand, extra_cells, plan, validate
from casting_tune.planning import options as asked
from casting_tune.planning.cells import Cell, Search, Sweep, resolve
from casting_tune.planning.options import Options
from casting_tune.planning.plan import Costs, Plan, Planned
from casting_tune.store import audits
from casting_tune.store.schema import CELLS, SETTINGS
from casting_tune.store.store import Store
from casting_tune.toggles import augmentation_name
from casting_tune.training import checkpoint, precision
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logging.getLogger("casting_tune.execution.runner")  # not __name__: the module may be __main__


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that has passed every check and waits to start."""

    options: Options
    run_id: str
    sweep: Sweep
    pack: Pack
    store: Store
    plan: Plan
    costs: Costs
    allowance: Allowance
    resources: Resources
    place: Place
    groups: NDArray[np.int64] | None
    notes: tuple[str, ...]
    finish: Callable[[Cell], Cell]
    asha: Asha | None = None
    past: Past = NO_PAST  # what earlier runs of a search chose
    ahead: Ahead | None = None

    @property
    def n_to_choose(self) -> int:
        """How many cells a search has still to choose."""
        return (
            0
            if self.sweep.search is None
            else max(0, self.sweep.search.n_trials - len(self.past.chosen))
        )

    @property
    def to_do(self) -> tuple[Planned, ...]:
        """The known cells to train in the order in which they start: the longest first, timing passes last of all.

        Those of a search are not among them: its study hands them out again.
        """
        order = estimate.longest_first([found.seconds for found in self.costs.estimates])
        ordered = [self.plan.to_do[i] for i in order]
        if self.sweep.search is not None:
            ordered = [planned for planned in ordered if planned.cell.kind != "cell"]
        return tuple(sorted(ordered, key=lambda planned: planned.cell.kind == "timing"))


def prepare(
    options: Options,
    *,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None = None,
    ahead: Ahead | None = None,
) -> Prepared:
    """Check all that can be checked, pack the images, and make the plan; no trial starts.

    Args:
        options: what a person asks.
        say: told one line about each thing that a person should know up front.
        on_progress: told (what, done, total) while images are drawn or packed.
        ahead: where there is one, Ray begins to start as soon as all is checked that takes no seconds.

    Raises:
        CastingTuneError: the first thing that would have gone wrong later.
    """
    sweep = _read(options)
    asked.check(options, sweep)
    store = Store(options.results).absolute()  # Ray's workers change folders
    image_folder.check_outside(options.data, store.root, "--results")
    store.check_writable()
    wanted = _wanted(sweep)
    resources, place = decide(options, sweep.n_cells)
    images = dataset.packed(options, store, say, on_progress)
    groups = dataset.groups(wanted, images, store, say, on_progress)
    finish = _finisher(place, groups)
    wanted = tuple(finish(cell) for cell in wanted)
    beside = (extra_cells.baselines(wanted) if options.baselines else ()) + (
        extra_cells.timings(wanted) if options.timing else ()
    )
    notes, asha = (
        dataset.notes(wanted, images, None if options.address else place.device),
        _asha(sweep, wanted),
    )
    if asha is not None and asha.grace_epochs >= asha.max_epochs:
        notes += (
            f"grace_epochs = {asha.grace_epochs} of {asha.max_epochs} epochs: no trial will be stopped.",
        )
    past, cells = NO_PAST, wanted + beside
    if sweep.search is not None:
        past = search.past(
            sweep.search, store, sweep=sweep.name, dataset_id=images.dataset_id, finish=finish
        )
        cells = tuple(choice.cell for choice in past.chosen) + beside
        notes += past.notes
    counts = dataset.count(wanted + cells, images, groups)
    for note in notes:
        say(note)
    ids = [cell_id(cell.config, images.dataset_id) for cell in cells]
    made = plan.make(
        cells,
        ids,
        store,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        scheduler=sweep.schedule.scheduler,
    )
    if len(made.to_do) > plan.MANY and not (options.plan or options.yes):
        raise UsageError(
            f"{len(made.to_do):,} cells are to be trained. If so many are meant, add --yes."
        )
    free_bytes = psutil.virtual_memory().available  # before Ray takes its part
    if ahead is not None and _goes_to_ray(options, sweep, made, n_chosen=len(past.chosen)):
        ahead.start(nodes.slots(resources, place))
    if not options.plan:  # which asks nobody for weights: it must answer without a network
        _check_weights(wanted)
    works = [dataset.work(planned.cell.config, counts) for planned in made.to_do]
    unknown = plan.unmeasured(works, store, place=like(place)) if options.probe else ()
    told = dataset.progress(on_progress, "probing networks")
    shares: Shares | None = None
    in_workers = functools.partial(  # the driver may have no GPU, and is to hold no memory of one
        gpu_probes.share,
        images=images,
        store=store,
        also=unknown,
        n_images=dataset.counter(counts),
        place=place,
        groups=groups,
        address=options.address,
        say=say,
        on_progress=told,
    )
    if options.gpus_per_trial == "auto" and (works or sweep.search is not None):
        configs = [work.config for work in works] + [
            cell.config for cell in wanted if sweep.search is not None
        ]
        shares = in_workers([] if options.plan and not options.probe else configs)
        resources, place = shared(resources, place, shares, configs, options.trials_at_once)
    elif unknown and place.device == "cuda" and not options.inline:
        in_workers([])
    else:
        gpu_probes.time(unknown, images, store, place=place, groups=groups, on_progress=told)
    costs = plan.costs(
        works, store, place=like(place), gpus=resources.gpus, n_at_once=place.n_at_once
    )
    if shares is not None:
        costs = plan.on_shared_gpus(
            costs,
            [shares.of(work.config) for work in works],
            n_unmeasured=sum(not shares.knows(work.config) for work in works),
            n_gpus=shares.devices.n_gpus,
            n_at_once=options.trials_at_once or shares.devices.n_cpus,
        )
        for sentence in plan.sharing_sentences(costs) if not options.plan else ():
            say(sentence)
    LOG.info("sweep %s: %d cells, %d of them to train", sweep.name, len(cells), len(made.to_do))
    return Prepared(
        options=options,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
        sweep=replace(sweep, cells=cells),
        pack=images,
        store=store,
        plan=made,
        costs=costs,
        allowance=allowance(options, sweep, place, free_bytes=free_bytes),
        resources=resources,
        place=place,
        groups=groups,
        notes=notes,
        finish=finish,
        asha=asha,
        past=past,
        ahead=ahead,
    )


def _read(options: Options) -> Sweep:
    """Read the sweep; a plan lists the cells that cannot be trained, and a run refuses them."""
    sweep = expand.read(
        options.sweep, quick=options.quick, only=options.only, overrides=options.overrides
    )
    sweep = validate.check_sizes(sweep)
    if not options.plan:
        validate.check(sweep)
    return sweep


def _wanted(sweep: Sweep) -> tuple[Cell, ...]:
    """Return the cells to check: of a search, whose cells are not known yet, those at the ends of its ranges."""
    if sweep.search is None:
        return sweep.cells
    cells = tuple(Cell(row="", label="", config=config) for config in search.corners(sweep.search))
    validate.check(validate.check_sizes(replace(sweep, cells=cells)))
    return cells


def _check_weights(cells: Sequence[Cell]) -> None:
    """Raise where weights are not to be had: torch, timm and a hub take seconds to say."""
    for backbone, weights in dict.fromkeys(
        (cell.config.backbone, cell.config.weights) for cell in cells
    ):
        build.weights_id(backbone, weights)


def _goes_to_ray(options: Options, sweep: Sweep, made: Plan, *, n_chosen: int) -> bool:
    """Say whether it is certain that trials go to a Ray of this machine, and known how many at once."""
    if (
        options.plan
        or options.probe
        or options.inline
        or options.address
        or options.gpus_per_trial == "auto"
    ):
        return False
    if sweep.search is not None and n_chosen < sweep.search.n_trials:
        return True
    return any(planned.cell.kind != "timing" for planned in made.to_do)


def execute(
    prepared: Prepared,
    *,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_choice: Callable[[Task], None] = lambda _task: None,
    halt: Halt | None = None,
) -> int:
    """Record what was asked, train the cells that are to do, and return how many of the sweep's cells lack a result.

    `on_choice` is told of each task that a search adds, before its events. A trial that ASHA
    stopped lacks nothing. A `halt` that is wished lets the running epochs end and starts no other.
    """
    store, sweep = prepared.store, prepared.sweep
    step("run begins")
    halt = halt or Halt()
    with store.sweep_lock(sweep.name, on_lost=halt.wished.set):
        wanted = _train(prepared, on_event, on_choice, halt)
        step("run has trained")
        checkpoint.clear(store.root, wanted & store.completed())
        store.settle()
    step("run ends")
    lacking = len(wanted - _settled(prepared).keys())
    if halt.wished.is_set():  # what a search had no more time to choose
        lacking += prepared.n_to_choose - (
            len(wanted) - len({p.cell_id for p in prepared.plan.planned})
        )
    return lacking


def _settled(prepared: Prepared) -> dict[str, str]:
    """Return the cells that have ended as they should: completed, or stopped where the sweep's scheduler stops."""
    settled = dict.fromkeys(prepared.store.completed(), "completed")
    if prepared.asha is not None:
        settled |= {
            cell: status for cell, status in prepared.store.failed().items() if status == "stopped"
        }
    return settled


def _train(
    prepared: Prepared,
    on_event: Callable[[Event], None],
    on_choice: Callable[[Task], None],
    halt: Halt,
) -> set[str]:
    """Train what is to do, and return the ids of the cells that the run asked for."""
    options, store, sweep = prepared.options, prepared.store, prepared.sweep
    store.write("cells", sweep.name, prepared.run_id, _asked(prepared))
    wanted = {planned.cell_id for planned in prepared.plan.planned}
    if options.fresh:
        for p in prepared.plan.to_do:
            store.drop(store.checkpoint(p.cell_id))
    attempts = store.last_attempts()
    tasks = [
        Task(config=p.cell.config, label=p.cell.label, attempts=attempts.get(p.cell_id, 0))
        for p in prepared.to_do
    ]
    n_timed = sum(p.cell.kind == "timing" for p in prepared.to_do)  # they come last
    work = Work(
        tasks=tuple(tasks[: len(tasks) - n_timed]),
        store=store,
        sweep=sweep.name,
        place=prepared.place,
        retries=options.retries,
        groups=prepared.groups,
        allowance=prepared.allowance,
        on_oom=options.on_oom or sweep.limits.on_oom,
        asha=prepared.asha,
    )
    if sweep.search is not None:
        study = _study(prepared, sweep.search, work.tasks, wanted, on_choice)
        work = replace(work, tasks=study.tasks, source=study)

    def tell(event: Event) -> None:
        known = work.tasks  # those of a search grow; timing passes follow
        task = (
            known[event.task]
            if event.task < len(known)
            else tasks[event.task - len(known) - n_timed]
        )
        log(event, task.label)
        on_event(event)

    lacks = (
        bool(prepared.plan.to_do or prepared.n_to_choose)
        if sweep.search is not None
        else bool(work.tasks)
    )
    if lacks and options.inline:
        ray_tune.run_inline(work, prepared.pack, on_event=tell, halt=halt)
    elif lacks:
        ray_tune.run_ray(
            work,
            prepared.pack,
            resources=prepared.resources,
            address=options.address,
            on_event=tell,
            halt=halt,
            ahead=prepared.ahead,
        )
    if (
        n_timed and not halt.wished.is_set()
    ):  # after all others, one at a time, with every CPU: the device is theirs alone
        alone = replace(prepared.place, n_at_once=1, n_threads=ray_cluster.cpus_here(), ray=None)
        if alone.device == "cuda":
            alone = replace(alone, gpus=1)
        timed = replace(work, tasks=tuple(tasks[len(tasks) - n_timed :]), place=alone)
        first = len(work.tasks)
        ray_tune.run_inline(
            timed,
            prepared.pack,
            on_event=lambda event: tell(replace(event, task=event.task + first)),
            halt=halt,
        )
    return wanted


def _study(
    prepared: Prepared,
    searched: Search,
    first: Sequence[Task],
    wanted: set[str],
    on_choice: Callable[[Task], None],
) -> Study:
    """Return the source of a search's tasks; each new choice gets a row in cells before it runs."""
    store, sweep = prepared.store, prepared.sweep
    # a cell that failed before is settled unless it is to run again; one that is trained afresh is
    # not
    failed = {p.cell_id: str(p.status) for p in prepared.plan.planned if p.state == "failed"}
    again = {p.cell_id for p in prepared.plan.to_do}
    settled = {
        cell: status for cell, status in (failed | _settled(prepared)).items() if cell not in again
    }

    def record(choice: Chosen, task: Task | None) -> None:
        if choice.cell_id not in wanted:
            position = len(prepared.plan.planned) + len(wanted)  # after all that stand there
            planned = Planned(cell=choice.cell, cell_id=choice.cell_id, state="to do", runs=True)
            row = _asked_row(prepared, planned, position=position, settings=choice.settings)
            store.write("cells", sweep.name, f"{prepared.run_id}-{position}", [row])
            wanted.add(choice.cell_id)
        if task is not None:
            on_choice(task)

    return Study(
        searched,
        store,
        dataset_id=prepared.pack.dataset_id,
        finish=prepared.finish,
        earlier=prepared.past.chosen,
        n_labelled=prepared.past.n_labelled,
        settled=settled,
        first=tuple(first),
        n_at_once=prepared.place.n_at_once,
        on_choice=record,
    )


def _finisher(place: Place, groups: NDArray[np.int64] | None) -> Callable[[Cell], Cell]:
    """Return what settles for a cell what only machine and images can tell."""
    identified = functools.cache(build.expected_weights_id)
    split_id = "official" if groups is None else audits.split_id(groups)

    def finish(cell: Cell) -> Cell:
        return resolve(
            cell,
            weights_id=identified(cell.config.backbone, cell.config.weights),
            split_id=split_id,
            precision=precision.resolve(cell.config, place.device),
        )

    return finish


def _asha(sweep: Sweep, cells: Sequence[Cell]) -> Asha | None:
    if sweep.schedule.scheduler == "fifo":
        return None
    return Asha(
        objective=sweep.schedule.objective,
        grace_epochs=sweep.schedule.grace_epochs,
        reduction_factor=sweep.schedule.reduction_factor,
        max_epochs=max(cell.config.epochs for cell in cells),
    )


def _asked(prepared: Prepared) -> list[dict[str, object]]:
    chosen = {choice.cell_id: choice.settings for choice in prepared.past.chosen}
    return [
        _asked_row(prepared, planned, position=position, settings=chosen.get(planned.cell_id))
        for position, planned in enumerate(prepared.plan.planned)
    ]


def _asked_row(
    prepared: Prepared, planned: Planned, *, position: int, settings: dict[str, object] | None
) -> dict[str, object]:
    return {
        "run_id": prepared.run_id,
        "sweep": prepared.sweep.name,
        "asked_at": datetime.now(UTC),
        "position": position,
        "cell_id": planned.cell_id,
        "row": planned.cell.row,
        "label": planned.cell.label,
        **{name: getattr(planned.cell.config, name) for name in _SETTINGS_ASKED},
        "augmentation": augmentation_name(planned.cell.config.toggles),
        "weights": planned.cell.config.weights.partition(":")[0],
        "dataset_id": prepared.pack.dataset_id,
        "quick": prepared.options.quick,
        "command": prepared.options.command,
        "kind": planned.cell.kind,
        "study": json.dumps(planned.cell.study) if planned.cell.study else None,
        "chosen": None if settings is None else json.dumps(settings),
    }


_SETTINGS_ASKED = tuple(name for name in CELLS.names if name in SETTINGS)
