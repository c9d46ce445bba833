"""Write to the terminal: the only module that does. Control characters are replaced first.

With --json, a command writes its messages to `console(as_json)`, which is then stderr, and ends
with `write_json`: stdout holds exactly one document.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """Return a console on stdout, or on stderr if stdout is reserved for JSON."""
    return Console(highlight=False, stderr=as_json)


def say(out: Console, line: str) -> None:
    """Write a line: wrapped on a terminal, on one line elsewhere."""
    out.print(Text(plain(line)), soft_wrap=not out.is_terminal)


def complain(line: str, details: Iterable[str] = ()) -> None:
    """Write an error to stderr on one line, then its details on a line each."""
    out = Console(stderr=True, highlight=False)
    for text in (f"error: {plain(line)}", *(f"  {plain(detail)}" for detail in details)):
        out.print(Text(text), soft_wrap=True)


class _Stderr(logging.Handler):
    """Write records to the current `sys.stderr`: an open live view replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(
                "".join(f"{plain(line)}\n" for line in self.format(record).splitlines())
            )
        except Exception:  # as in all handlers of the standard library
            self.handleError(record)


@contextmanager
def records() -> Iterator[None]:
    """Write the log records of the package, INFO and above, to stderr; nested calls do nothing."""
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
    """Write text unchanged to stdout or to a file."""
    if file is not None:
        file.write_text(text, encoding="utf-8")
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write a value as one JSON document."""
    write(json_text(value))


def json_text(value: Any) -> str:
    """Return JSON: frames as lists of rows, times in ISO 8601, NaN and infinity as null."""
    return json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n"


def _jsonable(value: Any) -> Any:
    """Return a value of JSON types. Methods identify frames, arrays and numpy scalars.

    pydantic_core.to_jsonable_python 2.50 fails on NaT, and writes the time zone +00:00 as Z.
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
    return None if text in ("NaT", "<NA>") else text  # missing values of pandas


def cell(value: Any) -> str:
    """Return the text of a value for a grid."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def grid(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, out: Console | None = None
) -> None:
    """Write a table with numbers right-aligned, or one block per row if it is too wide."""
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
    """Write the paths of new files, one per line or as JSON."""
    if as_json:
        write_json({"files": files})
        return
    out = console()
    for file in files:
        say(out, str(file))


@contextmanager
def progress(out: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (task, done, total) that shows a bar on a terminal and nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        bar_ids: dict[str, Any] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in bar_ids:
                bar_ids[task] = bars.add_task(task, total=total)
            bars.update(bar_ids[task], completed=done, total=total)

        yield show
