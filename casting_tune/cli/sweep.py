"""Commands that run sweeps; `casting-tune sweep` is `python -m casting_tune.sweep`.

Comes in: what a person typed. Goes out: lines and a table on the terminal, an exit code. Decides
nothing about trials.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from casting_tune import text as inert
from casting_tune.cli import completion, console, images
from casting_tune.cli.params import (
    RESULTS,
    Data,
    DefectClass,
    Json,
    PackSize,
    Results,
    SkipBad,
    Verbose,
    make_folder,
)
from casting_tune.errors import CastingTuneError, UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from casting_tune.cli.live_view import About
    from casting_tune.execution.ray_cluster import Ahead
    from casting_tune.execution.runner import Prepared
    from casting_tune.execution.tasks import Event, Task
    from casting_tune.execution.trackers import Wanted
    from casting_tune.planning.options import Options


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            help="A sweep's name, or the path of a sweep file.", autocompletion=completion.sweeps
        ),
    ],
    *,
    data: Data = None,
    results: Results = RESULTS,
    quick: Annotated[
        bool, typer.Option("--quick", help="Apply the sweep's [quick] section: minutes, not days.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the cells and start no trial.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="axis=value[,value]: keep these cells. Those of one axis add up, all axes must hold.",
        ),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="setting=value: replace a fixed setting.")
    ] = None,
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="A plain loop in this process, without Ray.")
    ] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster: 'auto' or host:port.")
    ] = None,
    trials_at_once: Annotated[
        int | None, typer.Option("--trials-at-once", help="Default: as many as fit.")
    ] = None,
    gpus_per_trial: Annotated[
        str | None,
        typer.Option(
            "--gpus-per-trial",
            help="auto packs by memory; fractions share a GPU. Default: 1 where there is one.",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", help="How often a trial that failed runs again.")
    ] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that failed in an earlier run.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train every cell again; the newest result counts.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Train more than 10,000 cells.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="With --plan: time a few steps of networks that the store does not know.",
        ),
    ] = False,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", help="With --plan: adds the money.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Keep weights: those of the last epoch, of the best, or both."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="A trial's time; then: timeout.")
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            "--max-memory", help="GiB of a trial on the CPU; then: oom. Default: its share."
        ),
    ] = None,
    on_oom: Annotated[
        Literal["fail", "accumulate"] | None,
        typer.Option("--on-oom", help="fail, or accumulate: smaller parts of the same batch."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines", help="Rows that learn nothing, below the others."
        ),
    ] = True,
    timing: Annotated[
        bool, typer.Option("--timing", help="Add a short pass a network, alone on its device.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option("--log", help="tensorboard, mlflow or wandb, each with :DIR if you like."),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train what a sweep asks for and the store lacks; then print the table."""
    del verbose  # its callback has acted
    from casting_tune.execution import trackers
    from casting_tune.planning.options import Options

    logged = trackers.read(log or [])
    options = Options(
        sweep=name,
        data=data,
        results=results,
        quick=quick,
        only=tuple(only or ()),
        overrides=tuple(override or ()),
        positive=positive,
        pack_size=pack_size,
        skip_bad=skip_bad,
        inline=inline,
        address=address,
        trials_at_once=trials_at_once,
        gpus_per_trial=_gpus(gpus_per_trial),
        retries=retries,
        timing=timing,
        baselines=baselines,
        plan=plan,
        probe=probe,
        price_per_gpu_hour=price,
        fresh=fresh,
        retry_failed=retry_failed,
        yes=yes,
        keep=_kept(keep or []),
        max_seconds=max_seconds,
        memory_gib=max_memory,
        on_oom=on_oom,
        command=_command(name, quick, only or [], override or []),
    )
    out = console.console(as_json)
    with _ahead() as ahead:
        prepared = _prepare(out, options, ahead)
        _outline(out, prepared)
        if plan:
            _write_plan(out, prepared, as_json)
            return
        outcome = _execute(out, prepared, logged)
    if as_json:
        console.write_json(outcome)
    if outcome["n_missing"]:
        raise typer.Exit(CastingTuneError.exit_code)


def sweeps(as_json: Json = False) -> None:
    """List the sweeps that are found by name, with their questions."""
    from casting_tune.planning import space, sweep_file

    found = [space.read(name) for name in sweep_file.names()]
    if as_json:
        console.write_json(
            [
                {
                    "sweep": s.name,
                    "cells": s.n_cells,
                    "study_part": s.study_part,
                    "question": s.question,
                }
                for s in found
            ]
        )
        return
    rows = [[s.name, str(s.n_cells), s.study_part or "-", s.question] for s in found]
    console.grid(["sweep", "cells", "study part", "question"], rows)


def study(
    data: Data = None,
    *,
    results: Results = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Every sweep's [quick] section.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where the tables go, as Markdown.")] = Path(
        "tables"
    ),
    as_json: Json = False,
) -> None:
    """Reproduce the study in one go: the audit, its five sweeps, the honest ones, and every table of each."""
    from casting_tune.analysis import tables
    from casting_tune.data import image_folder
    from casting_tune.planning import space, sweep_file
    from casting_tune.planning.options import Options
    from casting_tune.report import render
    from casting_tune.store.store import Store

    out, failed, files = console.console(as_json), [], []
    for option, place in (("--results", Store(results).root), ("--out", folder)):
        image_folder.check_outside(data, place, option)
    studied = [name for name in sweep_file.names() if space.read(name).study_part]
    for name in studied:
        space.read(name, quick=quick)
    make_folder(folder)  # before days of training
    if data is not None:
        images.tell_audit(out, data, results)
    for name in studied:
        command = _command(name, quick, [], [])
        with _ahead() as ahead:
            asked = Options(sweep=name, data=data, results=results, quick=quick, command=command)
            prepared = _prepare(out, asked, ahead)
            _outline(out, prepared)
            if _execute(out, prepared)["n_missing"]:
                failed.append(name)
        for kind, make in tables.TABLES.items():
            for view, positive in (("", "defective"), ("-ok_front", "ok")):
                text = render.render(make(Store(results), name, positive=positive), "markdown")
                files.append(folder / f"{name}-{kind}{view}.md")
                files[-1].write_text(text, encoding="utf-8")
    if as_json:
        console.write_json({"tables": files, "sweeps_with_missing_cells": failed})
    console.say(out, f"Tables of every sweep are in {folder}/.")
    if failed:
        console.say(out, f"Some cells have no result in: {', '.join(failed)}.")
        raise typer.Exit(CastingTuneError.exit_code)


@contextmanager
def _ahead() -> Iterator[Ahead]:
    """Give what starts Ray ahead of the first trial, and end it whatever comes: SIGTERM unwinds as Ctrl-C does."""
    from casting_tune.execution.ray_cluster import Ahead

    def end(number: int, frame: FrameType | None) -> None:
        _raise(SystemExit(128 + number), number, frame)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Ahead() as ahead:
            yield ahead
    except SystemError as error:
        if isinstance(error.__cause__, SystemExit):
            # Cython, in ray.get and ray.wait, wraps what a signal raises
            raise error.__cause__ from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(error: BaseException, number: int, frame: FrameType | None) -> None:
    """Raise what ends the command, from the handler of a signal; inside Python's import machinery a moment later.

    An exception that a handler raises there can leave the lock of all imports taken for ever
    (`_get_module_lock` of CPython 3.11 acquires it just before its `try`), and Ray, which another
    thread imports, would wait for it for ever. Modules that are being imported may be interrupted.
    """
    while (
        frame is not None and frame.f_code.co_name != "_call_with_frames_removed"
    ):  # which calls a module's own code
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            again = threading.Timer(
                0.01, signal.pthread_kill, (threading.main_thread().ident, number)
            )
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise error


def _prepare(out: Console, options: Options, ahead: Ahead) -> Prepared:
    from casting_tune.execution import runner as sweep

    with console.progress(out) as on_progress:
        return sweep.prepare(
            options, say=lambda line: console.say(out, line), on_progress=on_progress, ahead=ahead
        )


def _execute(out: Console, prepared: Prepared, logged: Sequence[Wanted] = ()) -> dict[str, Any]:
    """Run the trials, print the table and the command that prints it again; return the same as plain values."""
    from casting_tune.analysis import tables
    from casting_tune.cli import live_view as view
    from casting_tune.config import cell_id
    from casting_tune.execution import runner as sweep
    from casting_tune.execution import tasks, trackers
    from casting_tune.report import render

    to_do = prepared.to_do
    shown = [
        view.Shown(
            label=p.cell.label,
            row=p.cell.row,
            epochs=0 if p.cell.kind == "baseline" else p.cell.config.epochs,
        )
        for p in to_do
    ]

    trials = [trackers.logged(p.cell_id, p.cell.label, p.cell.config) for p in to_do]

    def on_choice(task: Task) -> None:
        trials.append(
            trackers.logged(cell_id(task.config, prepared.pack.dataset_id), task.label, task.config)
        )
        shown.append(view.Shown(label=task.label, row=task.label, epochs=task.config.epochs))

    halt = tasks.Halt()
    stopped_by: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped_by:
            _raise(_AtOnce(), number, frame)
            return
        stopped_by.append(number)
        halt.requested.set()
        console.say(out, "Finishing the running epochs; the same again stops at once.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            view.follow(out, _about(prepared), shown) as show,
            trackers.follow(
                logged,
                trials,
                folder=prepared.store.root / "logs",
                sweep=prepared.sweep.name,
                run_id=prepared.run_id,
                warn=lambda line: console.say(out, line),
            ) as tell,
        ):

            def on_event(event: Event) -> None:
                show(event)
                tell(event)

            n_missing = sweep.execute(prepared, on_event=on_event, on_choice=on_choice, halt=halt)
    except (_AtOnce, SystemError) as error:
        if not isinstance(error, _AtOnce) and not isinstance(error.__cause__, _AtOnce):
            raise  # Cython wraps what a signal raises in it, and nothing else is meant here
        n_missing = len(prepared.plan.to_do) + prepared.n_to_choose
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by and n_missing:
        console.say(out, f"Stopped. What has ended is kept; go on with: {_again()}")
        if prepared.options.fresh:
            console.say(out, "Without --fresh: with it, all cells are trained once more.")
        raise typer.Exit(128 + stopped_by[0])
    table = tables.comparison(prepared.store, prepared.sweep.name, run_id=prepared.run_id)
    words = ["casting-tune", "table", prepared.sweep.name, "--run", prepared.run_id]
    results = str(prepared.options.results)
    again = shlex.join([*words, *(["--results", results] if results != RESULTS else [])])
    if not out.stderr:  # stdout is kept for JSON otherwise
        console.write(render.render(table, "text", width=out.width, color=out.is_terminal))
    console.say(out, f"This table again: {again}")
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
    """Return what stands above the live view."""
    from casting_tune.cli.live_view import About

    place, planned = prepared.place, prepared.plan.planned
    done = {p.cell_id: p.cell.row for p in planned if p.state == "done" and p.cell.kind == "cell"}
    known: dict[str, list[float]] = {}
    for trial in prepared.store.read("trials", cell_ids=done).to_pylist() if done else []:
        if trial["status"] == "completed" and trial["validation_accuracy"] is not None:
            known.setdefault(done[trial["cell_id"]], []).append(trial["validation_accuracy"])
    flatters = [note for note in prepared.notes if "scores look too good" in note]
    return About(
        sweep=prepared.sweep.name,
        n_done=len(planned) - len(prepared.plan.to_do),
        place=f"{place.n_at_once} at once on {place.device}, {_threads(place.n_threads)} each",
        images=f"{len(prepared.pack.labels)} images, dataset {prepared.pack.dataset_id}",
        warning=flatters[0] if flatters else "",
        n_at_once=place.n_at_once,
        known=known,
        n_tasks=len(prepared.plan.to_do) + prepared.n_to_choose,
    )


class _AtOnce(BaseException):
    """The second signal, on its way up, so that workers and temporary folders go with it."""


_BESIDE = {"baseline": "baselines", "timing": "timing passes"}


def _outline(out: Console, prepared: Prepared) -> None:
    """Say what a run would do."""
    plan, sweep = prepared.plan, prepared.sweep
    place = f"{prepared.place.device}, {prepared.place.n_at_once} at once, {_threads(prepared.place.n_threads)} each"
    console.say(out, f"{sweep.name}: {sweep.question}")
    counts = {
        kind: sum(p.cell.kind == kind for p in plan.planned)
        for kind in ("cell", "baseline", "timing")
    }
    beside = [f" and {n} {name}" for kind, name in _BESIDE.items() if (n := counts[kind])]
    cells = f"{counts['cell']} cells"
    if sweep.search is not None:
        from casting_tune.execution import search_space

        for line in search_space.sentences(sweep.search):
            console.say(out, line)
        cells = f"{counts['cell']} of {sweep.search.n_trials} cells chosen"
    states = [f"{plan.count('done')} done", f"{len(plan.to_do) + prepared.n_to_choose} to do"]
    stopped = plan.count("stopped")
    states += [f"{stopped} stopped by the scheduler"] if stopped else []
    failed = sum(not planned.runs for planned in plan.planned if planned.state == "failed")
    states += [f"{failed} failed before (--retry-failed runs them again)"] if failed else []
    states += [f"{len(sweep.invalid)} invalid"] if sweep.invalid else []
    console.say(out, f"{cells}{''.join(beside)}: {', '.join(states)} ({place}).")


def _write_plan(out: Console, prepared: Prepared, as_json: bool) -> None:
    """Write what a run would cost, every cell, and why some are invalid."""
    from casting_tune.planning import plan

    planned, costs, price = (
        prepared.plan.planned,
        prepared.costs,
        prepared.options.price_per_gpu_hour,
    )
    if as_json:
        cells = [
            {
                "cell_id": p.cell_id,
                "state": p.state,
                "status": p.status,
                "kind": p.cell.kind,
                "label": p.cell.label,
            }
            for p in planned
        ]
        summed = {key: value for key, value in asdict(costs).items() if key != "estimates"}
        console.write_json(
            {
                "sweep": prepared.sweep.name,
                "dataset_id": prepared.pack.dataset_id,
                "notes": prepared.notes,
                "costs": summed | {"money": costs.gpu_hours * price if price is not None else None},
                "cells": cells,
                "invalid": prepared.sweep.invalid,
            }
        )
        return
    for sentence in plan.tell(costs, price_per_gpu_hour=price):
        console.say(out, sentence)
    for p in planned:
        state = p.state if p.status is None else f"{p.state}: {p.status}"
        console.write(inert.plain(f"{p.cell_id}  {state:<16}  {p.cell.label}") + "\n")
    for reason in prepared.sweep.invalid:
        console.say(out, f"invalid: {reason}")


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"


def _gpus(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--gpus-per-trial is auto, or a number such as 0.5, not '{text}'."
        ) from None


def _kept(names: list[str]) -> tuple[Literal["last", "best"], ...]:
    known: tuple[Literal["last", "best"], ...] = ("last", "best")
    for name in names:
        if name not in known:
            raise UsageError(f"--keep: {unknown('weights', name, known)}")
    return tuple(name for name in known if name in names)


def _command(name: str, quick: bool, only: list[str], override: list[str]) -> str:
    """Return the command that goes on with a sweep, as the store keeps it: without folders of this machine."""
    words = [name if "/" not in name else Path(name).name, *(["--quick"] if quick else [])]
    words += [word for text in only for word in ("--only", text)]
    words += [word for text in override for word in ("--set", text)]
    return f"python -m casting_tune.sweep {shlex.join(words)}"


def _again() -> str:
    """Return the command that goes on with this very run, as the person wrote it."""
    program = (
        "python -m casting_tune.sweep" if Path(sys.argv[0]).name == "sweep.py" else "casting-tune"
    )
    return f"{program} {shlex.join(sys.argv[1:])}"
