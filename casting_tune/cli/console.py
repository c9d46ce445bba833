"""The terminal: the only room that writes to it. Text from files and names is made harmless first.

Comes in: lines, grids, finished text. Goes out: stdout. Decides nothing.

A command that was asked for JSON talks to `console(as_json)`, which is then stderr, and ends with
`write_json`: stdout holds one document and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from casting_tune.text import plain


def console(as_json: bool = False) -> Console:
    """Return a console on stdout, or on stderr where stdout is kept for JSON; it colours numbers only when told."""
    return Console(highlight=False, stderr=as_json)


def say(out: Console, line: str) -> None:
    """Write a line, wrapped on a terminal and whole elsewhere."""
    out.print(Text(plain(line)), soft_wrap=not out.is_terminal)


def complain(line: str) -> None:
    """Write an error as one line to stderr."""
    Console(stderr=True, highlight=False).print(Text(f"error: {plain(line)}"), soft_wrap=True)


class _Stderr(logging.Handler):
    """Writes records to stderr as it is at that moment: a live view stands in for it while it is open."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(
                "".join(f"{plain(line)}\n" for line in self.format(record).splitlines())
            )
        except Exception:  # as every handler of the standard library: a record is no reason to end
            self.handleError(record)


@contextmanager
def records() -> Iterator[None]:
    """Show the package's log records, INFO and above, on stderr; a second one inside has no effect."""
    logger = logging.getLogger("casting_tune")
    if any(isinstance(handler, _Stderr) for handler in logger.handlers):
        yield
        return
    handler, level = _Stderr(), logger.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def write(text: str, file: Path | None = None) -> None:
    """Write finished text as it is, to stdout or to a file."""
    if file is not None:
        file.write_text(text, encoding="utf-8")
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write a value as one JSON document."""
    write(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as one JSON document: frames as lists of rows, times in ISO 8601, NaN and infinity as null."""
    return json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n"


def _jsonable(value: Any) -> Any:
    """Return a value made of what JSON knows.

    Frames, arrays and numpy's scalars are told by their methods.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "to_dict"):
        value = value.to_dict("records")
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    text = value.isoformat() if isinstance(value, date) else str(value)
    return None if text in ("NaT", "<NA>") else text  # pandas' words for what is missing


def cell(value: Any) -> str:
    """Return a value as a person reads it in a grid."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def grid(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, out: Console | None = None
) -> None:
    """Write rows under headings, columns of numbers to the right; where that is too wide, a block a row."""
    out = out or console()
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    if len(heads) > 12 and sum(widths) + 3 * len(widths) > out.width:
        _blocks(out, heads, rows)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, head in enumerate(heads):
        number = bool(rows) and all(_NUMBER.fullmatch(row[position]) for row in rows)
        table.add_column(Text(plain(head)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    out.print(table)


_NUMBER = re.compile(r"-?[0-9][0-9,]*(\.[0-9]*)?(e[+-]?[0-9]+)?( %)?|-|")


def _blocks(out: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    wide = max(map(len, heads))
    for n, row in enumerate(rows, 1):
        say(out, f"row {n} of {len(rows)}")
        for head, value in zip(heads, row, strict=True):
            if value:
                say(out, f"  {head:<{wide}}  {value}")


def list_files(files: Sequence[Path], as_json: bool) -> None:
    """Write the paths of files that a command made, a line each or as JSON."""
    if as_json:
        write_json({"files": files})
        return
    out = console()
    for file in files:
        say(out, str(file))


@contextmanager
def progress(out: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (what, done, total) that moves a bar on a terminal and is silent elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show
