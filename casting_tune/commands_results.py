"""Commands about what a store holds: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casting_tune import options, terminal
from casting_tune.options import RESULTS, Json, Results, Run, SweepName, ViewClass


def table(
    sweep: SweepName,
    *,
    results: Results = RESULTS,
    run: Run = None,
    kind: Annotated[str, typer.Option("--kind", help="Which table.")] = "comparison",
    positive: ViewClass = "def_front",
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv, json, html or latex.")] = "text",
    as_json: Json = False,
) -> None:
    """Print a sweep's table from the store."""
    from casting_tune import render, tables
    from casting_tune.errors import UsageError, unknown
    from casting_tune.store import Store

    if kind not in tables.TABLES:
        raise UsageError(unknown("table", kind, tables.TABLES))
    found = tables.TABLES[kind](Store(results), sweep, run_id=run, positive=options.view(positive))
    if as_json:
        terminal.write_json({"title": found.title, "notes": found.notes, "rows": found.frame})
        return
    out = terminal.console()
    terminal.write(render.render(found, form, width=out.width, color=out.is_terminal))


def threshold(
    cell: Annotated[str, typer.Argument(help="A cell's id, or the beginning of one.")],
    *,
    results: Results = RESULTS,
    max_escape: Annotated[str | None, typer.Option("--max-escape", help="0.5% or 0.005, on validation.")] = None,
    cost_escape: Annotated[float | None, typer.Option("--cost-escape", help="What a missed defect costs.")] = None,
    cost_overkill: Annotated[
        float | None, typer.Option("--cost-overkill", help="What a rejected good one costs.")
    ] = None,
    prevalence: Annotated[float | None, typer.Option("--prevalence", help="Share of defective castings.")] = None,
    as_json: Json = False,
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
    if as_json:
        terminal.write_json(point)
        return
    for sentence in point.sentences:
        terminal.say(terminal.console(), sentence)


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
    from casting_tune import answers, charts, tables
    from casting_tune import pack as packs
    from casting_tune.store import Store

    store, view = Store(results), options.view(positive)
    folder.mkdir(parents=True, exist_ok=True)
    compared = tables.comparison(store, sweep, run_id=run, positive=view)
    files = [charts.plot_metrics(compared.frame, folder / f"{sweep}-metrics.png", title=compared.title)]
    packed = store.root / "packs" / str(answers.load(store, sweep, run).asked["dataset_id"].iloc[0])
    if packed.is_dir():
        files.append(charts.plot_images(packs.open_pack(packed), folder / "images.png"))
    times = tables.TABLES["timing"](store, sweep, run_id=run).frame
    if times["n"].sum():
        files.append(charts.plot_times(times, folder / f"{sweep}-times.png"))
    thresholds = tables.thresholds(store, sweep, run_id=run, positive=view).frame
    first = thresholds["row"].iloc[0]
    files += charts.plot_thresholds(thresholds[thresholds["row"] == first], folder)
    terminal.list_files(files, as_json)
