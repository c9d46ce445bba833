"""Readers of a store while a writer writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from casting_tune.store.store import Store

N_FILES = 300
READERS: dict[str, Callable[[Path], int]] = {
    "pandas": lambda root: len(pd.read_parquet(root / "epochs")),
    "pyarrow": lambda root: pq.read_table(root / "epochs").num_rows,
    "duckdb": lambda root: (
        duckdb.connect().sql(f"select count(*) from '{root}/epochs/*/*.parquet'").fetchall()[0][0]
    ),
    "polars": lambda root: pl.read_parquet(f"{root}/epochs/*/*.parquet").height,
    "store": lambda root: Store(root).read("epochs").num_rows,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_never_fails_and_never_sees_fewer_rows_while_a_writer_writes(
    store: Store, reader: str
) -> None:
    def write(n: int) -> None:
        store.write("epochs", "s", f"c{n}-1-1", [{"cell_id": f"c{n}", "attempt": 1, "epoch": 1}])

    write(0)
    writer = threading.Thread(target=lambda: [write(n) for n in range(1, N_FILES)])
    writer.start()
    seen = [READERS[reader](store.root)]
    while writer.is_alive():
        seen.append(READERS[reader](store.root))
    writer.join()
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert READERS[reader](store.root) == N_FILES
