"""The rows of many small files in one file: a cache of tables, which can be deleted at any time.

Input: the files of a table and a path on this machine. Output: their rows in the order of the
names, as if each file had been read. Store files are written once, so a file with unchanged size
and time has unchanged rows. If a file has changed or is missing, all files are read again. The
cache has page checksums. Knows no cells and no buckets.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from casting_tune.files import replacing

FEW = 256
"""So many files are read in a fraction of a second: the cache is not used."""

_FILES = b"casting_tune.files"
_LOT = 512  # files per row group: twice as many are in memory while the cache is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of a table.

    Attributes:
        root: folder of the files.
        names: of all files of the table, relative to root, sorted.
        schema: all columns of the table.
        read_file: (name, columns of the schema) to the rows of one file; may raise.
        n_threads: files that are read at the same time.
    """

    root: Path
    names: Sequence[str]
    schema: pa.Schema
    read_file: Callable[[str, pa.Schema], pa.Table]
    n_threads: int


@dataclass(frozen=True, slots=True)
class _Cache:
    """An open cache: for each file its row group, its first row there, and its number of rows."""

    parquet: pq.ParquetFile
    places: dict[str, tuple[int, int, int]]


def read(cache: Path | None, files: Files, wanted: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return the rows of some files, in their order.

    Args:
        cache: the file of the cache; it is written if that saves time and its folder is writable.
            None: no cache, because the files have no local times.
        files: all files of the table.
        wanted: names of the files to read, sorted.
        schema: columns to return; a text with many rows and few values may be a dictionary.
    """
    if cache is None or len(wanted) <= FEW:
        return _concat([rows for _, rows in _lots(files, wanted, schema, None)], schema)
    stamps = {file: _stamp(f"{files.root}/{file}") for file in files.names}
    with contextlib.ExitStack() as stack:
        opened = _open(cache, stamps, files.schema, schema, stack)
        n_cached = len(opened.places) if opened else 0
        if len(files.names) - n_cached > max(FEW, n_cached // 16):
            # if the folder is not writable, the rows are read all the same
            with contextlib.suppress(OSError):
                _write(cache, stamps, _lots(files, files.names, files.schema, opened), files.schema)
                opened = _open(cache, stamps, files.schema, schema, stack)
        return _concat([rows for _, rows in _lots(files, wanted, schema, opened)], schema)


def _lots(
    files: Files, wanted: Sequence[str], schema: pa.Schema, cache: _Cache | None
) -> Iterator[tuple[list[int], pa.Table]]:
    """Yield the rows of _LOT files at a time: the number of rows of each file, and all rows."""
    cached = cache.places if cache else {}
    plain = pa.schema([pa.field(f.name, getattr(f.type, "value_type", f.type)) for f in schema])
    lots = [wanted[start : start + _LOT] for start in range(0, len(wanted), _LOT)]
    row_groups = _RowGroups(cache, schema)
    with ThreadPoolExecutor(files.n_threads) as threads:

        def begin(lot: Sequence[str]) -> dict[str, Future[pa.Table]]:
            missing = [file for file in lot if file not in cached]
            return {file: threads.submit(files.read_file, file, plain) for file in missing}

        coming = begin(lots[0]) if lots else {}
        try:
            # the next lot is read while this one is concatenated, and written by the caller
            for lot, following in zip_longest(lots, lots[1:], fillvalue=()):
                read_now = {file: rows.result() for file, rows in coming.items()}
                coming = begin(following)
                parts, counts = [], []
                for is_cached, run in groupby(lot, key=lambda file: file in cached):
                    names = list(run)
                    if is_cached:
                        parts += row_groups.rows(names)
                        counts += [cached[file][2] for file in names]
                    else:
                        parts += [read_now[file] for file in names]
                        counts += [read_now[file].num_rows for file in names]
                yield counts, _concat([_as(part, schema) for part in parts], schema)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _RowGroups:
    """Reads rows of files from the row groups of a cache, and keeps the last row group."""

    def __init__(self, cache: _Cache | None, schema: pa.Schema) -> None:
        self._cache, self._schema = cache, schema
        self._last: tuple[int, pa.Table] | None = None

    def rows(self, files: Sequence[str]) -> list[pa.Table]:
        """Return the rows of cached files; files and row groups have the same order."""
        assert self._cache is not None
        places, parts = self._cache.places, []
        for group, run in groupby(files, key=lambda file: places[file][0]):
            if self._last is None or self._last[0] != group:
                self._last = None  # free it before the next one is read
                names = self._schema.names
                rows = self._cache.parquet.read_row_group(group, columns=names).select(names)
                self._last = (group, rows)
            parts += _slices(self._last[1], [places[file][1:] for file in run])
        return parts


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with a schema's types; a cast without effect takes a third of a read."""
    return rows if rows.schema.equals(schema) else rows.cast(schema)


def _slices(rows: pa.Table, ranges: list[tuple[int, int]]) -> list[pa.Table]:
    """Return some (first row, number) ranges of a table; adjacent ranges are one slice."""
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
) -> _Cache | None:
    """Open the cache if it is valid: same schema and version, and all its files are unchanged."""
    encoded = [f.name for f in schema if pa.types.is_dictionary(f.type)]
    try:
        written = pq.read_schema(cache)
        parquet = pq.ParquetFile(cache, page_checksum_verification=True, read_dictionary=encoded)
        noted: dict[str, list[int]] = json.loads(parquet.metadata.metadata[_FILES])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    stack.enter_context(parquet)
    same_version = (whole.metadata or {}).items() <= (written.metadata or {}).items()
    changed = any(stamps.get(file) != stamp for file, (_, *stamp) in noted.items())
    if not written.equals(whole) or not same_version or changed:
        return None
    places, first = {}, 0
    for i, (file, (n, *_)) in enumerate(noted.items()):
        first = 0 if i % _LOT == 0 else first
        places[file] = (i // _LOT, first, n)
        first += n
    return _Cache(parquet, places)


def _write(
    cache: Path,
    stamps: dict[str, list[int]],
    lots: Iterator[tuple[list[int], pa.Table]],
    whole: pa.Schema,
) -> None:
    """Write the cache, one row group per lot."""
    counts: list[int] = []
    with (
        replacing(cache) as draft,
        pq.ParquetWriter(draft, whole, compression="zstd", write_page_checksum=True) as writer,
    ):
        for of_files, rows in lots:
            writer.write_table(rows.combine_chunks(), row_group_size=max(1, rows.num_rows))
            counts += of_files
        noted = {file: [n, *stamp] for (file, stamp), n in zip(stamps.items(), counts, strict=True)}
        writer.add_key_value_metadata({_FILES: json.dumps(noted).encode()})


def _concat(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _stamp(file: str) -> list[int]:
    """Return size and time of a file."""
    stat = os.stat(file)  # noqa: PTH116  (twenty thousand Paths take as long as the disk)
    return [stat.st_size, stat.st_mtime_ns]
