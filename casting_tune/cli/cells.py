"""Commands that look into a store: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the
commands.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from casting_tune.cli import completion, console
from casting_tune.cli.params import RESULTS, CellId, Json, Results, Run, one_format
from casting_tune.errors import UsageError


def query(
    context: typer.Context,
    sql: Annotated[
        str,
        typer.Argument(help="One SELECT over trials, epochs, predictions, cells, images, probes."),
    ],
    *,
    results: Results = RESULTS,
    form: Annotated[str, typer.Option("--format", help="text, csv, json, md or parquet.")] = "text",
    file: Annotated[
        Path | None, typer.Option("--out", help="A file for the rows, instead of the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the store in SQL: DuckDB reads its tables and can change nothing."""
    from casting_tune.store import sql as room
    from casting_tune.store.store import Store

    form = one_format(context, form, as_json)
    room.check_format(form)
    if file is None and form == "parquet":
        raise UsageError("--format parquet needs --out FILE.")
    if file is not None and form == "text":
        raise UsageError("--out FILE needs --format csv, json, md or parquet.")
    rows = room.run(Store(results), sql)
    if form == "text":
        console.grid(rows.column_names, room.texts(rows))
        return
    try:
        if form == "parquet" and file is not None:
            room.write_parquet(rows, file)
        elif form == "json":
            console.write(console.json_text(rows.to_pylist()), file)
        else:
            console.write(room.csv(rows) if form == "csv" else room.markdown(rows), file)
    except OSError as error:
        raise UsageError(
            f"Cannot write {file}: {error.strerror}. Name another file with --out."
        ) from error
    if file is not None:
        console.say(console.console(as_json), f"{rows.num_rows:,} rows in {file}")


def list_runs(
    sweep: Annotated[
        str | None,
        typer.Argument(
            help="A sweep's name; left out: all of them.", autocompletion=completion.stored_sweeps
        ),
    ] = None,
    *,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """List the runs of a store: cells done, stopped, failed and missing, when, and the best row on validation."""
    from casting_tune.analysis import lookup, run_results
    from casting_tune.store.store import Store

    found = lookup.runs(Store(results), sweep)
    if as_json:
        console.write_json(found)
        return
    states = ["done", *(["stopped"] if found["stopped"].any() else []), "failed", "missing"]
    rows = [
        [
            run["sweep"] + (" (quick)" if run["quick"] else ""), run["run_id"], f"{run['asked_at']:%Y-%m-%d %H:%M}",
            *(str(run[name]) for name in states), run["best"] or "-",
            "-" if run["best"] is None else f"{run['best_validation']:.2%}",
        ]
        for run in run_results.records(found)
    ]  # fmt: skip
    console.grid(["sweep", "run", "when (UTC)", *states, "best on validation", "val"], rows)


def show(cell: CellId, *, results: Results = RESULTS, as_json: Json = False) -> None:
    """Show all that a store knows of a cell: settings, attempts, epochs, metrics with intervals, files."""
    from casting_tune.analysis import lookup
    from casting_tune.store.store import Store

    found = lookup.show(Store(results), cell)
    if as_json:
        console.write_json(found)
        return
    out = console.console()
    console.say(
        out, f"{found.cell_id}: {found.label} ({found.status}), in {', '.join(found.sweeps)}"
    )
    console.say(out, f"dataset {found.dataset_id}")
    settings = found.settings | {"toggles": ", ".join(found.settings["toggles"]) or "none"}
    console.say(out, ", ".join(f"{name} {value}" for name, value in settings.items()))
    for attempt in found.attempts:
        text = f"attempt {attempt['attempt']}: {attempt['status']}, {attempt['started_at']:%Y-%m-%d %H:%M} UTC"
        error = f": {attempt['error']}" if attempt["error"] else ""
        console.say(
            out, f"{text}, {attempt['duration_s'] or 0:.1f} s on {attempt['device']}{error}"
        )
        for line in (attempt["traceback"] or "").splitlines():
            console.say(out, f"  {line}")
    if found.epochs:
        heads = {name: name.replace("_", " ") for name in lookup.EPOCH}
        console.grid(
            list(heads.values()), [[_number(row[name]) for name in heads] for row in found.epochs]
        )
    if found.metrics:
        rows = [
            [
                m.split,
                m.name,
                f"{m.k} of {m.n}",
                f"{m.k / m.n:.2%}" if m.n else "-",
                f"{m.low:.2%} to {m.high:.2%}",
                m.interval,
            ]
            for m in found.metrics
        ]
        console.grid(["images", "metric", "count", "rate", "95 % interval", "interval"], rows)
    for file in found.files:
        console.say(out, file)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A cell's id or its beginning; with --sweep a row's label or a part that only it has.",
            autocompletion=completion.cells,
        ),
    ],
    b: Annotated[str, typer.Argument(help="The other one.", autocompletion=completion.cells)],
    *,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Compare two rows of this sweep's table.")
    ] = None,
    run: Run = None,
    results: Results = RESULTS,
    most: Annotated[
        int | None,
        typer.Option(
            "--images", min=0, help="How many disagreements to list: 20, with --json all."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two cells, or two rows of a sweep, on the same images: a paired test, and who is wrong where."""
    from casting_tune.analysis import compare as versus
    from casting_tune.analysis import run_results
    from casting_tune.store.store import Store

    if run is not None and sweep is None:
        raise UsageError(
            "--run is a run of a sweep, whose rows it compares: give it together with --sweep."
        )
    store = Store(results)
    found = (
        versus.cells(store, a, b) if sweep is None else versus.rows(store, sweep, a, b, run_id=run)
    )
    listed = found.disagreements.head(
        most if most is not None else len(found.disagreements) if as_json else 20
    )
    if as_json:
        console.write_json(replace(found, disagreements=listed))
        return
    out = console.console()
    for name, side, accuracy, n in zip(
        "ab", (found.a, found.b), found.accuracy, found.n_trainings, strict=True
    ):
        trainings = "one training" if n == 1 else f"{n} trainings"
        console.say(
            out, f"{name}: {side}: {accuracy:.2%} of {found.n_images} test images, {trainings}"
        )
    console.say(
        out,
        f"a - b: {100 * found.difference:+.2f} points, 95 % {100 * found.low:+.2f} to {100 * found.high:+.2f}, "
        f"p = {found.p:.3g} ({found.n_groups} {found.groups})",
    )
    counts = ", ".join(f"{name} {n}" for name, n in found.counts.items())
    console.say(out, f"Images: {counts}; McNemar's exact p = {found.mcnemar_p:.3g}.")
    for note in found.notes:
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
        console.grid(["image", "is", "a wrong", "b wrong"], rows)
    if len(found.disagreements) > len(listed):
        more = len(found.disagreements) - len(listed)
        console.say(out, f"and {more} more: --images {len(found.disagreements)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
