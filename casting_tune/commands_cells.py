"""Commands that look into a store: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casting_tune import terminal
from casting_tune.options import RESULTS, Json, Results


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT over trials, epochs, predictions, images and cells.")],
    *,
    results: Results = RESULTS,
    form: Annotated[str, typer.Option("--format", help="text, csv, json, md or parquet.")] = "text",
    file: Annotated[Path | None, typer.Option("--out", help="A file for the rows, instead of the terminal.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the store in SQL: DuckDB reads its tables and can change nothing."""
    from casting_tune import query as room
    from casting_tune.errors import UsageError
    from casting_tune.store import Store

    form = "json" if as_json else form
    room.check_format(form)
    if file is None and form == "parquet":
        raise UsageError("--format parquet needs --out FILE.")
    if file is not None and form == "text":
        raise UsageError("--out FILE needs --format csv, json, md or parquet.")
    rows = room.run(Store(results), sql)
    if form == "text":
        terminal.grid(rows.column_names, room.texts(rows))
        return
    try:
        if form == "parquet" and file is not None:
            room.write_parquet(rows, file)
        elif form == "json":
            terminal.write(terminal.json_text(rows.to_pylist()), file)
        else:
            terminal.write(room.csv(rows) if form == "csv" else room.markdown(rows), file)
    except OSError as error:
        raise UsageError(f"Cannot write {file}: {error.strerror}. Name another file with --out.") from error
    if file is not None:
        terminal.say(terminal.console(as_json), f"{rows.num_rows:,} rows in {file}")
