"""Reads a list of images: a CSV, Parquet or JSON-lines file with a row for each image.

Input: a file with the columns `path` and `label`, optionally `split`, `group` and `kind`, and any
further columns. Output: Rows with paths relative to one root. Reads no image.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casting_tune.data.decode import SUFFIXES, one_line
from casting_tune.data.layouts import SPLITS
from casting_tune.errors import ImagesError, unreadable

LISTS = (".csv", ".jsonl", ".parquet")
"""Suffixes of lists."""

_KNOWN = ("path", "label", "split", "group", "kind")
_SHOWN = 50  # problems in an error message, which is one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image before its class is known to be good or defective.

    Attributes:
        path: relative to the root.
        split: "train", "validation", "test" or "".
        name: of its class.
        stamp: text of size and time.
        kind, group: as the list has them, "" without.
        columns: the further columns as a JSON object, "" without.
    """

    path: str
    split: str
    name: str
    stamp: str
    kind: str = ""
    group: str = ""
    columns: str = ""


def is_list(path: Path) -> bool:
    """Return whether a path is named like a list of images."""
    return path.suffix.lower() in LISTS


def read(file: Path) -> tuple[Path, list[Row]]:
    """Return the root of all paths, and the rows of a list.

    Raises:
        ImagesError: the list cannot be read, or has invalid rows, which are all named.
    """
    try:
        records = list(_records(file))
    except OSError as error:
        raise ImagesError(unreadable(file, error)) from error
    except (ValueError, csv.Error) as error:
        raise ImagesError(
            f"'{file}' cannot be read as {file.suffix[1:]}: {one_line(str(error))}. Correct it."
        ) from error
    if not records:
        raise ImagesError(f"'{file}' has no rows. Add a row with path and label for each image.")
    names = dict.fromkeys(name for record in records for name in record)
    for column in ("path", "label"):
        if column not in names:
            raise ImagesError(
                f"'{file}' has no column '{column}'. Its columns are "
                f"{', '.join(repr(one_line(name)) for name in names)}; path and label are required."
            )
    texts = [{name: _text(record.get(name)) for name in _KNOWN} for record in records]
    folder = Path(os.path.abspath(file.parent))  # noqa: PTH100 - resolve() would follow links
    # a list from Windows has backslashes
    files = [os.path.normpath(folder / text["path"].replace("\\", "/")) for text in texts]
    if problems := list(_problems(texts, files)):
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ImagesError(
            f"'{file}' has {len(problems)} invalid entries: {'; '.join(problems[:_SHOWN])}{more}. "
            "Correct the list."
        )
    root = _root(folder, files)
    further = [name for name in names if name not in _KNOWN]
    return root, [
        Row(
            path=Path(path).relative_to(root).as_posix(),
            split=SPLITS.get(text["split"].lower(), ""),
            name=text["label"],
            stamp=_stamp(path),
            kind=text["kind"],
            group=text["group"],
            columns=_columns(record, further),
        )
        for record, text, path in zip(records, texts, files, strict=True)
    ]


def _records(file: Path) -> Iterator[dict[str, Any]]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(file).to_pylist()
        return
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if suffix == ".jsonl":
            for line in stream:
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("a line is not a JSON object")
                    yield record
            return
        first = stream.readline()
        stream.seek(0)
        delimiter = max(",;\t", key=first.count)
        for row in csv.DictReader(stream, delimiter=delimiter, restkey="", strict=True):
            if row.pop("", None):
                raise ValueError("a row has more fields than the heading")
            yield row


def _problems(texts: Iterable[dict[str, str]], files: Iterable[str]) -> Iterator[str]:
    """Yield each invalid entry with the number of its row, the first being 1."""
    seen: dict[str, int] = {}
    has_split = any(text["split"] for text in texts)
    for number, (text, path) in enumerate(zip(texts, files, strict=True), start=1):
        shown = f"row {number}: '{one_line(text['path'])}'"
        if not text["path"]:
            yield f"row {number}: path is empty"
            continue
        if path in seen:
            yield f"{shown} is also in row {seen[path]}"
        seen.setdefault(path, number)
        if not os.path.isfile(path):  # noqa: PTH113 - 10 times faster for many rows
            yield f"{shown} not found"
        elif path.rpartition(".")[2].lower() not in SUFFIXES:
            yield f"{shown} is not one of {', '.join(SUFFIXES)}"
        if not text["label"]:
            yield f"{shown} has no label"
        if has_split and text["split"].lower() not in SPLITS:
            yield f"{shown} has split '{one_line(text['split'])}', not one of {', '.join(SPLITS)}"


def _root(folder: Path, files: list[str]) -> Path:
    """Return the folder of the list if all files are below it, else their common folder."""
    if all(Path(file).is_relative_to(folder) for file in files):
        return folder
    return Path(os.path.commonpath([Path(file).parent for file in files]))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _stamp(file: str) -> str:
    status = Path(file).stat()
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _columns(record: dict[str, Any], names: list[str]) -> str:
    values = {name: record[name] for name in names if record.get(name) is not None}
    return json.dumps(values, default=str, ensure_ascii=False, sort_keys=True) if values else ""
