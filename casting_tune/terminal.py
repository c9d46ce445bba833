"""The terminal: the only room that writes to it. Text from files and names is made harmless first.

Comes in: lines, grids, finished text. Goes out: stdout. Decides nothing and knows no other room.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Return a console on stdout that colours no numbers of its own accord."""
    return Console(highlight=False)


def say(out: Console, line: str) -> None:
    """Write a line, wrapped on a terminal and whole elsewhere."""
    out.print(Text(plain(line)), soft_wrap=not out.is_terminal)


def complain(line: str) -> None:
    """Write an error as one line to stderr."""
    Console(stderr=True, highlight=False).print(Text(f"error: {plain(line)}"), soft_wrap=True)


def write(text: str) -> None:
    """Write finished text as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write a value as JSON."""
    write(json.dumps(value, indent=2, default=str) + "\n")


def plain(text: str) -> str:
    """Return text without control characters but line breaks: names come from files and may try to steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def cell(value: Any) -> str:
    """Return a value as a person reads it in a grid."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under headings; columns of numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, head in enumerate(heads):
        number = all(row[position].replace(",", "").isdigit() for row in rows)
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    console().print(table)


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
