"""Commands that read a store: `list`, `show`, `compare`, `query`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casting_tune.cli import completion, console
from casting_tune.cli.params import RESULTS, CellName, Json, OfSweep, Results, Run, one_format
from casting_tune.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from casting_tune.analysis.compare import Versus
    from casting_tune.analysis.lookup import Shown


def query(
    context: typer.Context,
    sql: Annotated[
        str,
        typer.Argument(help="One SELECT on trials, epochs, predictions, cells, images or probes."),
    ],
    *,
    results: Results = RESULTS,
    form: Annotated[str, typer.Option("--format", help="text, csv, json, md or parquet.")] = "text",
    file: Annotated[
        Path | None, typer.Option("--out", help="Output file. Default: the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Query the store in SQL (read-only, DuckDB)."""
    from casting_tune.store import sql as queries
    from casting_tune.store.store import Store

    form = one_format(context, form, as_json)
    queries.check_format(form)
    if file is None and form == "parquet":
        raise UsageError("--format parquet requires --out FILE.")
    if file is not None and form == "text":
        raise UsageError("--out FILE requires --format csv, json, md or parquet.")
    rows = queries.run(Store(results), sql)
    if form == "text":
        console.grid(rows.column_names, queries.texts(rows))
        return
    try:
        if form == "parquet" and file is not None:
            queries.write_parquet(rows, file)
        elif form == "json":
            console.write(console.json_text(rows.to_pylist()), file)
        else:
            console.write(queries.csv(rows) if form == "csv" else queries.markdown(rows), file)
    except OSError as error:
        raise UsageError(
            f"Cannot write {file}: {error.strerror}. Use another file with --out."
        ) from error
    if file is not None:
        console.say(console.console(as_json), f"{rows.num_rows:,} rows written to {file}")


def list_runs(
    sweep: Annotated[
        str | None,
        typer.Argument(
            help="Sweep name. Default: all sweeps.", autocompletion=completion.stored_sweeps
        ),
    ] = None,
    *,
    results: Results = RESULTS,
    run: Run = None,
    cells: Annotated[bool, typer.Option("--cells", help="List the cells of the sweep.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs in a store with their cell counts, time and best row on validation."""
    from casting_tune.analysis import lookup, run_results
    from casting_tune.store.store import Store

    if run is not None and not cells:
        raise UsageError("--run selects the run for --cells: use both, or drop --run.")
    if cells:
        if sweep is None:
            raise UsageError("--cells lists the cells of one sweep: give its name.")
        _list_cells(lookup.cells(Store(results), sweep, run), as_json)
        return
    runs = lookup.runs(Store(results), sweep)
    if as_json:
        console.write_json(runs)
        return
    states = ["done", *(["stopped"] if runs["stopped"].any() else []), "failed", "missing"]
    rows = [
        [
            run["sweep"] + (" (quick)" if run["quick"] else ""), run["run_id"],
            f"{run['asked_at']:%Y-%m-%d %H:%M}", *(str(run[name]) for name in states),
            run["best"] or "-",
            "-" if run["best"] is None else f"{run['best_validation']:.2%}",
        ]
        for run in run_results.records(runs)
    ]  # fmt: skip
    console.grid(["sweep", "run", "time (UTC)", *states, "best row", "val"], rows)


def _list_cells(cells: pd.DataFrame, as_json: bool) -> None:
    from casting_tune.analysis import run_results

    if as_json:
        console.write_json(cells)
        return
    rows = [
        [
            cell["cell_id"], cell["label"], cell["status"],
            "-" if cell["validation_accuracy"] is None else f"{cell['validation_accuracy']:.2%}",
        ]
        for cell in run_results.records(cells)
    ]  # fmt: skip
    console.grid(["cell", "label", "status", "val"], rows)


def show(
    cell: CellName, *, results: Results = RESULTS, sweep: OfSweep = None, as_json: Json = False
) -> None:
    """Show all data of a cell: settings, attempts, epochs, metrics with intervals, files."""
    from casting_tune.analysis import cell_names, lookup, selection
    from casting_tune.store.store import Store

    store = Store(results)
    cell, _ = selection.named(store, cell, cell_names.Scope(sweep=sweep))
    record = lookup.show(store, cell)
    if as_json:
        console.write_json(record)
        return
    out = console.console()
    console.say(
        out, f"{record.cell_id}: {record.label} ({record.status}), in {', '.join(record.sweeps)}"
    )
    console.say(out, f"dataset {record.dataset_id}")
    settings = record.settings | {"toggles": ", ".join(record.settings["toggles"]) or "none"}
    console.say(out, ", ".join(f"{name} {value}" for name, value in settings.items()))
    for attempt in record.attempts:
        _print_attempt(out, attempt)
    if record.epochs:
        heads = {name: name.replace("_", " ") for name in lookup.EPOCH}
        console.grid(
            list(heads.values()), [[_number(row[name]) for name in heads] for row in record.epochs]
        )
    _print_metrics(record)
    for file in record.files:
        console.say(out, file)


def _print_attempt(out: Console, attempt: dict[str, Any]) -> None:
    error = f": {attempt['error']}" if attempt["error"] else ""
    console.say(
        out,
        f"attempt {attempt['attempt']}: {attempt['status']}, "
        f"{attempt['started_at']:%Y-%m-%d %H:%M} UTC, {attempt['duration_s'] or 0:.1f} s "
        f"on {attempt['device']}{error}",
    )
    for line in (attempt["traceback"] or "").splitlines():
        console.say(out, f"  {line}")


def _print_metrics(record: Shown) -> None:
    rows = [
        [
            metric.split,
            metric.name,
            f"{metric.k} of {metric.n}",
            f"{metric.k / metric.n:.2%}" if metric.n else "-",
            "too few" if math.isnan(metric.low) else f"{metric.low:.2%} to {metric.high:.2%}",
            metric.interval,
        ]
        for metric in record.metrics
    ]
    if rows:
        console.grid(["images", "metric", "count", "rate", "95 % interval", "method"], rows)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A cell: its id, label or a part of one; with --sweep: a row of its table.",
            autocompletion=completion.cells,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(help="The cell or row to compare with.", autocompletion=completion.cells),
    ],
    *,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Compare two rows of the table of this sweep.")
    ] = None,
    run: Run = None,
    results: Results = RESULTS,
    most: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=0,
            help="Maximum number of images to list. Default: 20, with --json all.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two cells or rows on the same images: paired test, and images that differ."""
    from casting_tune.analysis import compare as comparison
    from casting_tune.store.store import Store

    if run is not None and sweep is None:
        raise UsageError("--run selects a run of a sweep: use it together with --sweep.")
    store = Store(results)
    result = (
        comparison.cells(store, a, b)
        if sweep is None
        else comparison.rows(store, sweep, a, b, run_id=run)
    )
    everything = len(result.disagreements) if as_json else 20
    listed = result.disagreements.head(everything if most is None else most)
    if as_json:
        console.write_json(replace(result, disagreements=listed))
        return
    _print_comparison(console.console(), result, listed)


def _print_comparison(out: Console, result: Versus, listed: pd.DataFrame) -> None:
    """Print the paired test, then the images on which the two sides disagree."""
    from casting_tune.analysis import run_results

    sides = zip("ab", (result.a, result.b), result.accuracy, result.n_trainings, strict=True)
    for name, side, accuracy, n in sides:
        trainings = "one training" if n == 1 else f"{n} trainings"
        console.say(
            out, f"{name}: {side}: {accuracy:.2%} of {result.n_images} test images, {trainings}"
        )
    low, high = 100 * result.low, 100 * result.high
    test = (
        f"too few {result.groups} for an interval"
        if math.isnan(result.p)
        else f"95 % {low:+.2f} to {high:+.2f}, p = {result.p:.3g}"
    )
    console.say(
        out,
        f"a - b: {100 * result.difference:+.2f} points, {test} ({result.n_groups} {result.groups})",
    )
    counts = ", ".join(f"{name} {n}" for name, n in result.counts.items())
    console.say(
        out,
        f"Images: {counts}; McNemar's exact p = {result.mcnemar_p:.3g} if images were independent.",
    )
    for note in result.notes:
        console.say(out, note)
    rows = [
        [
            row["path"] or "-",
            "defect" if row["y_true"] else "ok",
            f"{row['wrong_a']:.0%}",
            f"{row['wrong_b']:.0%}",
        ]
        for row in run_results.records(listed)
    ]
    if rows:
        console.grid(["image", "class", "a wrong", "b wrong"], rows)
    n_more = len(result.disagreements) - len(listed)
    if n_more:
        console.say(out, f"{n_more} more: use --images {len(result.disagreements)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
