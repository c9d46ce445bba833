"""Commands about what a store holds: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the
commands.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casting_tune.cli import completion, console, params
from casting_tune.cli.params import (
    RESULTS,
    BestOf,
    CellOrBest,
    CostEscape,
    CostOverkill,
    Json,
    MaxEscape,
    Prevalence,
    Results,
    Run,
    SweepName,
    ViewClass,
)

if TYPE_CHECKING:
    from casting_tune.data.pack import Pack
    from casting_tune.store.store import Store


def table(
    context: typer.Context,
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    run: Run = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Which table.", autocompletion=completion.tables)
    ] = "comparison",
    positive: ViewClass = "def_front",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, markdown, csv, json, html or latex.",
            autocompletion=completion.formats,
        ),
    ] = "text",
    as_json: Json = False,
) -> None:
    """Print a sweep's table from the store."""
    from casting_tune.analysis import tables
    from casting_tune.errors import UsageError, unknown
    from casting_tune.report import render
    from casting_tune.store.store import Store

    if kind not in tables.TABLES:
        raise UsageError(unknown("table", kind, tables.TABLES))
    if kind not in tables.VIEWED and params.typed(context, "positive"):
        told = f"--positive changes no figure of the table '{kind}', only of {', '.join(tables.VIEWED)}. Leave it out."
        raise UsageError(told)
    form = params.one_format(context, form, as_json)
    found = tables.TABLES[kind](Store(results), sweep, run_id=run, positive=params.view(positive))
    if as_json:
        console.write_json(
            {
                "title": found.title,
                "notes": found.notes,
                "rows": found.frame,
                "verdict": found.verdict or None,
            }
        )
        return
    out = console.console()
    console.write(render.render(found, form, width=out.width, color=out.is_terminal))


def threshold(
    cell: CellOrBest,
    *,
    results: Results = RESULTS,
    sweep: BestOf = None,
    run: Run = None,
    max_escape: MaxEscape = None,
    cost_escape: CostEscape = None,
    cost_overkill: CostOverkill = None,
    prevalence: Prevalence = None,
    as_json: Json = False,
) -> None:
    """Choose a threshold on validation alone, freeze it, and say what the test images show of it."""
    from casting_tune.analysis import selection
    from casting_tune.store.store import Store

    store, out = Store(results), console.console(as_json)
    cell, how = selection.named(store, cell, sweep, run)
    for sentence in how:
        console.say(out, sentence)
    point = selection.threshold(
        store,
        cell,
        max_escape=max_escape,
        cost_escape=cost_escape,
        cost_overkill=cost_overkill,
        prevalence=prevalence,
    )
    if as_json:
        console.write_json(point)
        return
    for sentence in point.sentences:
        console.say(out, sentence)


def plot(
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    run: Run = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")] = Path("plots"),
    positive: ViewClass = "def_front",
    as_json: Json = False,
) -> None:
    """Write the study's charts of a sweep: metrics by row, times, metrics over the thresholds."""
    from casting_tune.analysis import run_results, tables
    from casting_tune.data import pack as packs
    from casting_tune.report import mpl_charts
    from casting_tune.store.store import Store

    store, view = Store(results), params.view(positive)
    params.make_folder(folder)
    compared = tables.comparison(store, sweep, run_id=run, positive=view)
    files = [
        mpl_charts.plot_metrics(
            compared.frame, folder / f"{sweep}-metrics.png", title=compared.title
        )
    ]
    packed = (
        store.root / "packs" / str(run_results.load(store, sweep, run).cells["dataset_id"].iloc[0])
    )
    if packed.is_dir():
        files.append(mpl_charts.plot_images(packs.open_pack(packed), folder / "images.png"))
    times = tables.TABLES["timing"](store, sweep, run_id=run).frame
    if times["n"].sum():
        files.append(mpl_charts.plot_times(times, folder / f"{sweep}-times.png"))
    thresholds = tables.thresholds(store, sweep, run_id=run, positive=view).frame
    first = thresholds["row"].iloc[0]
    files += mpl_charts.plot_thresholds(thresholds[thresholds["row"] == first], folder)
    console.list_files(files, as_json)


def report(
    context: typer.Context,
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    run: Run = None,
    file: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    positive: ViewClass = "def_front",
    max_escape: Annotated[
        str,
        typer.Option(
            "--max-escape", help="What the threshold is chosen for, on validation: 0.5% or 0.005."
        ),
    ] = "0.5%",
    with_images: Annotated[
        bool,
        typer.Option(
            "--with-images", help="Show thumbnails of the images that are decided wrongly."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            envvar="CASTING_TUNE_DATA",
            help="The image folder, where results holds no pack of it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one offline HTML page of a sweep: verdict, tables, figures, mistakes, provenance.

    A run may still go on.
    """
    from casting_tune.errors import UsageError
    from casting_tune.planning import expand, sweep_file
    from casting_tune.report import page as room
    from casting_tune.store.store import Store

    if not with_images and params.typed(context, "data"):
        raise UsageError("--data is where --with-images finds its pictures: give both, or neither.")
    store = Store(results)
    packed = _packed(store, sweep, run, with_images=with_images, data=data)
    view = params.view(positive)
    page = room.page(
        store,
        sweep,
        run_id=run,
        positive=view,
        max_escape=max_escape,
        packed=packed,
        with_images=with_images,
        question=expand.read(sweep).question if sweep in sweep_file.names() else "",
        again=shlex.join(
            ["casting-tune", "report", sweep, "--max-escape", max_escape, "--positive", positive]
            + ["--with-images"] * with_images
        ),
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Cannot write '{file}': {error.strerror}. Name another file with --out."
        ) from error
    console.list_files([file], as_json)


def _packed(
    store: Store, sweep: str, run: str | None, *, with_images: bool, data: Path | None
) -> Pack | None:
    """Return the pack of a run's images: that of the results folder, else one made of `data` if pictures are asked for.

    Raises:
        UsageError: pictures are asked for and there is no pack, or the folder holds other images.
    """
    from casting_tune.analysis import run_results
    from casting_tune.data import pack as packs
    from casting_tune.errors import UsageError

    found = run_results.load(store, sweep, run)
    dataset = str(found.cells["dataset_id"].iloc[0])
    kept = store.root / "packs" / dataset
    if kept.is_dir():
        return packs.open_pack(kept)
    if not with_images:
        return None
    if data is None:
        raise UsageError(
            f"--with-images: {store.address} holds no pack of dataset {dataset}. Name its folder with --data."
        )
    defects = [
        *found.trials["positive"].dropna(),
        "def_front",
    ]  # the class folder of the run's defects
    packed = packs.pack(data, store.root / "packs", positive=defects[0])
    if packed.dataset_id != dataset:
        raise UsageError(
            f"'{data}' holds dataset {packed.dataset_id}, and this run's is {dataset}. Name its folder."
        )
    return packed


def export_optuna(
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="validation_accuracy=max (the default); a second one makes it a Pareto study.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="A file that is not there yet.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a sweep as an Optuna study: optuna-dashboard FILE opens it."""
    from casting_tune.analysis import optuna_export
    from casting_tune.store.store import Store

    file = file or Path(f"{sweep}-optuna.log")
    wanted = optuna_export.parse_all(objective or ["validation_accuracy=max"])
    n = optuna_export.write(Store(results), sweep, file, wanted=wanted)
    if as_json:
        console.write_json({"file": file, "study": sweep, "n_trials": n, "objectives": wanted})
    else:
        console.say(
            console.console(), f"{n} trials in {file}; look at them with: optuna-dashboard {file}"
        )
