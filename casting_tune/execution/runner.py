"""Trains the missing cells of a prepared run.

Input: a Prepared run, from `prepare`. Output: the store's rows, and Events during the run. Prints
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from casting_tune import machine
from casting_tune.execution.inline import run_inline
from casting_tune.execution.preparation import prepare
from casting_tune.execution.prepared import Prepared
from casting_tune.execution.ray_tune import run_ray
from casting_tune.execution.search import Start, Study
from casting_tune.execution.search_space import Chosen
from casting_tune.execution.tasks import Event, Halt, Task, Work, log
from casting_tune.failpoints import step
from casting_tune.planning.cells import Search
from casting_tune.planning.plan import Planned
from casting_tune.store import artifacts
from casting_tune.store.attempts import last_attempts
from casting_tune.store.locks import sweep_lock
from casting_tune.store.schema import CELLS, SETTINGS
from casting_tune.store.spool import settle
from casting_tune.toggles import augmentation_name
from casting_tune.training import checkpoint

__all__ = ["Prepared", "execute", "prepare"]


def execute(
    prepared: Prepared,
    *,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_choice: Callable[[Task], None] = lambda _task: None,
    halt: Halt | None = None,
) -> int:
    """Record the cells of a run, train those that are missing, and return how many lack a result.

    A trial that ASHA stopped counts as a result.

    Args:
        prepared: the run.
        on_event: called with each event of a task.
        on_choice: called with each task that a search adds, before its events.
        halt: once requested, the running epochs complete and no other trial starts.

    Example:
        >>> from pathlib import Path
        >>> from casting_tune import Options, execute, prepare
        >>> options = Options(sweep="tiny.toml", data=Path("castings"), inline=True)
        >>> execute(prepare(options, say=lambda line: None))  # cells without a result
        0
    """
    store, sweep = prepared.store, prepared.sweep
    step("run begins")
    halt = halt or Halt()
    with sweep_lock(store, sweep.name, on_lost=halt.requested.set):
        wanted = _train(prepared, on_event, on_choice, halt)
        step("run has trained")
        checkpoint.clear(store.root, wanted & store.completed())
        settle(store)
    step("run ends")
    lacking = len(wanted - _settled(prepared).keys())
    if halt.requested.is_set():  # cells that a search had no time to choose
        n_chosen = len(wanted) - len({p.cell_id for p in prepared.plan.planned})
        lacking += prepared.n_to_choose - n_chosen
    return lacking


def _settled(prepared: Prepared) -> dict[str, str]:
    """Return the cells that ended as planned: completed, or stopped by the sweep's scheduler."""
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
    """Train the missing cells, and return the ids of the cells of the run."""
    store, sweep = prepared.store, prepared.sweep
    store.write("cells", sweep.name, prepared.run_id, _cell_rows(prepared))
    wanted = {planned.cell_id for planned in prepared.plan.planned}
    if prepared.options.fresh:
        for planned in prepared.plan.to_do:
            artifacts.drop(store, artifacts.checkpoint(store, planned.cell_id))
    tasks, timing = _tasks(prepared)
    work = _work(prepared, tasks)
    if sweep.search is not None:
        study = _study(prepared, sweep.search, tasks, wanted, on_choice)
        work = replace(work, tasks=study.tasks, source=study)

    def on_task_event(event: Event) -> None:
        known = work.tasks  # those of a search grow; timing passes follow
        is_timing = event.task >= len(known)
        log(event, (timing[event.task - len(known)] if is_timing else known[event.task]).label)
        on_event(event)

    if prepared.n_to_choose or (prepared.plan.to_do if sweep.search is not None else tasks):
        _run(prepared, work, on_task_event, halt)
    if timing and not halt.requested.is_set():
        _run_timing(prepared, work, timing, on_task_event, halt)
    return wanted


def _tasks(prepared: Prepared) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Return the tasks of a run, and its timing passes, which run last."""
    attempts = last_attempts(prepared.store)
    tasks: tuple[list[Task], list[Task]] = ([], [])
    for planned in prepared.to_do:
        cell, n_attempts = planned.cell, attempts.get(planned.cell_id, 0)
        task = Task(config=cell.config, label=cell.label, attempts=n_attempts)
        tasks[cell.kind == "timing"].append(task)
    return tuple(tasks[0]), tuple(tasks[1])


def _work(prepared: Prepared, tasks: tuple[Task, ...]) -> Work:
    return Work(
        tasks=tasks,
        store=prepared.store,
        sweep=prepared.sweep.name,
        place=prepared.place,
        groups=prepared.groups,
        allowance=prepared.allowance,
        asha=prepared.asha,
    )


def _run(prepared: Prepared, work: Work, on_event: Callable[[Event], None], halt: Halt) -> None:
    """Run the tasks, in this process or with Ray Tune."""
    if prepared.options.inline:
        run_inline(work, prepared.pack, on_event=on_event, halt=halt)
        return
    run_ray(
        work,
        prepared.pack,
        resources=prepared.resources,
        on_event=on_event,
        halt=halt,
        ahead=prepared.ahead,
    )


def _run_timing(
    prepared: Prepared,
    work: Work,
    timing: tuple[Task, ...],
    on_event: Callable[[Event], None],
    halt: Halt,
) -> None:
    """Run the timing passes after all other tasks, one at a time with all CPUs or the GPU."""
    place = replace(prepared.place, n_at_once=1, n_threads=machine.cpus(), ray=None)
    if place.device == "cuda":
        place = replace(place, gpus=1)
    first = len(work.tasks)
    run_inline(
        replace(work, tasks=timing, source=None, place=place),
        prepared.pack,
        on_event=lambda event: on_event(replace(event, task=event.task + first)),
        halt=halt,
    )


def _study(
    prepared: Prepared,
    search: Search,
    first: tuple[Task, ...],
    wanted: set[str],
    on_choice: Callable[[Task], None],
) -> Study:
    """Return the source of a search's tasks; each new choice gets a row in cells before it runs."""
    planned_cells = prepared.plan.planned
    # a cell that failed before is settled unless it is to run again; a fresh one is not settled
    failed = {p.cell_id: str(p.status) for p in planned_cells if p.state == "failed"}
    again = {p.cell_id for p in prepared.plan.to_do}
    settled = {
        cell: status for cell, status in (failed | _settled(prepared)).items() if cell not in again
    }

    def record(choice: Chosen, task: Task | None) -> None:
        if choice.cell_id not in wanted:
            position = len(planned_cells) + len(wanted)  # after all existing rows
            planned = Planned(cell=choice.cell, cell_id=choice.cell_id, state="to do", runs=True)
            row = _cell_row(prepared, planned, position=position, settings=choice.settings)
            name = f"{prepared.run_id}-{position}"
            prepared.store.write("cells", prepared.sweep.name, name, [row])
            wanted.add(choice.cell_id)
        if task is not None:
            on_choice(task)

    start = Start(
        dataset_id=prepared.pack.dataset_id,
        past=prepared.past,
        settled=settled,
        first=first,
        n_at_once=prepared.place.n_at_once,
    )
    return Study(search, prepared.store, start, finish=prepared.finish, on_choice=record)


def _cell_rows(prepared: Prepared) -> list[dict[str, object]]:
    chosen = {choice.cell_id: choice.settings for choice in prepared.past.chosen}
    return [
        _cell_row(prepared, planned, position=position, settings=chosen.get(planned.cell_id))
        for position, planned in enumerate(prepared.plan.planned)
    ]


def _cell_row(
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
        **{name: getattr(planned.cell.config, name) for name in _CELL_SETTINGS},
        "augmentation": augmentation_name(planned.cell.config.toggles),
        "weights": planned.cell.config.weights.partition(":")[0],
        "dataset_id": prepared.pack.dataset_id,
        "quick": prepared.options.quick,
        "command": prepared.options.command,
        "kind": planned.cell.kind,
        "study": json.dumps(planned.cell.study) if planned.cell.study else None,
        "chosen": None if settings is None else json.dumps(settings),
    }


_CELL_SETTINGS = tuple(name for name in CELLS.names if name in SETTINGS)
