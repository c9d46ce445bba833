"""`python -m casting_tune.sweep NAME`: read, check everything, plan, schedule, tell.

Comes in: Options, as a person gave them. Goes out: the store's rows, and Events while it works. Two steps: `prepare`
finds every fault that can be found before the first trial; `execute` trains what the store lacks. Prints nothing.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from casting_tune import (
    audits,
    augment,
    backbones,
    estimate,
    extras,
    pack,
    packing,
    plan,
    probes,
    run,
    scheduling,
    search,
    space,
    synthetic,
)
from casting_tune.errors import ResourcesError, UsageError
from casting_tune.pack import Pack
from casting_tune.plan import Costs, Plan, Planned
from casting_tune.probes import Shares
from casting_tune.rows import Place
from casting_tune.scheduling import Resources
from casting_tune.search import Chosen, Study
from casting_tune.space import Cell, Sweep
from casting_tune.steps import step
from casting_tune.store import Store
from casting_tune.tasks import Asha, Event, Halt, Task, Work
from casting_tune.trial import Allowance, TrialConfig, cell_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHETIC_IMAGES, SYNTHETIC_PX = 400, 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person asks of a run; see `casting-tune sweep --help` for each."""

    sweep: str
    data: Path | None = None
    results: Path | str = "results"
    quick: bool = False
    only: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    positive: str = "def_front"
    pack_size: int | None = None
    skip_bad: bool = False
    inline: bool = False
    address: str | None = None
    trials_at_once: int | None = None
    gpus_per_trial: float | Literal["auto"] | None = None
    retries: int = 1
    timing: bool = False
    baselines: bool = True
    plan: bool = False
    probe: bool = False
    price_per_gpu_hour: float | None = None
    fresh: bool = False
    retry_failed: bool = False
    yes: bool = False
    keep: tuple[Literal["last", "best"], ...] = ()
    max_seconds: float | None = None
    memory_gib: float | None = None
    on_oom: Literal["fail", "accumulate"] | None = None
    command: str = ""


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
    earlier: tuple[Chosen, ...] = ()  # what earlier runs of a search chose

    @property
    def n_to_choose(self) -> int:
        """How many cells a search has still to choose."""
        return 0 if self.sweep.search is None else max(0, self.sweep.search.n_trials - len(self.earlier))

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
    options: Options, *, say: Callable[[str], None], on_progress: Callable[[str, int, int], None] | None = None
) -> Prepared:
    """Check all that can be checked, pack the images, and make the plan; no trial starts.

    Args:
        options: what a person asks.
        say: told one line about each thing that a person should know up front.
        on_progress: told (what, done, total) while images are drawn or packed.

    Raises:
        CastingTuneError: the first thing that would have gone wrong later.
    """
    sweep = space.read(options.sweep, quick=options.quick, only=options.only, overrides=options.overrides)
    if not options.plan:
        space.check(sweep)
    _check_numbers(options)
    _check_search(options, sweep)
    store = Store(options.results).absolute()  # Ray's workers change folders
    store.check_writable()
    asked = sweep.cells
    if (
        sweep.search is not None
    ):  # its cells are not known yet: those at the ends of its ranges are checked in their place
        asked = tuple(Cell(row="", label="", config=config) for config in search.corners(sweep.search))
    resources, place = _resources(options, sweep.n_cells)
    images = _pack(options, store, say, on_progress)
    groups = _groups(asked, images, store, say, on_progress)
    # a plan asks nobody for weights: it must answer without a network
    identify = backbones.expected_weights_id if options.plan else backbones.weights_id
    finish = _finisher(place, groups, identify=identify)
    asked = tuple(finish(cell) for cell in asked)
    beside = (extras.baselines(asked) if options.baselines else ()) + (extras.timings(asked) if options.timing else ())
    notes, asha = _notes(asked, images), _asha(sweep, asked)
    if asha is not None and asha.grace_epochs >= asha.max_epochs:
        notes += (f"grace_epochs = {asha.grace_epochs} of {asha.max_epochs} epochs: no trial will be stopped.",)
    earlier: tuple[Chosen, ...] = ()
    cells = asked + beside
    if sweep.search is not None:
        dataset_id = images.dataset_id
        earlier = search.past(sweep.search, store, sweep=sweep.name, dataset_id=dataset_id, finish=finish)
        cells = tuple(choice.cell for choice in earlier) + beside
    sizes = _sizes(asked + cells, images, groups)
    for note in notes:
        say(note)
    ids = [cell_id(cell.config, images.dataset_id) for cell in cells]
    made = plan.make(
        cells, ids, store, fresh=options.fresh, retry_failed=options.retry_failed, scheduler=sweep.schedule.scheduler
    )
    if len(made.to_do) > plan.MANY and not (options.plan or options.yes):
        raise UsageError(f"{len(made.to_do):,} cells are to be trained. If so many are meant, add --yes.")
    works = [_work(planned.cell.config, sizes) for planned in made.to_do]
    unknown = plan.unknown(works, store, place=_like(place)) if options.probe else ()
    told = _progress(on_progress, "probing networks")
    shares: Shares | None = None
    in_workers = functools.partial(  # the driver may have no GPU, and is to hold no memory of one
        probes.share,
        images=images,
        store=store,
        also=unknown,
        n_images=_counter(sizes),
        place=place,
        groups=groups,
        address=options.address,
        say=say,
        on_progress=told,
    )
    if options.gpus_per_trial == "auto" and (works or sweep.search is not None):
        configs = [work.config for work in works] + [cell.config for cell in asked if sweep.search is not None]
        shares = in_workers([] if options.plan and not options.probe else configs)
        resources, place = _shared(resources, place, shares, configs, options.trials_at_once)
    elif unknown and place.device == "cuda" and not options.inline:
        in_workers([])
    else:
        probes.time(unknown, images, store, place=place, groups=groups, on_progress=told)
    costs = plan.costs(works, store, place=_like(place), gpus=resources.gpus, n_at_once=place.n_at_once)
    if shares is not None:
        costs = plan.on_shared_gpus(
            costs,
            [shares.of(work.config) for work in works],
            n_unmeasured=sum(not shares.knows(work.config) for work in works),
            n_gpus=shares.devices.n_gpus,
            n_at_once=options.trials_at_once or shares.devices.n_cpus,
        )
        for sentence in plan.sharing(costs) if not options.plan else ():
            say(sentence)
    return Prepared(
        options=options,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
        sweep=replace(sweep, cells=cells),
        pack=images,
        store=store,
        plan=made,
        costs=costs,
        allowance=_allowance(options, sweep, place),
        resources=resources,
        place=place,
        groups=groups,
        notes=notes,
        finish=finish,
        asha=asha,
        earlier=earlier,
    )


def execute(
    prepared: Prepared,
    *,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_choice: Callable[[Task], None] = lambda _task: None,
    halt: Halt | None = None,
) -> int:
    """Record what was asked, train the cells that are to do, and return how many of the sweep's cells lack a result.

    `on_choice` is told of each task that a search adds, before its events. A trial that ASHA stopped lacks nothing. A
    `halt` that is wished lets the running epochs end and starts no other.
    """
    store, sweep = prepared.store, prepared.sweep
    step("run begins")
    halt = halt or Halt()
    with store.running(sweep.name):
        wanted = _train(prepared, on_event, on_choice, halt)
        step("run has trained")
        store.settle()
    step("run ends")
    lacking = len(wanted - _settled(prepared).keys())
    if halt.wished.is_set():  # what a search had no more time to choose
        lacking += prepared.n_to_choose - (len(wanted) - len({p.cell_id for p in prepared.plan.planned}))
    return lacking


def _settled(prepared: Prepared) -> dict[str, str]:
    """Return the cells that have ended as they should: completed, or stopped where the sweep's scheduler stops."""
    settled = dict.fromkeys(prepared.store.completed(), "completed")
    if prepared.asha is not None:
        settled |= {cell: status for cell, status in prepared.store.failed().items() if status == "stopped"}
    return settled


def _train(
    prepared: Prepared, on_event: Callable[[Event], None], on_choice: Callable[[Task], None], halt: Halt
) -> set[str]:
    """Train what is to do, and return the ids of the cells that the run asked for."""
    options, store, sweep = prepared.options, prepared.store, prepared.sweep
    store.write("cells", sweep.name, prepared.run_id, _asked(prepared))
    wanted = {planned.cell_id for planned in prepared.plan.planned}
    if options.fresh:
        for p in prepared.plan.to_do:
            store.drop(store.checkpoint(p.cell_id))
    attempts = store.attempts()
    tasks = [
        Task(config=p.cell.config, label=p.cell.label, attempts=attempts.get(p.cell_id, 0)) for p in prepared.to_do
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
    lacks = bool(prepared.plan.to_do or prepared.n_to_choose) if sweep.search is not None else bool(work.tasks)
    if lacks and options.inline:
        scheduling.run_inline(work, prepared.pack, on_event=on_event, halt=halt)
    elif lacks:
        scheduling.run_ray(
            work, prepared.pack, resources=prepared.resources, address=options.address, on_event=on_event, halt=halt
        )
    if (
        n_timed and not halt.wished.is_set()
    ):  # after all others, one at a time, with every CPU: the device is theirs alone
        alone = replace(prepared.place, n_at_once=1, n_threads=scheduling.cpus_here(), ray=None)
        if alone.device == "cuda":
            alone = replace(alone, gpus=1)
        timed = replace(work, tasks=tuple(tasks[len(tasks) - n_timed :]), place=alone)
        first = len(work.tasks)
        scheduling.run_inline(
            timed,
            prepared.pack,
            on_event=lambda event: on_event(replace(event, task=event.task + first)),
            halt=halt,
        )
    return wanted


def _study(
    prepared: Prepared,
    searched: space.Search,
    first: Sequence[Task],
    wanted: set[str],
    on_choice: Callable[[Task], None],
) -> Study:
    """Return the source of a search's tasks; each new choice gets a row in cells before it runs."""
    store, sweep = prepared.store, prepared.sweep
    # a cell that failed before is settled unless it is to run again; one that is trained afresh is not
    failed = {p.cell_id: str(p.status) for p in prepared.plan.planned if p.state == "failed"}
    again = {p.cell_id for p in prepared.plan.to_do}
    settled = {cell: status for cell, status in (failed | _settled(prepared)).items() if cell not in again}

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
        earlier=prepared.earlier,
        settled=settled,
        first=tuple(first),
        n_at_once=prepared.place.n_at_once,
        on_choice=record,
    )


def _check_numbers(options: Options) -> None:
    for name, value, least in (
        ("--trials-at-once", options.trials_at_once, 1),
        ("--gpus-per-trial", options.gpus_per_trial, 0),
        ("--retries", options.retries, 0),
        ("--pack-size", options.pack_size, 16),
        ("--price-per-gpu-hour", options.price_per_gpu_hour, 0),
    ):
        if isinstance(value, int | float) and not (value >= least and math.isfinite(value)):
            raise UsageError(f"{name} is {least} or more, not {value}.")
    if options.timing and options.address:
        raise UsageError(
            "--timing measures the device of this machine, alone, and --address trains on others: drop one."
        )
    for name, limit in (("--max-seconds", options.max_seconds), ("--max-memory", options.memory_gib)):
        if limit is not None and not (limit > 0 and math.isfinite(limit)):
            raise UsageError(f"{name} is more than 0, not {limit}.")
    if options.inline and options.gpus_per_trial == "auto":
        raise UsageError(
            "--gpus-per-trial auto packs several trials on a GPU, and --inline runs one: drop one of them."
        )
    if options.inline and (options.address or (options.trials_at_once or 1) > 1):
        raise UsageError("--inline runs one trial after the other, without Ray: leave out --address, --trials-at-once.")


def _check_search(options: Options, sweep: Sweep) -> None:
    if options.inline and sweep.schedule.scheduler == "asha":
        raise UsageError(
            'scheduler = "asha" stops trials through Ray Tune, and --inline goes without it. Leave out --inline, or '
            'write scheduler = "fifo".'
        )
    if options.timing and sweep.search is not None:
        raise UsageError("--timing times the cells of a file, and a search has none before it runs. Leave it out.")


def _resources(options: Options, n_cells: int) -> tuple[Resources, Place]:
    """Decide what a trial takes: a GPU where there is one, else an equal share of the CPUs."""
    n_gpus = scheduling.gpus(options.address, inline=options.inline)
    asked = options.gpus_per_trial
    gpus = 1 if asked == "auto" else min(1, n_gpus) if asked is None else asked
    if gpus > 0 and n_gpus == 0:
        named = asked if asked == "auto" else f"{gpus:g}"
        raise ResourcesError(f"--gpus-per-trial {named}: there is no GPU here. Leave it out to train on the CPU.")
    cpus = scheduling.cpus_here()
    at_once = options.trials_at_once
    if options.inline:
        at_once = 1
    elif at_once is None and gpus == 0 and options.address is None:
        at_once = min(cpus, n_cells)
    share = max(1, cpus // at_once) if at_once and gpus == 0 else 1
    place = Place(
        device="cuda" if gpus else "cpu",
        n_threads=share,
        n_at_once=at_once or max(1, int(n_gpus / gpus) if gpus else cpus),
        gpus=gpus,
        ray=None if options.inline else scheduling.ray_version(),
        git_commit=_git_commit(),
    )
    fitting = min(share, cpus / at_once) if at_once else share
    return Resources(cpus=fitting, gpus=gpus, n_at_once=at_once), place


def _shared(
    resources: Resources, place: Place, shares: Shares, configs: Sequence[TrialConfig], at_once: int | None
) -> tuple[Resources, Place]:
    """Let each trial take the share of a GPU that its memory needs, and say how many then run at the same time."""
    least = min((share for share in map(shares.of, configs) if share), default=1.0)
    fitting = shares.devices.n_gpus * packing.trials_a_gpu(least)
    place = replace(place, n_at_once=at_once or max(1, min(fitting, shares.devices.n_cpus)), gpus=None)
    return replace(resources, share=shares.of), place


def _finisher(
    place: Place, groups: NDArray[np.int64] | None, *, identify: Callable[[str, str], str]
) -> Callable[[Cell], Cell]:
    """Return what settles for a cell what only machine and images can tell; asks for each backbone's weights once."""
    identified = functools.cache(identify)
    split_id = "official" if groups is None else audits.split_id(groups)

    def finish(cell: Cell) -> Cell:
        return space.resolve(
            cell,
            weights_id=identified(cell.config.backbone, cell.config.weights),
            split_id=split_id,
            precision=run.resolve_precision(cell.config, place.device),
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


def _groups(
    cells: tuple[Cell, ...],
    images: Pack,
    store: Store,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None,
) -> NDArray[np.int64] | None:
    """Return the photographs of the images where a grouped split asks for them, from the store or by an audit now."""
    if all(cell.config.split != "grouped" for cell in cells):
        return None
    say('split = "grouped": which images show one photograph comes from the audit of this dataset.')
    return audits.kept(images, store, on_progress=_progress(on_progress, "comparing images")).group


def _progress(on_progress: Callable[[str, int, int], None] | None, what: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None


def _pack(
    options: Options,
    store: Store,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None,
) -> Pack:
    folder = options.data
    if folder is None:
        folder = store.root / f"synthetic-{SYNTHETIC_IMAGES}x{SYNTHETIC_PX}"
        say(f"No dataset given (--data DIR): training on {SYNTHETIC_IMAGES} drawn castings.")
        if not folder.is_dir():
            beside = store.root / f".drawing-{uuid.uuid4().hex}"
            told = _progress(on_progress, "drawing castings")
            try:
                synthetic.draw(beside, n_images=SYNTHETIC_IMAGES, size_px=SYNTHETIC_PX, on_progress=told)
                beside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another sweep of this store has just drawn the same
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)  # gone already, unless drawing broke off
    return pack.pack(
        folder,
        store.root / "packs",
        positive=options.positive,
        size_px=options.pack_size,
        skip_bad=options.skip_bad,
        on_progress=_progress(on_progress, "packing images"),
    )


Needs = tuple[object, ...]
Sizes = dict[Needs, tuple[int, int, int]]


def _needs(config: TrialConfig) -> Needs:
    """Return the settings that decide which images a cell trains, validates and tests."""
    return (
        config.in_channels, config.validation_share, config.split_seed, config.train_images, config.test_images,
        config.split, config.n_folds, config.fold,
    )  # fmt: skip


def _sizes(cells: tuple[Cell, ...], images: Pack, groups: NDArray[np.int64] | None) -> Sizes:
    """Check that every cell can run on these images, and return their counts by what decides them."""
    wanted = {_needs(cell.config): cell.config for cell in cells}
    return {needs: run.check(config, images, groups) for needs, config in wanted.items()}


def _work(config: TrialConfig, sizes: Sizes) -> estimate.Work:
    n_train, n_validation, n_test = sizes[_needs(config)]
    return estimate.Work(config=config, n_train=n_train, n_validation=n_validation, n_test=n_test)


def _counter(sizes: Sizes) -> Callable[[TrialConfig], int]:
    """Return what tells how many images a configuration uses; one that a search will choose, as many as any."""
    counts = {needs: sum(parts) for needs, parts in sizes.items()}
    most = max(counts.values())
    return lambda config: counts.get(_needs(config), most)


def _like(place: Place) -> dict[str, object]:
    """Return what a place must share with that of another trial for their times to be alike."""
    return {"device": place.device, "n_threads": place.n_threads}


def _allowance(options: Options, sweep: Sweep, place: Place) -> Allowance:
    """Decide what one trial may take: what is asked for, else on the CPU its share of the memory that is free."""
    gib = options.memory_gib or sweep.limits.memory_gib
    share = 0.9 * psutil.virtual_memory().available / place.n_at_once
    return Allowance(
        max_seconds=options.max_seconds or sweep.limits.max_seconds,
        memory_bytes=int(gib * 2**30) if gib else int(share) if options.address is None else None,
        keep=options.keep,
    )


def _notes(cells: tuple[Cell, ...], images: Pack) -> tuple[str, ...]:
    """Say once, up front, what a reader of the table must know."""
    notes = []
    if images.images.ndim == 3 and any("hue" in cell.config.toggles for cell in cells):
        notes.append("These images are gray: the toggle hue changes no pixel of them.")
    in_train = set(images.sha256[images.splits == "train"])
    copies = sum(sha in in_train for sha in images.sha256[images.splits == "test"])
    if copies:
        n_test = int((images.splits == "test").sum())
        notes.append(f"{copies} of {n_test} test images are byte-for-byte copies of training images: scores flatter.")
    if images.skipped:
        notes.append(f"{len(images.skipped)} files could not be decoded and were skipped (recorded in the pack).")
    if images.split_made:
        notes.append("The folder names no test images: a stratified tenth was set aside and recorded in the pack.")
    return tuple(notes)


def _asked(prepared: Prepared) -> list[dict[str, object]]:
    chosen = {choice.cell_id: choice.settings for choice in prepared.earlier}
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
        **{key: getattr(planned.cell.config, key) for key in _SETTINGS_ASKED},
        "augmentation": augment.name(planned.cell.config.toggles),
        "weights": planned.cell.config.weights.partition(":")[0],
        "dataset_id": prepared.pack.dataset_id,
        "quick": prepared.options.quick,
        "command": prepared.options.command,
        "kind": planned.cell.kind,
        "study": json.dumps(planned.cell.study) if planned.cell.study else None,
        "chosen": None if settings is None else json.dumps(settings),
    }


_SETTINGS_ASKED = ("backbone", "batch_size", "image_px", "seed", "fold")


def _git_commit() -> str | None:
    """Return the commit of the checkout that casting_tune runs from, None where it is installed without one."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


if __name__ == "__main__":
    from casting_tune.cli import sweep_alone

    sweep_alone()
