"""Reads a sweep, checks everything that can be checked, and plans it.

Input: Options, as a user gave them. Output: a Prepared run, or the first error that would have
occurred later. Starts no trial.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from casting_tune import machine
from casting_tune.config import Allowance, TrialConfig, cell_id
from casting_tune.data import image_folder
from casting_tune.data.pack import Pack
from casting_tune.errors import UsageError
from casting_tune.execution import dataset, nodes, search_space
from casting_tune.execution.dataset import Counts, Reporter
from casting_tune.execution.gpu_probes import Probes, Shares
from casting_tune.execution.nodes import Resources
from casting_tune.execution.placement import allowance, decide, like, shared
from casting_tune.execution.prepared import Prepared
from casting_tune.execution.ray_cluster import Ahead
from casting_tune.execution.search_space import NO_PAST, Past
from casting_tune.execution.tasks import Asha
from casting_tune.models import build
from casting_tune.planning import estimate, expand, extra_cells, plan, validate
from casting_tune.planning.cells import Cell, Sweep, resolve
from casting_tune.planning.options import Options
from casting_tune.planning.options import check as check_options
from casting_tune.planning.plan import Costs, Plan
from casting_tune.store import audits
from casting_tune.store.store import Store
from casting_tune.training import precision
from casting_tune.training.image_split import validation_of
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)


def prepare(
    options: Options,
    *,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None = None,
    ahead: Ahead | None = None,
) -> Prepared:
    """Check everything that can be checked, pack the images, and plan; no trial starts.

    Args:
        options: what the user requests.
        say: called with one line about each thing that the user should know before the run.
        on_progress: called with (what, done, total) while images are drawn or packed.
        ahead: Ray starts as soon as the checks that take no seconds have passed.

    Raises:
        CastingTuneError: the first error that would have occurred later.

    Example:
        >>> from pathlib import Path
        >>> from casting_tune import Options, prepare
        >>> options = Options(sweep="tiny.toml", data=Path("castings"), inline=True)
        >>> prepared = prepare(options, say=lambda line: None)
        >>> len(prepared.plan.to_do)  # cells to train: this sweep has run before
        0
    """
    checked = _check(options, Reporter(say, on_progress))
    sweep, cells = checked.sweep, checked.cells
    for note in checked.notes:
        say(note)
    made = _plan(checked)
    free_bytes = machine.free_bytes()  # before Ray takes its part
    if ahead is not None and _goes_to_ray(checked, made):
        ahead.start(nodes.slots(checked.resources, checked.place))
    if not options.plan:  # a plan must work without a network
        _check_weights(checked.wanted)
    costs, resources, place = _costs(checked, made)
    LOG.info("sweep %s: %d cells, %d of them to train", sweep.name, len(cells), len(made.to_do))
    return Prepared(
        options=options,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}",
        sweep=replace(sweep, cells=cells),
        pack=checked.images,
        store=checked.store,
        plan=made,
        costs=costs,
        allowance=_allowance(checked, made, place, free_bytes=free_bytes),
        resources=resources,
        place=place,
        groups=checked.groups,
        notes=checked.notes,
        finish=checked.finish,
        asha=checked.asha,
        past=checked.past,
        ahead=ahead,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What the checks of a run have established.

    `wanted` are the cells of the sweep, or the corners of a search; `cells` are those to plan.
    """

    options: Options
    sweep: Sweep
    store: Store
    images: Pack
    groups: NDArray[np.int64] | None
    wanted: tuple[Cell, ...]
    cells: tuple[Cell, ...]
    counts: Counts
    resources: Resources
    place: Place
    finish: Callable[[Cell], Cell]
    past: Past
    asha: Asha | None
    notes: tuple[str, ...]
    report: Reporter


def _check(options: Options, report: Reporter) -> _Checked:
    """Read the sweep, pack the images, and check the cells against them."""
    sweep = _read(options)
    check_options(options, sweep)
    store = Store(options.results).absolute()  # Ray's workers change folders
    image_folder.check_outside(options.data, store.root, "--results")
    store.check_writable()
    wanted = _cells_to_check(sweep)
    resources, place = decide(options, sweep.n_cells)
    images = dataset.packed(options, store, report)
    groups = dataset.groups(wanted, images, store, report)
    if not options.plan and (note := audits.keep_columns(images, store)):
        report.say(note)
    finish = _finisher(place, images, groups)
    wanted = tuple(finish(cell) for cell in wanted)
    past, asha = _past(sweep, store, images, finish), _asha(sweep, wanted)
    cells = wanted if sweep.search is None else tuple(choice.cell for choice in past.chosen)
    cells += _extra_cells(options, wanted)
    device = None if options.address else place.device
    return _Checked(
        options=options,
        sweep=sweep,
        store=store,
        images=images,
        groups=groups,
        wanted=wanted,
        cells=cells,
        counts=dataset.count(wanted + cells, images, groups),
        resources=resources,
        place=place,
        finish=finish,
        past=past,
        asha=asha,
        notes=dataset.notes(wanted, images, device) + _asha_notes(asha) + past.notes,
        report=report,
    )


def _read(options: Options) -> Sweep:
    """Read the sweep; a plan lists the cells that cannot be trained, and a run rejects them."""
    sweep = expand.read(
        options.sweep, quick=options.quick, only=options.only, overrides=options.overrides
    )
    sweep = validate.check_sizes(sweep)
    if not options.plan:
        validate.check(sweep)
    return sweep


def _cells_to_check(sweep: Sweep) -> tuple[Cell, ...]:
    """Return the cells of a sweep; of a search, those at the ends of its ranges."""
    if sweep.search is None:
        return sweep.cells
    cells = tuple(
        Cell(row="", label="", config=config) for config in search_space.corners(sweep.search)
    )
    validate.check(validate.check_sizes(replace(sweep, cells=cells)))
    return cells


def _extra_cells(options: Options, wanted: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Return the baselines and timing passes that the options ask for."""
    baselines = extra_cells.baselines(wanted) if options.baselines else ()
    return baselines + (extra_cells.timings(wanted) if options.timing else ())


def _past(sweep: Sweep, store: Store, images: Pack, finish: Callable[[Cell], Cell]) -> Past:
    if sweep.search is None:
        return NO_PAST
    return search_space.past(
        sweep.search, store, sweep=sweep.name, dataset_id=images.dataset_id, finish=finish
    )


def _plan(checked: _Checked) -> Plan:
    """Compare the cells with the store.

    Raises:
        UsageError: very many cells to train, without --yes.
    """
    options, cells = checked.options, checked.cells
    made = plan.make(
        cells,
        [cell_id(cell.config, checked.images.dataset_id) for cell in cells],
        checked.store,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        scheduler=checked.sweep.schedule.scheduler,
    )
    if len(made.to_do) > plan.MANY and not (options.plan or options.yes):
        raise UsageError(f"{len(made.to_do):,} cells to train. Add --yes to train so many.")
    return made


def _check_weights(cells: Sequence[Cell]) -> None:
    """Raise WeightsError if weights are not available; torch, timm and a hub take seconds."""
    for backbone, weights in dict.fromkeys(
        (cell.config.backbone, cell.config.weights) for cell in cells
    ):
        build.weights_id(backbone, weights)


def _goes_to_ray(checked: _Checked, made: Plan) -> bool:
    """Return whether trials certainly go to a Ray of this machine, and their number is known."""
    options, search = checked.options, checked.sweep.search
    if (
        options.plan
        or options.probe
        or options.inline
        or options.address
        or options.gpus_per_trial == "auto"
    ):
        return False
    if search is not None and len(checked.past.chosen) < search.n_trials:
        return True
    return any(planned.cell.kind != "timing" for planned in made.to_do)


def _finisher(
    place: Place, images: Pack, groups: NDArray[np.int64] | None
) -> Callable[[Cell], Cell]:
    """Return a function that adds to a cell what depends on the machine and the images."""
    identified = functools.cache(build.expected_weights_id)
    split_id = "official" if groups is None else audits.split_id(groups)

    def finish(cell: Cell) -> Cell:
        return resolve(
            cell,
            weights_id=identified(cell.config.backbone, cell.config.weights),
            split_id=split_id,
            validation=validation_of(cell.config, images),
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


def _asha_notes(asha: Asha | None) -> tuple[str, ...]:
    if asha is None or asha.grace_epochs < asha.max_epochs:
        return ()
    return (
        f"grace_epochs = {asha.grace_epochs} of {asha.max_epochs} epochs: "
        "no trial will be stopped.",
    )


def _allowance(checked: _Checked, made: Plan, place: Place, *, free_bytes: int) -> Allowance:
    """Return the limits of a trial, and report if its images do not fit them."""
    limits = allowance(checked.options, checked.sweep, place, free_bytes=free_bytes)
    configs = [planned.cell.config for planned in made.to_do]
    note = dataset.streaming_note(configs, checked.counts, checked.images, limits)
    if note and place.device == "cpu":
        checked.report.say(note)
    return limits


def _costs(checked: _Checked, made: Plan) -> tuple[Costs, Resources, Place]:
    """Return what the cells to train cost, and what a trial takes; probes networks if required."""
    options, store = checked.options, checked.store
    resources, place = checked.resources, checked.place
    works = [dataset.work(planned.cell.config, checked.counts) for planned in made.to_do]
    unknown = plan.unmeasured(works, store, place=like(place)) if options.probe else ()
    probes = Probes(
        images=checked.images,
        store=store,
        place=place,
        groups=checked.groups,
        address=options.address,
        report=checked.report,
    )
    n_images = dataset.counter(checked.counts)
    shares: Shares | None = None
    if options.gpus_per_trial == "auto" and (works or checked.sweep.search is not None):
        configs = [work.config for work in works]
        if checked.sweep.search is not None:
            configs += [cell.config for cell in checked.wanted]
        measured: list[TrialConfig] = [] if options.plan and not options.probe else configs
        shares = probes.share(measured, also=unknown, n_images=n_images)
        resources, place = shared(resources, place, shares, configs, options.trials_at_once)
    # the driver may have no GPU, and must not hold memory of one: probe in workers
    elif unknown and place.device == "cuda" and not options.inline:
        probes.share([], also=unknown, n_images=n_images)
    else:
        probes.run_here(unknown)
    costs = plan.costs(
        works, store, place=like(place), gpus=resources.gpus, n_at_once=place.n_at_once
    )
    if shares is not None:
        costs = _on_shared_gpus(checked, costs, works, shares)
    return costs, resources, place


def _on_shared_gpus(
    checked: _Checked, costs: Costs, works: Sequence[estimate.Work], shares: Shares
) -> Costs:
    """Return the costs with several trials on a GPU, and report how they share it."""
    options = checked.options
    costs = plan.on_shared_gpus(
        costs,
        [shares.of(work.config) for work in works],
        n_unmeasured=sum(not shares.knows(work.config) for work in works),
        n_gpus=shares.devices.n_gpus,
        n_at_once=options.trials_at_once or shares.devices.n_cpus,
    )
    if not options.plan:
        for sentence in plan.sharing_sentences(costs):
            checked.report.say(sentence)
    return costs
