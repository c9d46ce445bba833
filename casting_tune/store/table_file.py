"""One file of a table: its name, its content as Parquet, and its schema version.

Input: an Arrow table, or what a Parquet reader opens. Output: the content of a file, or the rows in
the current schema. Knows no folders, buckets or cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casting_tune.errors import StoreError
from casting_tune.store.schema import DEFAULTS, SCHEMA_VERSION, VERSION_KEY

_AUDIT = re.compile(r"(images/[^/]+)/audit-(\d+)\.parquet")


def is_table_file(name: str) -> bool:
    """Return whether readers of a table open a file of this name, relative to the store."""
    parts = name.split("/")
    return (
        len(parts) == 3
        and parts[2].endswith(".parquet")
        and not any(part.startswith(".") for part in parts)
    )


def newest_audits(names: Sequence[str]) -> list[str]:
    """Return names of files of images/ without audits that have a newer version."""
    versions = [
        (match[1], int(match[2])) if (match := _AUDIT.fullmatch(name)) else (name, 0)
        for name in names
    ]
    newest: dict[str, int] = {}
    for dataset, version in versions:
        newest[dataset] = max(version, newest.get(dataset, version))
    return [
        name
        for name, (dataset, version) in zip(names, versions, strict=True)
        if version == newest[dataset]
    ]


def serialised(table: pa.Table) -> pa.Buffer:
    """Return a table as the content of a store file, with page checksums.

    Several rows are compressed. One row of a hundred columns is written and read in two thirds of
    the time without dictionaries, statistics and compression. Arrow's own copy of the schema is
    omitted: Parquet's schema says the same.
    """
    buffer, one = pa.BufferOutputStream(), table.num_rows == 1
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="none" if one else "zstd",
        use_dictionary=not one,
        write_statistics=not one,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(table.schema.metadata or {})
    return buffer.getvalue()


def read(source: Any, schema: pa.Schema, *, name: str) -> pa.Table:
    """Return the rows of a file; a column of a newer version is NULL, and a setting its default.

    A setting that a newer version added had its default before, as in the key of a cell.

    Args:
        source: what a Parquet reader opens.
        schema: columns to return.
        name: of the file, for messages.

    Raises:
        StoreError: the file was written by a newer version.
        OSError, ValueError, KeyError, pa.ArrowException: the file cannot be read.
    """
    with pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        written = parquet.schema_arrow
        version, names = version_of(written), set(written.names)
        wanted = None if written.equals(schema) else [n for n in schema.names if n in names]
        # one thread per column takes three times as long for a hundred columns of one row
        rows = parquet.read(columns=wanted, use_threads=False)
    if version > SCHEMA_VERSION:
        raise newer_version(name, version)
    if rows.schema.equals(schema):  # building a hundred columns again takes as long as reading
        return rows.replace_schema_metadata(schema.metadata)
    columns = {
        field.name: rows[field.name]
        if field.name in names
        else pa.repeat(pa.scalar(DEFAULTS.get(field.name), field.type), rows.num_rows)
        for field in schema
    }
    return pa.table(columns, schema=schema)


def version(source: Any) -> int:
    """Return the schema version of a file; 0 if it has none."""
    with pq.ParquetFile(source) as parquet:
        return version_of(parquet.schema_arrow)


def version_of(schema: pa.Schema) -> int:
    """Return the schema version of the schema of a file; 0 if it has none."""
    return int((schema.metadata or {}).get(VERSION_KEY, b"0"))


def newer_version(file: str, version: int) -> StoreError:
    """Return the error for a file of a newer schema, whose columns this version does not know."""
    return StoreError(
        f"{file} was written by a newer casting_tune (schema {version}). Update casting_tune."
    )
