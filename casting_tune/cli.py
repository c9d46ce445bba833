"""`casting-tune ...`: every command, a few lines into a room each. Only here is printed and the environment read.

Exit codes are those of `errors`. Heavy libraries load inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casting_tune import terminal
from casting_tune.command import Data, DefectClass, PackSize, Results, SkipBad, sweep_command
from casting_tune.errors import CastingTuneError

if TYPE_CHECKING:
    from casting_tune.answers import Positive

app = typer.Typer(
    help="Sweeps over networks, augmentations and batch sizes for the visual inspection of castings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

ViewClass = Annotated[
    str,
    typer.Option("--positive", help="Positive class: def_front (or defective); ok_front (or ok) is the study's view."),
]


app.command("sweep")(sweep_command)


@app.command()
def table(
    sweep: Annotated[str, typer.Argument(help="The sweep's name.")],
    *,
    results: Results = Path("results"),
    run: Annotated[str | None, typer.Option("--run", help="A run's id; left out: the sweep's last run.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="Which table.")] = "comparison",
    positive: ViewClass = "def_front",
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
    found = tables.TABLES[kind](Store(results), sweep, run_id=run, positive=_view(positive))
    out = terminal.console()
    terminal.write(render.render(found, form, width=out.width, color=out.is_terminal))


@app.command()
def sweeps() -> None:
    """List the sweeps that are found by name, with their questions."""
    from casting_tune import space, sweepfile

    rows = []
    for name in sweepfile.names():
        read = space.read(name)
        rows.append([name, str(len(read.cells)), read.study_part or "-", read.question])
    terminal.grid(["sweep", "cells", "study part", "question"], rows)


Head = Annotated[str, typer.Option("--head", help="dense1024,dropout: what stands before the logit.")]


@app.command()
def backbones(head: Head = "") -> None:
    """List the backbones: timm's name, parameters without and with a head, sizes, weights."""
    from casting_tune import backbones as room
    from casting_tune import summary as heads

    dense, _ = heads.parse_head(head)
    columns = {
        "name": "name", "timm_name": "timm name", "n_parameters": "parameters", "n_with_head": "with head",
        "n_statistics": "statistics", "input_px": "px", "min_px": "min px", "weights": "weights",
        "likeness": "like Keras'",
    }  # fmt: skip
    rows = room.listing(dense=dense)
    terminal.grid(list(columns.values()), [[terminal.cell(row[key]) for key in columns] for row in rows])


@app.command()
def summary(
    backbone: Annotated[str, typer.Argument(help="A name that `casting-tune backbones` lists, or timm:NAME.")],
    head: Head = "",
    image_px: Annotated[int, typer.Option("--px", help="Side of the input in pixels.")] = 512,
) -> None:
    """Print a network's layer table as Keras does: shapes, parameters, totals."""
    from casting_tune import summary as room

    found = room.summarise(backbone, head=head, image_px=image_px)
    rows = [[layer.name, f"({', '.join(map(str, layer.shape))})", f"{layer.n_parameters:,}"] for layer in found.layers]
    terminal.grid(["layer", "output shape", "parameters"], rows)
    total = found.n_trainable + found.n_statistics
    out = terminal.console()
    terminal.say(out, f"Total {total:,}; trainable {found.n_trainable:,}; not trainable {found.n_statistics:,}")


@app.command()
def synthetic(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    images: Annotated[int, typer.Option("--images", help="How many castings to draw.")] = 400,
    size: Annotated[int, typer.Option("--size", help="Their side in pixels.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same castings.")] = 0,
) -> None:
    """Draw castings, with and without defects, into train/ and test/ folders."""
    from casting_tune import synthetic as room

    out = terminal.console()
    with terminal.progress(out) as on_progress:
        room.draw(
            folder,
            n_images=images,
            size_px=size,
            seed=seed,
            on_progress=lambda done, total: on_progress("drawing castings", done, total),
        )
    terminal.say(out, f"{images} castings of {size} px in {folder}")


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

    out = terminal.console()
    with terminal.progress(out) as on_progress:
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
    terminal.grid(["split", "class", "images"], rows)
    kind = "gray" if packed.images.ndim == 3 else "colour"
    height, width = packed.images.shape[-2:]
    terminal.say(out, f"dataset {packed.dataset_id}: {len(packed.labels)} images, {kind}, {width} x {height} px")
    for path, reason in packed.skipped:
        terminal.say(out, f"skipped {path}: {reason}")


@app.command()
def audit(
    data: Annotated[Path, typer.Option("--data", envvar="CASTING_TUNE_DATA", help="The image folder.")],
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
    accept_leakage: Annotated[bool, typer.Option("--accept-leakage", help="Exit 0 even so.")] = False,
) -> None:
    """Find what would flatter a result: copies, photographs on both sides, label conflicts. Exit 3: a leak."""
    from casting_tune import audits
    from casting_tune import pack as packs
    from casting_tune.store import Store

    out = terminal.console()
    with terminal.progress(out) as on_progress:
        packed = packs.pack(
            data,
            results / "packs",
            positive=positive,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
        found = audits.kept(
            packed, Store(results), on_progress=lambda done, total: on_progress("comparing images", done, total)
        )
    for sentence in found.findings:
        terminal.say(out, sentence)
    if bool((found.copy_in_train & (packed.splits == "test")).any()) and not accept_leakage:
        terminal.say(out, "Test images stand in train: exit code 3 (--accept-leakage makes it 0).")
        raise typer.Exit(3)


@app.command()
def threshold(
    cell: Annotated[str, typer.Argument(help="A cell's id, or the beginning of one.")],
    *,
    results: Results = Path("results"),
    max_escape: Annotated[str | None, typer.Option("--max-escape", help="0.5% or 0.005, on validation.")] = None,
    cost_escape: Annotated[float | None, typer.Option("--cost-escape", help="What a missed defect costs.")] = None,
    cost_overkill: Annotated[
        float | None, typer.Option("--cost-overkill", help="What a rejected good one costs.")
    ] = None,
    prevalence: Annotated[float | None, typer.Option("--prevalence", help="Share of defective castings.")] = None,
) -> None:
    """Choose a threshold on validation alone, freeze it, and say what the test images show of it."""
    from casting_tune import chosen
    from casting_tune.store import Store

    point = chosen.threshold(
        Store(results),
        cell,
        max_escape=max_escape,
        cost_escape=cost_escape,
        cost_overkill=cost_overkill,
        prevalence=prevalence,
    )
    for sentence in point.sentences:
        terminal.say(terminal.console(), sentence)


@app.command()
def preview(
    data: Annotated[Path, typer.Option("--data", envvar="CASTING_TUNE_DATA", help="The image folder.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")] = Path("preview"),
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
) -> None:
    """Write pictures of the images and of every augmentation, from the very pipeline that trains."""
    from casting_tune import charts, pictures
    from casting_tune import pack as packs

    packed = packs.pack(data, results / "packs", positive=positive)
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*pictures.preview(packed, folder), charts.plot_images(packed, folder / "images.png")]:
        terminal.say(terminal.console(), str(file))


@app.command()
def plot(
    sweep: Annotated[str, typer.Argument(help="The sweep's name.")],
    results: Results = Path("results"),
    run: Annotated[str | None, typer.Option("--run", help="A run's id; left out: the sweep's last run.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")] = Path("plots"),
    positive: ViewClass = "def_front",
) -> None:
    """Write the study's charts of a sweep: metrics by row, times, metrics over the thresholds."""
    from casting_tune import answers, charts, tables
    from casting_tune import pack as packs
    from casting_tune.store import Store

    store, view = Store(results), _view(positive)
    folder.mkdir(parents=True, exist_ok=True)
    compared = tables.comparison(store, sweep, run_id=run, positive=view)
    files = [charts.plot_metrics(compared.frame, folder / f"{sweep}-metrics.png", title=compared.title)]
    packed = results / "packs" / str(answers.load(store, sweep, run).asked["dataset_id"].iloc[0])
    if packed.is_dir():
        files.append(charts.plot_images(packs.open_pack(packed), folder / "images.png"))
    times = tables.TABLES["timing"](store, sweep, run_id=run).frame
    if times["n"].sum():
        files.append(charts.plot_times(times, folder / f"{sweep}-times.png"))
    thresholds = tables.thresholds(store, sweep, run_id=run, positive=view).frame
    first = thresholds["row"].iloc[0]
    files += charts.plot_thresholds(thresholds[thresholds["row"] == first], folder)
    for file in files:
        terminal.say(terminal.console(), str(file))


@app.command()
def study(
    data: Data = None,
    *,
    results: Results = Path("results"),
    quick: Annotated[bool, typer.Option("--quick", help="Every sweep's [quick] section.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where the tables go, as Markdown.")] = Path("tables"),
) -> None:
    """Reproduce the study in one go: the audit, its five sweeps, the honest ones, and every table of each."""
    from casting_tune import render, space, sweepfile, tables
    from casting_tune.store import Store

    out, failed = terminal.console(), []
    if data is not None:
        audit(data, results, accept_leakage=True)
    for name in (name for name in sweepfile.names() if space.read(name).study_part):
        try:
            sweep_command(name, data=data, results=results, quick=quick)
        except typer.Exit as ended:
            failed += [name] if ended.exit_code == CastingTuneError.exit_code else []
            if ended.exit_code > CastingTuneError.exit_code:
                raise
        for kind, make in tables.TABLES.items():
            for view, positive in (("", "defective"), ("-ok_front", "ok")):
                text = render.render(make(Store(results), name, positive=positive), "markdown")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}-{kind}{view}.md").write_text(text, encoding="utf-8")
    terminal.say(out, f"Tables of every sweep are in {folder}/.")
    if failed:
        terminal.say(out, f"Some cells have no result in: {', '.join(failed)}.")
        raise typer.Exit(CastingTuneError.exit_code)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        import importlib.metadata

        terminal.write(f"casting_tune {importlib.metadata.version('casting-tune')}\n")
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
        terminal.complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _view(positive: str) -> Positive:
    """Return which class a table is about, given the class folder or the word that a person wrote."""
    from casting_tune.errors import UsageError, unknown

    views: dict[str, Positive] = {"def_front": "defective", "ok_front": "ok", "defective": "defective", "ok": "ok"}
    if positive not in views:
        raise UsageError(unknown("positive class", positive, views))
    return views[positive]


if __name__ == "__main__":
    main()
