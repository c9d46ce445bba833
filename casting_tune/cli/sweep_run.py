"""Run the trials of a sweep in the terminal: live view, trackers, signals, and the table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from casting_tune.cli import console, signals, sweep_plan
from casting_tune.cli.params import RESULTS

if TYPE_CHECKING:
    from rich.console import Console

    from casting_tune.cli.live_view import About
    from casting_tune.execution.ray_cluster import Ahead
    from casting_tune.execution.runner import Prepared
    from casting_tune.execution.tasks import Event, Halt, Task
    from casting_tune.execution.trackers import Wanted
    from casting_tune.planning.options import Options


def prepare(out: Console, options: Options, ahead: Ahead) -> Prepared:
    """Check a sweep and return its run, with progress bars."""
    from casting_tune.execution import runner

    with console.progress(out) as on_progress:
        return runner.prepare(
            options, say=lambda line: console.say(out, line), on_progress=on_progress, ahead=ahead
        )


def execute(out: Console, prepared: Prepared, logged: Sequence[Wanted] = ()) -> dict[str, Any]:
    """Run the trials and print the table with the command that shows it again.

    Returns:
        The outcome as `sweep --json` prints it.

    Raises:
        typer.Exit: a signal stopped the run before its last cell.
    """
    from casting_tune.execution import tasks

    stop = _Stop(out, tasks.Halt())
    try:
        with signals.handled(stop):
            n_missing = _follow(out, prepared, logged, stop.halt)
    except (_AtOnce, SystemError) as error:
        if not isinstance(error, _AtOnce) and not isinstance(error.__cause__, _AtOnce):
            raise  # Cython wraps an exception of a signal handler in a SystemError
        n_missing = len(prepared.plan.to_do) + prepared.n_to_choose
    if stop.signals and n_missing:
        console.say(out, f"Stopped. Finished results are saved. Continue with: {command_again()}")
        if prepared.options.fresh:
            console.say(out, "Drop --fresh to continue: with it, all cells are trained again.")
        raise typer.Exit(128 + stop.signals[0])
    return _outcome(out, prepared, n_missing)


class _AtOnce(BaseException):
    """The second signal: it unwinds the stack and so removes workers and temporary folders."""


@dataclass(slots=True)
class _Stop:
    """A signal handler: the first signal stops after the running epochs, the second at once."""

    out: Console
    halt: Halt
    signals: list[int] = field(default_factory=list)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signals:
            signals.raise_safely(_AtOnce(), number, frame)
            return
        self.signals.append(number)
        self.halt.requested.set()
        console.say(self.out, "Finishing the running epochs. Press Ctrl-C again to stop at once.")


def _follow(out: Console, prepared: Prepared, logged: Sequence[Wanted], halt: Halt) -> int:
    """Run the trials with live view and trackers; return the number of missing cells."""
    from casting_tune.cli import live_view
    from casting_tune.config import cell_id
    from casting_tune.execution import runner, trackers

    shown = [
        live_view.Shown(
            label=p.cell.label,
            row=p.cell.row,
            epochs=0 if p.cell.kind == "baseline" else p.cell.config.epochs,
        )
        for p in prepared.to_do
    ]
    trials = [trackers.logged(p.cell_id, p.cell.label, p.cell.config) for p in prepared.to_do]

    def on_choice(task: Task) -> None:
        chosen = cell_id(task.config, prepared.pack.dataset_id)
        trials.append(trackers.logged(chosen, task.label, task.config))
        shown.append(live_view.Shown(label=task.label, row=task.label, epochs=task.config.epochs))

    with (
        live_view.follow(out, _about(prepared), shown) as show,
        trackers.follow(
            logged,
            trials,
            folder=prepared.store.root / "logs",
            sweep=prepared.sweep.name,
            run_id=prepared.run_id,
            warn=lambda line: console.say(out, line),
        ) as track,
    ):

        def on_event(event: Event) -> None:
            show(event)
            track(event)

        return runner.execute(prepared, on_event=on_event, on_choice=on_choice, halt=halt)


def _outcome(out: Console, prepared: Prepared, n_missing: int) -> dict[str, Any]:
    """Print the table and the command that shows it again; return both as plain values."""
    from casting_tune.analysis import tables
    from casting_tune.report import render

    table = tables.comparison(prepared.store, prepared.sweep.name, run_id=prepared.run_id)
    words = ["casting-tune", "table", prepared.sweep.name, "--run", prepared.run_id]
    results = str(prepared.options.results)
    again = shlex.join([*words, *(["--results", results] if results != RESULTS else [])])
    if not out.stderr:  # otherwise stdout is reserved for JSON
        console.write(render.render(table, "text", width=out.width, color=out.is_terminal))
    console.say(out, f"Show this table again: {again}")
    return {
        "sweep": prepared.sweep.name,
        "run_id": prepared.run_id,
        "dataset_id": prepared.pack.dataset_id,
        "n_cells": len(prepared.plan.planned),
        "n_missing": n_missing,
        "notes": prepared.notes,
        "table": {
            "title": table.title,
            "notes": table.notes,
            "rows": table.frame,
            "verdict": table.verdict,
        },
        "again": again,
    }


def _about(prepared: Prepared) -> About:
    """Return the header of the live view."""
    from casting_tune.cli.live_view import About

    place, planned = prepared.place, prepared.plan.planned
    done = {p.cell_id: p.cell.row for p in planned if p.state == "done" and p.cell.kind == "cell"}
    known: dict[str, list[float]] = {}
    for trial in prepared.store.read("trials", cell_ids=done).to_pylist() if done else []:
        if trial["status"] == "completed" and trial["validation_accuracy"] is not None:
            known.setdefault(done[trial["cell_id"]], []).append(trial["validation_accuracy"])
    leaks = [note for note in prepared.notes if "copies of training images" in note]
    threads = sweep_plan.threads(place.n_threads)
    return About(
        sweep=prepared.sweep.name,
        n_done=len(planned) - len(prepared.plan.to_do),
        place=f"{place.n_at_once} at once on {place.device}, {threads} each",
        images=f"{len(prepared.pack.labels)} images, dataset {prepared.pack.dataset_id}",
        warning=leaks[0] if leaks else "",
        n_at_once=place.n_at_once,
        known=known,
        n_tasks=len(prepared.plan.to_do) + prepared.n_to_choose,
    )


def command_again() -> str:
    """Return the command line of this process: it continues the run."""
    program = (
        "python -m casting_tune.sweep" if Path(sys.argv[0]).name == "sweep.py" else "casting-tune"
    )
    return f"{program} {shlex.join(sys.argv[1:])}"
