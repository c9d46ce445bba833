from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casting_tune import query
from casting_tune.errors import StoreError, UsageError
from casting_tune.store.attempts import read_cell
from casting_tune.store.schema import PREDICTIONS, SCHEMAS, VERSION_KEY
from casting_tune.store.store import Store
from tests.cli.test_main import call


@pytest.fixture
def filled(store: Store) -> Store:
    """Two cells whose answers are known by hand: one of four images wrong, and none."""
    for cell, scores in (("a" * 16, [0.9, 0.1, 0.8, 0.2]), ("b" * 16, [0.9, 0.1, 0.8, 0.7])):
        rows = [
            {
                "cell_id": cell,
                "attempt": 1,
                "split": "test",
                "image": i,
                "y_true": int(i in (0, 2, 3)),
                "score": score,
            }
            for i, score in enumerate(scores)
        ]
        store.write("predictions", "s", f"{cell}-1", rows)
        store.write(
            "trials", "s", f"{cell}-1", [{"cell_id": cell, "attempt": 1, "status": "completed"}]
        )
    return store


def test_a_query_counts_what_the_rows_hold(filled: Store) -> None:
    sql = """
        select t.status, avg(((score >= 0.5) = (y_true = 1))::int) as accuracy
        from predictions p join Trials t using (cell_id)
        group by t.cell_id, t.status order by accuracy
    """
    assert query.run(filled, sql).to_pylist() == [
        {"status": "completed", "accuracy": 0.75},
        {"status": "completed", "accuracy": 1.0},
    ]


def test_every_table_is_a_view_even_where_the_store_holds_no_row_of_it(store: Store) -> None:
    for table in ("trials", "epochs", "predictions", "images", "cells"):
        assert query.run(store, f"select count(*) as n from {table}").to_pylist() == [{"n": 0}]
    assert "cell_id" in {
        row["column_name"] for row in query.run(store, "describe trials").to_pylist()
    }


def test_a_column_that_an_older_file_lacks_is_null(filled: Store) -> None:
    rows = pa.table({"cell_id": ["c" * 16], "score": pa.array([0.5], pa.float32())})
    pq.write_table(rows, filled.root / "predictions" / "s" / "cccccccccccccccc-1.parquet")
    found = query.run(filled, "select y_true from predictions where cell_id = 'cccccccccccccccc'")
    assert found.to_pylist() == [{"y_true": None}]


def test_only_the_tables_that_a_query_names_are_opened(filled: Store) -> None:
    (filled.root / "predictions" / "s" / ("a" * 16 + "-2.parquet")).write_bytes(b"no parquet")
    assert query.run(filled, "select count(*) as n from trials").to_pylist() == [{"n": 2}]
    with pytest.raises(StoreError, match="cannot be read"):
        query.run(filled, "select sum(score) from predictions")


def test_a_file_of_a_later_version_is_refused_where_a_query_names_its_table(filled: Store) -> None:
    file = filled.root / "trials" / "s" / ("b" * 16 + "-1.parquet")
    pq.write_table(pq.read_table(file).replace_schema_metadata({VERSION_KEY: b"99"}), file)
    assert query.run(filled, "select count(*) as n from predictions").to_pylist() == [{"n": 8}]
    with pytest.raises(
        StoreError, match=rf"{file} was written by a newer casting_tune \(schema 99\)"
    ):
        query.run(filled, "select count(*) from trials")


def write_later(store: Store, table: str, version: bytes = b"99") -> str:
    """Write a file of one cell into each table; return that of `table`, under a later schema."""
    for name in SCHEMAS:
        store.write(name, "s", "a1-1-1" if name == "epochs" else "a1-1", [{}])
    (file,) = store.files(table)
    rows = pq.read_table(file).replace_schema_metadata({VERSION_KEY: version})
    pq.write_table(rows, str(file))
    return str(file)


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_later_schema_is_refused_in_every_table_by_query_and_by_every_reader_of_the_store(
    table: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    says = (
        f"{write_later(store, table)} was written by a newer casting_tune (schema 99). "
        "Update casting_tune."
    )
    code, out, err = call(capsys, "query", f"select * from {table}", "--results", store.root)
    assert (code, out, err) == (StoreError.exit_code, "", f"error: {says}\n")
    (file,) = store.names(table)
    readers: list[Callable[[], object]] = [
        lambda: store.read(table),
        lambda: store.read(table, columns=SCHEMAS[table].names[:1]),
        lambda: store.read_file(file, SCHEMAS[table]),
    ]
    if table in ("trials", "epochs", "predictions"):
        readers.append(lambda: read_cell(store, table, "a1", range(1, 2), epochs=1))
    for read in readers:
        with pytest.raises(StoreError) as refused:
            read()
        assert str(refused.value) == says
    for other in set(SCHEMAS) - {table}:
        assert query.run(store, f"select count(*) as n from {other}").to_pylist() == [{"n": 1}]
        assert store.read(other).num_rows == 1


def test_a_schema_version_that_is_no_number_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write_later(store, "trials", b"two")
    code, _, err = call(capsys, "query", "select * from trials", "--results", store.root)
    assert (code, err.count("\n")) == (StoreError.exit_code, 1)
    with pytest.raises(StoreError, match=r"a1-1\.parquet cannot be read"):
        store.read("trials")


@pytest.mark.parametrize(
    "sql",
    [
        "copy trials to '{out}'",
        "copy (select 1) to '{out}'",
        "attach '{out}'",
        "install httpfs",
        "load httpfs",
        "create table t as select 1",
        "insert into trials select * from trials",
        "set enable_external_access = true",
        "pragma database_list",
        "export database '{out}'",
        "select 1; copy trials to '{out}'",
        "",
    ],
)
def test_only_a_select_is_taken(sql: str, filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError):
        query.run(filled, sql.format(out=out))
    assert not out.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "select * from '{file}'",
        "select * from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from read_parquet('{file}')",
        "select * from '{file}.parquet'",
        "select * from glob('/*')",
        "from sniff_csv('{file}')",
        "select * from read_blob('{file}')",
        "select * from parquet_metadata('{file}')",
        "select * from SCHEMAS",
        "select * from connection",
    ],
)
def test_a_query_reaches_no_file_and_no_variable_of_ours(
    sql: str, filled: Store, tmp_path: Path
) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a,b\nsecret,1\n")
    with pytest.raises(UsageError) as refused:
        query.run(filled, sql.format(file=file))
    assert "secret,1" not in str(refused.value)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("selec 1", "syntax error"),
        ("select bacbone from trials", "backbone"),
        ("select * from trails", "trials"),
    ],
)
def test_an_error_of_sql_is_one_line_with_the_nearest_name(
    sql: str, says: str, filled: Store
) -> None:
    with pytest.raises(UsageError) as refused:
        query.run(filled, sql)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_are_written_as_csv_and_markdown() -> None:
    rows = pa.table({"a|b": ["x|y", None], "n": [0.25, 1.0]})
    assert query.csv(rows) == '"a|b","n"\n"x|y",0.25\n,1\n'
    assert query.markdown(rows) == "| a\\|b | n |\n| --- | --- |\n| x\\|y | 0.25 |\n|  | 1 |\n"


def test_the_schema_of_a_view_is_the_stores(filled: Store) -> None:
    assert query.run(filled, "select * from predictions").schema.names == PREDICTIONS.names


def test_the_command_writes_every_format(
    filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "select cell_id, count(*) as n from predictions group by cell_id order by 1"
    words = ("query", sql, "--results", filled.root)
    assert "aaaaaaaaaaaaaaaa  4" in " ".join(
        call(capsys, *words)[1].split("\n")[2].split()
    ).replace(" 4", "  4")
    for form in ("csv", "json", "md", "parquet"):
        assert call(capsys, *words, "--format", form, "--out", tmp_path / form)[0] == 0
    expected = pd.DataFrame({"cell_id": ["a" * 16, "b" * 16], "n": [4, 4]})
    for read in (
        pd.read_csv(tmp_path / "csv"),
        pd.read_json(tmp_path / "json"),
        pd.read_parquet(tmp_path / "parquet"),
    ):
        pd.testing.assert_frame_equal(read, expected, check_dtype=False)
    assert json.loads(call(capsys, *words, "--json")[1]) == expected.to_dict("records")
    assert call(capsys, *words, "--format", "parquet")[0] == 2
    code, _, err = call(capsys, *words, "--format", "jsn")
    assert (code, "Did you mean 'json'?" in err) == (2, True)
