"""SQL over a store: its tables as read-only views.

Input: a store and one SELECT. Output: rows as an Arrow table, and text of these as CSV or Markdown.
Only views that the query names have rows, and DuckDB reads only the necessary columns and rows. SQL
cannot access files or the network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from casting_tune import machine
from casting_tune.errors import StoreError, UsageError, unknown
from casting_tune.store.schema import SCHEMA_VERSION, SCHEMAS
from casting_tune.store.store import Store
from casting_tune.store.table_file import newer_version, version_of
from casting_tune.text import in_csv

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMATS = ("text", "csv", "json", "md", "parquet")


def run(store: Store, sql: str) -> pa.Table:
    """Return the rows of a query over the store's tables.

    Args:
        store: the results; a column that an older file does not have is NULL.
        sql: one SELECT of DuckDB; DESCRIBE and SUMMARIZE count as SELECT.

    Raises:
        UsageError: invalid SQL, several statements, or a statement other than SELECT.
        StoreError: a file cannot be read, or was written by a newer version.

    Example:
        >>> from casting_tune import Store, query
        >>> query.run(Store("results"), "select distinct status from trials").to_pylist()
        [{'status': 'completed'}]
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
                raise UsageError("A query must be one SELECT: it cannot change a store.")
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _as_error(error) from error


def check_format(form: str) -> None:
    """Raise UsageError unless `form` is one of FORMATS."""
    if form not in FORMATS:
        raise UsageError(unknown("format", form, FORMATS))


def write_parquet(rows: pa.Table, file: Path) -> None:
    """Write rows to a Parquet file; raise OSError if it cannot be written."""
    pq.write_table(rows, file, compression="zstd")


def csv(rows: pa.Table) -> str:
    """Return rows as CSV with a heading; NULL is empty, and texts are safe as of `text.in_csv`."""
    for position, column in enumerate(rows.columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            texts = (None if value is None else in_csv(value) for value in column.to_pylist())
            safe = pa.array(texts, column.type)
            rows = rows.set_column(position, rows.column_names[position], safe)
    out = io.BytesIO()
    pyarrow.csv.write_csv(rows, out)
    return out.getvalue().decode()


def markdown(rows: pa.Table) -> str:
    """Return rows as a Markdown table; NULL is empty."""
    lines = [rows.column_names, ["---"] * rows.num_columns, *texts(rows)]
    escaped = ([value.replace("|", "\\|").replace("\n", " ") for value in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def texts(rows: pa.Table) -> list[list[str]]:
    """Return all values as text for people; NULL is empty."""
    return [
        ["" if value is None else _text(value) for value in row.values()]
        for row in rows.to_pylist()
    ]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def _connection() -> Iterator[DuckDBPyConnection]:
    """Open a DuckDB in memory that cannot access anything outside."""
    import duckdb

    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        connection.execute("set enable_progress_bar = false")
        # otherwise `from x` would find variables of this module
        connection.execute("set python_enable_replacements = false")
        connection.execute("set enable_external_access = false")
        yield connection


def _rows(store: Store, table: str) -> Any:
    """Return a table for DuckDB to scan: local files lazily, others completely.

    The version of every file is checked first. A fragment keeps the metadata that it has read, and
    the scan uses it again.

    Raises:
        StoreError: a file was written by a newer version, or its version is invalid.
    """
    files = store.files(table)
    if not all(isinstance(file, Path) for file in files):
        return store.read(table)
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=checked)
    dataset = ds.dataset([str(file) for file in files], schema=SCHEMAS[table], format=form)
    fragments = list(dataset.get_fragments())
    with ThreadPoolExecutor(machine.cpus()) as threads:
        schemas = threads.map(lambda fragment: fragment.physical_schema, fragments)
        for fragment, schema in zip(fragments, schemas, strict=True):
            try:
                version = version_of(schema)
            except ValueError as error:
                raise _unreadable(f"{fragment.path}: {error}") from error
            if version > SCHEMA_VERSION:
                raise newer_version(fragment.path, version)
    return ds.FileSystemDataset(fragments, SCHEMAS[table], form)


def _unreadable(line: str) -> StoreError:
    return StoreError(
        f"A store file cannot be read ({line}). Move it away with "
        "'casting-tune store verify --quarantine'; its cell will run again."
    )


def _as_error(error: Exception) -> StoreError | UsageError:
    """Return an error of DuckDB, or of pyarrow in DuckDB, as our error in one line."""
    line = " ".join(str(error).partition("LINE ")[0].split())[:300]
    if line.startswith("Permission Error"):
        return UsageError(f"A query can read the tables {', '.join(SCHEMAS)}, but no file: {line}")
    # an error of pyarrow, usually with the name of the file
    if "parquet" in line.lower() or "stream registered as" in line:
        return _unreadable(line)
    absent = re.search(r"Table with name (\S+) does not exist", line)
    return UsageError(
        unknown("table", absent[1], SCHEMAS) if absent else f"This query failed: {line}"
    )
