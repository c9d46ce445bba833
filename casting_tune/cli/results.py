"""Commands for the results in a store: `table`, `threshold`, `plot`, `report`, `export-optuna`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casting_tune.cli import completion, console, params
from casting_tune.cli.params import (
    RESULTS,
    CellName,
    CostEscape,
    CostOverkill,
    Json,
    MaxEscape,
    OfSweep,
    Prevalence,
    Results,
    Run,
    SweepName,
    ViewClass,
)
from casting_tune.errors import UsageError, unknown

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
        str,
        typer.Option(
            "--kind",
            help="comparison, kinds, trainings, pairs, effects, timing or thresholds.",
            autocompletion=completion.tables,
        ),
    ] = "comparison",
    positive: ViewClass = "defective",
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
    """Print a table of the results of a sweep."""
    from casting_tune.analysis import tables
    from casting_tune.report import render
    from casting_tune.store.store import Store

    if kind not in tables.TABLES:
        raise UsageError(unknown("table", kind, tables.TABLES))
    if kind not in tables.VIEWED and params.on_command_line(context, "positive"):
        raise UsageError(
            f"--positive has no effect on the table '{kind}', only on "
            f"{', '.join(tables.VIEWED)}: drop --positive."
        )
    form = params.one_format(context, form, as_json)
    made = tables.TABLES[kind](Store(results), sweep, run_id=run, positive=positive)
    if as_json:
        console.write_json(
            {
                "title": made.title,
                "notes": made.notes,
                "rows": made.frame,
                "verdict": made.verdict or None,
            }
        )
        return
    out = console.console()
    console.write(render.render(made, form, width=out.width, color=out.is_terminal))


def threshold(
    cell: CellName,
    *,
    results: Results = RESULTS,
    sweep: OfSweep = None,
    run: Run = None,
    max_escape: MaxEscape = None,
    cost_escape: CostEscape = None,
    cost_overkill: CostOverkill = None,
    prevalence: Prevalence = None,
    as_json: Json = False,
) -> None:
    """Choose a threshold on validation images and report its results on test images."""
    from casting_tune.analysis import cell_names, selection
    from casting_tune.store.store import Store

    store, out = Store(results), console.console(as_json)
    scope = cell_names.Scope(sweep=sweep, run_id=run, completed=True)
    cell, selected = selection.named(store, cell, scope)
    for sentence in selected:
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
    folder: Annotated[Path, typer.Option("--out", help="Folder for the PNG files.")] = Path(
        "plots"
    ),
    positive: ViewClass = "defective",
    as_json: Json = False,
) -> None:
    """Write the charts of the study for a sweep: metrics, times, metrics by threshold."""
    from casting_tune.analysis import run_results, tables
    from casting_tune.data import pack as packs
    from casting_tune.report import mpl_charts
    from casting_tune.store.store import Store

    store = Store(results)
    params.make_folder(folder)
    compared = tables.comparison(store, sweep, run_id=run, positive=positive)
    files = [
        mpl_charts.plot_metrics(
            compared.frame, folder / f"{sweep}-metrics.png", title=compared.title
        )
    ]
    dataset_id = str(run_results.load(store, sweep, run).cells["dataset_id"].iloc[0])
    packed = store.root / "packs" / dataset_id
    if packed.is_dir():
        files.append(mpl_charts.plot_images(packs.open_pack(packed), folder / "images.png"))
    times = tables.TABLES["timing"](store, sweep, run_id=run).frame
    if times["n"].sum():
        files.append(mpl_charts.plot_times(times, folder / f"{sweep}-times.png"))
    thresholds = tables.thresholds(store, sweep, run_id=run, positive=positive).frame
    first = thresholds["row"].iloc[0]
    files += mpl_charts.plot_thresholds(thresholds[thresholds["row"] == first], folder)
    console.list_files(files, as_json)


def report(
    context: typer.Context,
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    run: Run = None,
    file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    positive: ViewClass = "defective",
    max_escape: Annotated[
        str,
        typer.Option(
            "--max-escape",
            help="Largest escape rate on validation for the threshold: 0.5% or 0.005.",
        ),
    ] = "0.5%",
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Show thumbnails of misclassified images.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            envvar="CASTING_TUNE_DATA",
            help="Image folder for --with-images, if the store has no pack of it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an HTML page of a sweep: verdict, tables, figures, mistakes, reproducibility.

    The page needs no network. The run may still be in progress.
    """
    from casting_tune.planning import expand, sweep_file
    from casting_tune.report import page
    from casting_tune.store.store import Store

    if not with_images and params.on_command_line(context, "data"):
        raise UsageError("--data gives the images for --with-images: use both, or drop --data.")
    store = Store(results)
    request = page.Request(
        sweep=sweep,
        run_id=run,
        positive=positive,
        max_escape=max_escape,
        question=expand.read(sweep).question if sweep in sweep_file.names() else "",
        command=shlex.join(
            ["casting-tune", "report", sweep, "--max-escape", max_escape, "--positive", positive]
            + ["--with-images"] * with_images
        ),
    )
    packed = _packed(store, sweep, run, with_images=with_images, data=data)
    html = page.page(store, request, packed=packed, with_images=with_images)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Cannot write '{file}': {error.strerror}. Use another file with --out."
        ) from error
    console.list_files([file], as_json)


def _packed(
    store: Store, sweep: str, run: str | None, *, with_images: bool, data: Path | None
) -> Pack | None:
    """Return the pack of the images of a run: from the store, or for `with_images` from `data`.

    Raises:
        UsageError: `with_images` without a pack, or a folder with other images.
    """
    from casting_tune.analysis import run_results
    from casting_tune.data import pack as packs
    from casting_tune.data import pixel_rules
    from casting_tune.data.image_folder import Reading

    run_data = run_results.load(store, sweep, run)
    dataset = str(run_data.cells["dataset_id"].iloc[0])
    kept = store.root / "packs" / dataset
    if kept.is_dir():
        return packs.open_pack(kept)
    if not with_images:
        return None
    if data is None:
        raise UsageError(
            f"--with-images: dataset {dataset} not found in {store.address}. "
            "Give its image folder with --data."
        )
    # the defects of the run
    defects = [*run_data.trials["positive"].dropna(), None]
    rules = [*run_data.trials["pixels"].dropna(), None]
    packed = packs.pack(
        data,
        store.root / "packs",
        reading=Reading(positive=defects[0]),
        pixels=pixel_rules.from_text(rules[0]),
    )
    if packed.dataset_id != dataset:
        raise UsageError(
            f"'{data}' contains dataset {packed.dataset_id}; the run used {dataset}. "
            "Give the image folder of the run with --data."
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
            metavar="METRIC",
            help="metric=max or metric=min; repeat for a Pareto study. "
            "Default: validation_accuracy=max.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="New file. Default: SWEEP-optuna.log.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a sweep as an Optuna study for optuna-dashboard."""
    from casting_tune.analysis import optuna_export
    from casting_tune.store.store import Store

    file = file or Path(f"{sweep}-optuna.log")
    wanted = optuna_export.parse_all(objective or ["validation_accuracy=max"])
    n = optuna_export.write(Store(results), sweep, file, wanted=wanted)
    if as_json:
        console.write_json({"file": file, "study": sweep, "n_trials": n, "objectives": wanted})
    else:
        console.say(
            console.console(), f"{n} trials written to {file}. Open with: optuna-dashboard {file}"
        )
