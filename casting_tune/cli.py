"""`casting-tune ...`: every command, a few lines into a room each. Only here is printed and the environment read.

Exit codes are those of `errors`. Heavy libraries load inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from casting_tune.errors import CastingTuneError

if TYPE_CHECKING:
    from casting_tune.answers import Positive
    from casting_tune.sweep import Prepared

app = typer.Typer(
    help="Sweeps over networks, augmentations and batch sizes for the visual inspection of castings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

Results = Annotated[Path, typer.Option("--results", help="The results folder (the store).")]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="CASTING_TUNE_DATA", help="Image folder; left out: castings are drawn."),
]
DefectClass = Annotated[str, typer.Option("--positive", help="The class folder that is the defect.")]
PackSize = Annotated[int | None, typer.Option("--pack-size", help="Longest side of the packed images, in pixels.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be decoded, and record them.")]


def sweep_command(
    name: Annotated[str, typer.Argument(help="A sweep's name, or the path of a sweep file.")],
    *,
    data: Data = None,
    results: Results = Path("results"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Apply the sweep's [quick] section: minutes, not days.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="List the cells and start no trial.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="axis=value[,value]: keep these cells.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="setting=value: replace a fixed setting.")] = None,
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    inline: Annotated[bool, typer.Option("--inline", help="A plain loop in this process, without Ray.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster: 'auto' or host:port.")
    ] = None,
    trials_at_once: Annotated[int | None, typer.Option("--trials-at-once", help="Default: as many as fit.")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option("--gpus-per-trial", help="Fractions share a GPU. Default: 1 where there is a GPU.")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", help="How often a trial that failed runs again.")] = 1,
) -> None:
    """Train what a sweep asks for and the store lacks; then print the table."""
    from casting_tune import sweep

    options = sweep.Options(
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
        gpus_per_trial=gpus_per_trial,
        retries=retries,
        command=_command(name, quick, only or [], override or []),
    )
    console = _console()
    with _progress(console) as on_progress:
        prepared = sweep.prepare(options, say=lambda line: _say(console, line), on_progress=on_progress)
    _outline(console, prepared, every_cell=plan)
    if not plan:
        _execute(console, prepared)


def _execute(console: Console, prepared: Prepared) -> None:
    """Run the trials, print the table and the command that prints it again; exit 1 where a cell has no result."""
    from casting_tune import render, sweep, tables, view

    to_do = prepared.plan.to_do
    labels = [planned.cell.label for planned in to_do]
    epochs = [planned.cell.config.epochs for planned in to_do]
    try:
        with view.follow(console, labels, epochs) as on_event:
            n_missing = sweep.execute(prepared, on_event=on_event)
    except KeyboardInterrupt:
        _say(console, f"Stopped. What has ended is kept; go on with: {prepared.options.command}")
        raise typer.Exit(130) from None
    table = tables.comparison(prepared.store, prepared.sweep.name, run_id=prepared.run_id)
    _print(render.render(table, "text", width=console.width, color=console.is_terminal))
    results = "" if prepared.options.results == Path("results") else f" --results {prepared.options.results}"
    _say(console, f"This table again: casting-tune table {prepared.sweep.name} --run {prepared.run_id}{results}")
    if n_missing:
        raise typer.Exit(CastingTuneError.exit_code)


def _outline(console: Console, prepared: Prepared, *, every_cell: bool) -> None:
    plan, sweep = prepared.plan, prepared.sweep
    done = len(plan.planned) - len(plan.to_do)
    place = f"{prepared.place.device}, {prepared.place.n_at_once} at once, {prepared.place.n_threads} threads each"
    _say(console, f"{sweep.name}: {sweep.question}")
    _say(console, f"{len(plan.planned)} cells: {done} done, {len(plan.to_do)} to do ({place}).")
    if every_cell:
        for planned in plan.planned:
            state = planned.state if planned.status is None else f"{planned.state}: {planned.status}"
            _print(f"{planned.cell_id}  {state:<14}  {planned.cell.label}\n")


app.command("sweep")(sweep_command)


@app.command()
def table(
    sweep: Annotated[str, typer.Argument(help="The sweep's name.")],
    *,
    results: Results = Path("results"),
    run: Annotated[str | None, typer.Option("--run", help="A run's id; left out: the sweep's last run.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="Which table.")] = "comparison",
    positive: Annotated[
        str, typer.Option("--positive", help="Positive class: def_front, or ok_front as the study has it.")
    ] = "def_front",
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv, json, html or latex.")] = "text",
) -> None:
    """Print a sweep's table from the store."""
    from casting_tune import render, tables
    from casting_tune.errors import UsageError, unknown
    from casting_tune.store import Store

    if kind not in tables.TABLES:
        raise UsageError(unknown("table", kind, tables.TABLES))
    views: dict[str, Positive] = {
        "def_front": "defective",
        "ok_front": "ok",
        "defective": "defective",
        "ok": "ok",
    }
    if positive not in views:
        raise UsageError(unknown("positive class", positive, views))
    found = tables.TABLES[kind](Store(results), sweep, run_id=run, positive=views[positive])
    console = _console()
    _print(render.render(found, form, width=console.width, color=console.is_terminal))


@app.command()
def sweeps() -> None:
    """List the sweeps that are found by name, with their questions."""
    from casting_tune import space

    rows = []
    for name in space.names():
        read = space.read(name)
        rows.append([name, str(len(read.cells)), read.study_part or "-", read.question])
    _grid(["sweep", "cells", "study part", "question"], rows)


@app.command()
def backbones() -> None:
    """List the backbones: timm's name, parameters without the head, input sizes, weights."""
    from casting_tune import backbones as room

    rows = room.listing()
    heads = {
        "name": "name", "timm_name": "timm name", "n_parameters": "parameters", "n_statistics": "statistics",
        "input_px": "px", "min_px": "min px", "weights": "weights", "likeness": "like Keras'",
    }  # fmt: skip
    _grid(list(heads.values()), [[_text(row[key]) for key in heads] for row in rows])


@app.command()
def synthetic(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    images: Annotated[int, typer.Option("--images", help="How many castings to draw.")] = 400,
    size: Annotated[int, typer.Option("--size", help="Their side in pixels.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same castings.")] = 0,
) -> None:
    """Draw castings, with and without defects, into train/ and test/ folders."""
    from casting_tune import synthetic as room

    console = _console()
    with _progress(console) as on_progress:
        room.draw(
            folder,
            n_images=images,
            size_px=size,
            seed=seed,
            on_progress=lambda done, total: on_progress("drawing castings", done, total),
        )
    _say(console, f"{images} castings of {size} px in {folder}")


@app.command()
def pack(
    data: Annotated[Path, typer.Argument(envvar="CASTING_TUNE_DATA", help="The image folder.")],
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
) -> None:
    """Decode an image folder into a pack, once, and say what it holds."""
    from casting_tune import pack as room

    console = _console()
    with _progress(console) as on_progress:
        packed = room.pack(
            data,
            results / "packs",
            positive=positive,
            size_px=pack_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
    rows = []
    for split in ("train", "test"):
        for label, name in ((1, packed.positive), (0, packed.negative)):
            rows.append([split, name, str(int(((packed.splits == split) & (packed.labels == label)).sum()))])
    _grid(["split", "class", "images"], rows)
    kind = "gray" if packed.images.ndim == 3 else "colour"
    height, width = packed.images.shape[-2:]
    _say(console, f"dataset {packed.dataset_id}: {len(packed.labels)} images, {kind}, {width} x {height} px")
    for path, reason in packed.skipped:
        _say(console, f"skipped {path}: {reason}")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        import importlib.metadata

        _print(f"casting_tune {importlib.metadata.version('casting-tune')}\n")
        raise typer.Exit


def main() -> None:
    """Run a command; an error of ours is one line on stderr and its documented exit code."""
    _run(app)


def sweep_alone() -> None:
    """Run `python -m casting_tune.sweep`, which is `casting-tune sweep`."""
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    alone.command()(sweep_command)
    _run(alone)


def _run(command: typer.Typer) -> None:
    try:
        command()
    except CastingTuneError as error:
        Console(stderr=True, highlight=False).print(Text(f"error: {_plain(str(error))}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _command(name: str, quick: bool, only: list[str], override: list[str]) -> str:
    """Return the command that goes on with a sweep; the image folder is the reader's own to fill in."""
    words = [name, *(["--quick"] if quick else [])]
    words += [word for text in only for word in ("--only", text)] + [
        word for text in override for word in ("--set", text)
    ]
    return f"python -m casting_tune.sweep {shlex.join(words)}"


def _console() -> Console:
    return Console(highlight=False)


def _say(console: Console, line: str) -> None:
    console.print(Text(_plain(line)), soft_wrap=not console.is_terminal)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _plain(text: str) -> str:
    """Return text without control characters but line breaks: names come from files and may try to steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _grid(heads: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        number = all(row[heads.index(head)].replace(",", "").isdigit() for row in rows)
        grid.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_plain(value)) for value in row))
    _console().print(grid)


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Give a function (what, done, total) that moves a bar on a terminal and is silent elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show


if __name__ == "__main__":
    main()
