"""SQL over a store: its tables as views that can be read and nothing else.

Comes in: a store and one SELECT. Goes out: rows as an Arrow table, and those as CSV or Markdown. A
view holds rows only where the query names it, and DuckDB reads only the columns and rows that it
needs. SQL reaches no file and no network.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from casting_tune.errors import StoreError, UsageError, unknown
from casting_tune.store.schema import SCHEMA_VERSION, SCHEMAS
from casting_tune.store.store import Store, later, version_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMATS = ("text", "csv", "json", "md", "parquet")


def run(store: Store, sql: str) -> pa.Table:
    """Return the rows of a query over the store's tables, each a view of its name.

    Args:
        store: the results folder; a column that an older file lacks is NULL.
        sql: one SELECT of DuckDB's dialect; DESCRIBE and SUMMARIZE are SELECTs to it.

    Raises:
        UsageError: SQL that DuckDB refuses, more than one statement, or one that is no SELECT.
        StoreError: a file of the store that cannot be read, or was written by a later version.
    """
    import duckdb

    words = set(re.findall(r"\w+", sql.lower()))
    with _connection() as connection:
        try:
            for table, schema in SCHEMAS.items():
                connection.register(
                    table, _rows(store, table) if table in words else schema.empty_table()
                )
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("A query is one SELECT: it reads a store and changes nothing.")
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _told(error) from error


def check_format(form: str) -> None:
    """Raise UsageError unless `form` is one of FORMATS."""
    if form not in FORMATS:
        raise UsageError(unknown("format", form, FORMATS))


def write_parquet(rows: pa.Table, file: Path) -> None:
    """Write rows to a Parquet file. Raises OSError where it cannot be written."""
    pq.write_table(rows, file, compression="zstd")


def csv(rows: pa.Table) -> str:
    """Return rows as CSV with a heading; NULL is empty; no text is a formula to a spreadsheet or steers a terminal."""
    for position, column in enumerate(rows.columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            formulas = pc.replace_substring_regex(column, r"^([=+@\t\r-])", r"'\1")
            inert = pc.replace_substring_regex(formulas, r"\p{C}", "?")
            rows = rows.set_column(position, rows.column_names[position], inert)
    out = io.BytesIO()
    pyarrow.csv.write_csv(rows, out)
    return out.getvalue().decode()


def markdown(rows: pa.Table) -> str:
    """Return rows as a Markdown table; NULL is empty."""
    lines = [rows.column_names, ["---"] * rows.num_columns, *texts(rows)]
    escaped = ([value.replace("|", "\\|").replace("\n", " ") for value in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def texts(rows: pa.Table) -> list[list[str]]:
    """Return every value as a person reads it; NULL is empty."""
    return [
        ["" if value is None else _text(value) for value in row.values()]
        for row in rows.to_pylist()
    ]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def _connection() -> Iterator[DuckDBPyConnection]:
    """Open a DuckDB in memory that can reach nothing outside itself."""
    import duckdb

    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        connection.execute("set enable_progress_bar = false")
        connection.execute(
            "set python_enable_replacements = false"
        )  # else `from x` finds this module's variables
        connection.execute("set enable_external_access = false")
        yield connection


def _rows(store: Store, table: str) -> Any:
    """Return a table for DuckDB to scan: files on this machine lazily, others read whole.

    Every file's version is looked at first: a fragment keeps what it has read for that, and the
    scan needs it too.

    Raises:
        StoreError: a file was written by a later version, or its version is no number.
    """
    files = store.files(table)
    if not all(isinstance(file, Path) for file in files):
        return store.read(table)
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=checked)
    found = ds.dataset([str(file) for file in files], schema=SCHEMAS[table], format=form)
    fragments = list(found.get_fragments())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        schemas = threads.map(lambda fragment: fragment.physical_schema, fragments)
        for fragment, schema in zip(fragments, schemas, strict=True):
            try:
                version = version_of(schema)
            except ValueError as error:
                raise _unreadable(f"{fragment.path}: {error}") from error
            if version > SCHEMA_VERSION:
                raise later(fragment.path, version)
    return ds.FileSystemDataset(fragments, SCHEMAS[table], form)


def _unreadable(line: str) -> StoreError:
    return StoreError(
        f"A store file cannot be read ({line}). Move it away with 'casting-tune store verify --quarantine'; its cell "
        "will run again."
    )


def _told(error: Exception) -> StoreError | UsageError:
    """Return DuckDB's error, or pyarrow's through DuckDB, as one line of ours."""
    line = " ".join(str(error).partition("LINE ")[0].split())[:300]
    if line.startswith("Permission Error"):
        return UsageError(f"A query reads the tables {', '.join(SCHEMAS)}, and no file: {line}")
    if (
        "parquet" in line.lower() or "stream registered as" in line
    ):  # pyarrow at a file, which it mostly names
        return _unreadable(line)
    absent = re.search(r"Table with name (\S+) does not exist", line)
    return UsageError(
        unknown("table", absent[1], SCHEMAS) if absent else f"This query cannot be answered: {line}"
    )
