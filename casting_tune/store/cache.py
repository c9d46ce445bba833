"""Rows of many small files, kept together in one: a cache beside the tables that can be thrown away at any time.

Comes in: the names of a table's files, how to read one, and a folder of this machine. Goes out:
their rows in the order of the names, as if each file had been read. Store files are written once,
so a file that has its size and time of before has its rows of before; where one does not, or is
gone, everything is read afresh. The kept file carries page checksums like those it was made of.
Knows no schema, no cells and no buckets.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FEW = 256
"""So many files are read one by one in a fraction of a second: no cache is made for them or asked."""

_FILES = b"casting_tune.files"
_LOT = 512  # files a row group: twice as many are held in memory at once while the cache is written
ReadFile = Callable[[str, pa.Schema], pa.Table]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the cache holds: of each file its row group, its first row there, and its number of rows."""

    parquet: pq.ParquetFile
    places: dict[str, tuple[int, int, int]]


def read(
    cache: Path | None,
    files: Sequence[str],
    wanted: Sequence[str],
    schema: pa.Schema,
    *,
    root: Path,
    whole: pa.Schema,
    read_file: ReadFile,
    at_once: int,
) -> pa.Table:
    """Return the rows of the wanted files, in their order.

    Args:
        cache: the file that keeps the rows; made where it pays, and not where its folder cannot be written. None: the
            files lie elsewhere, where their times are not to be had.
        files: names of all files of the table, relative to root, sorted.
        wanted: those to read: some of `files`, sorted.
        schema: columns to return, of `whole`; a text of many rows and few values may be a dictionary in it.
        root: folder of the files.
        whole: all columns of the table.
        read_file: (name, columns of `whole`) to the rows of one file; may raise.
        at_once: files read at the same time.
    """
    lots = partial(_lots, read_file=read_file, at_once=at_once)
    if cache is None or len(wanted) <= FEW:
        return _joined([rows for _, rows in lots(wanted, schema, kept=None)], schema)
    stamps = {file: _stamp(f"{root}/{file}") for file in files}
    with contextlib.ExitStack() as stack:
        kept = _open(cache, stamps, whole, schema, stack)
        n_kept = len(kept.places) if kept else 0
        if len(files) - n_kept > max(FEW, n_kept // 16):
            with contextlib.suppress(
                OSError
            ):  # a folder that cannot be written: the rows are read all the same
                _write(cache, stamps, lots(files, whole, kept=kept), whole)
                kept = _open(cache, stamps, whole, schema, stack)
        return _joined([rows for _, rows in lots(wanted, schema, kept=kept)], schema)


def _lots(
    files: Sequence[str],
    schema: pa.Schema,
    *,
    kept: _Kept | None,
    read_file: ReadFile,
    at_once: int,
) -> Iterator[tuple[list[int], pa.Table]]:
    """Yield some files' rows in their order, _LOT files at a time: the number of rows of each file, and all rows."""
    places = kept.places if kept else {}
    plain = pa.schema([pa.field(f.name, getattr(f.type, "value_type", f.type)) for f in schema])
    groups: dict[int, pa.Table] = {}
    all_lots = [files[start : start + _LOT] for start in range(0, len(files), _LOT)]
    with ThreadPoolExecutor(at_once) as threads:

        def begin(lot: Sequence[str]) -> dict[str, Future[pa.Table]]:
            return {
                file: threads.submit(read_file, file, plain) for file in lot if file not in places
            }

        coming = begin(all_lots[0]) if all_lots else {}
        try:
            for lot, following in zip_longest(all_lots, all_lots[1:], fillvalue=()):
                # the next lot is read while this one is put together, and by whoever asked, written
                read_now, coming = (
                    {file: rows.result() for file, rows in coming.items()},
                    begin(following),
                )
                parts, counts = [], []
                for group, run in groupby(
                    lot, key=lambda file: places[file][0] if file in places else None
                ):
                    of_run = list(run)
                    if group is None or kept is None:
                        parts += [read_now[file] for file in of_run]
                        counts += [read_now[file].num_rows for file in of_run]
                        continue
                    if (
                        group not in groups
                    ):  # files and row groups have one order: the one before is done with
                        groups = {
                            group: kept.parquet.read_row_group(group, columns=schema.names).select(
                                schema.names
                            )
                        }
                    parts += _picked(groups[group], [places[file][1:] for file in of_run])
                    counts += [places[file][2] for file in of_run]
                yield counts, _joined([_as(part, schema) for part in parts], schema)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with a schema's types; a cast of a hundred columns that changes nothing takes a third of a read."""
    return rows if rows.schema.equals(schema) else rows.cast(schema)


def _picked(rows: pa.Table, ranges: list[tuple[int, int]]) -> list[pa.Table]:
    """Return some (first row, number) ranges of a table; ranges that follow each other are one slice."""
    merged: list[tuple[int, int]] = []
    for first, n in ranges:
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + n)
        else:
            merged.append((first, n))
    return [rows.slice(first, n) for first, n in merged]


def _open(
    cache: Path,
    stamps: dict[str, list[int]],
    whole: pa.Schema,
    schema: pa.Schema,
    stack: contextlib.ExitStack,
) -> _Kept | None:
    """Open the cache if it can be trusted: of this schema and its version, and every file in it is as it was."""
    encoded = [f.name for f in schema if pa.types.is_dictionary(f.type)]
    try:
        held = pq.read_schema(cache)
        parquet = pq.ParquetFile(cache, page_checksum_verification=True, read_dictionary=encoded)
        noted: dict[str, list[int]] = json.loads(parquet.metadata.metadata[_FILES])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    stack.enter_context(parquet)
    of_whole = (whole.metadata or {}).items() <= (
        held.metadata or {}
    ).items()  # the schema version stands there
    if (
        not held.equals(whole)
        or not of_whole
        or any(stamps.get(file) != stamp for file, (_, *stamp) in noted.items())
    ):
        return None
    places, first = {}, 0
    for i, (file, (n, *_)) in enumerate(noted.items()):
        first = 0 if i % _LOT == 0 else first
        places[file] = (i // _LOT, first, n)
        first += n
    return _Kept(parquet, places)


def _write(
    cache: Path,
    stamps: dict[str, list[int]],
    lots: Iterator[tuple[list[int], pa.Table]],
    whole: pa.Schema,
) -> None:
    """Write the rows beside, a row group a lot, and rename, so that no reader meets half a file."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_name(f".{cache.name}.{uuid.uuid4().hex}")
    counts: list[int] = []
    try:
        with pq.ParquetWriter(
            beside, whole, compression="zstd", write_page_checksum=True
        ) as writer:
            for of_files, rows in lots:
                writer.write_table(rows.combine_chunks(), row_group_size=max(1, rows.num_rows))
                counts += of_files
            noted = {
                file: [n, *stamp] for (file, stamp), n in zip(stamps.items(), counts, strict=True)
            }
            writer.add_key_value_metadata({_FILES: json.dumps(noted).encode()})
        beside.replace(cache)
    finally:
        beside.unlink(missing_ok=True)


def _joined(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _stamp(file: str) -> list[int]:
    """Return size and time of a file."""
    seen = os.stat(file)  # noqa: PTH116  (twenty thousand Paths take as long as the disk)
    return [seen.st_size, seen.st_mtime_ns]
