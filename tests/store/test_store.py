from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casting_tune.errors import StoreError
from casting_tune.store.attempts import (
    attempts_since,
    completed_since,
    last_attempts,
    next_attempt,
    read_cell,
)
from casting_tune.store.storage import Folder
from casting_tune.store.store import Store

ROW = {
    "cell_id": "a1",
    "attempt": 1,
    "sweep": "s",
    "status": "completed",
    "started_at": datetime(2026, 1, 1, tzinfo=UTC),
}


def test_a_written_row_is_read_back_and_what_it_lacks_is_null(store: Store) -> None:
    store.write("trials", "s", "a1-1", [ROW])
    (row,) = store.read("trials").to_pylist()
    assert {key: row[key] for key in ROW} == ROW
    assert row["test_accuracy"] is None


def test_a_file_is_never_written_twice(store: Store) -> None:
    store.write("trials", "s", "a1-1", [ROW])
    with pytest.raises(StoreError, match="written once"):
        store.write("trials", "s", "a1-1", [ROW | {"status": "error"}])
    assert store.read("trials")["status"].to_pylist() == ["completed"]


def test_a_column_that_the_schema_lacks_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no column"):
        store.write("trials", "s", "a1-1", [ROW | {"acuracy": 1.0}])
    assert store.files("trials") == []


def test_a_write_that_fails_leaves_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write("trials", "s", "a1-1", [ROW])
    assert not list(store.root.rglob("*.parquet*"))


def test_plain_readers_read_the_folder_while_a_temporary_file_lies_in_it(store: Store) -> None:
    place = store.write("trials", "s", "a1-1", [ROW])
    (place.parent / f".{place.name}.1234").write_bytes(b"PAR1 half a file")
    assert list(pd.read_parquet(store.root / "trials")["cell_id"]) == ["a1"]
    assert duckdb.sql(f"select cell_id from '{store.root}/trials/*/*.parquet'").fetchall() == [
        ("a1",)
    ]


def test_every_file_says_its_schema_version(store: Store) -> None:
    place = store.write("epochs", "s", "a1-1-1", [{"cell_id": "a1"}])
    assert pq.read_schema(place).metadata[b"casting_tune.schema_version"] == b"2"


def test_a_flipped_bit_is_found_and_the_file_named(store: Store) -> None:
    rows = [{"cell_id": "a1", "image": i, "score": i / 1000} for i in range(1000)]
    place = store.write("predictions", "s", "a1-1", rows)
    content = bytearray(place.read_bytes())
    content[len(content) // 3] ^= 1
    place.write_bytes(content)
    with pytest.raises(StoreError, match=place.name):
        store.read("predictions")


def test_a_cell_is_done_only_by_a_completed_trial(store: Store) -> None:
    store.write("trials", "s", "a1-1", [ROW | {"status": "error"}])
    store.write("predictions", "s", "a1-2", [{"cell_id": "a1"}])
    assert store.completed() == set()
    assert store.failed() == {"a1": "error"}
    store.write("trials", "s", "a1-2", [ROW | {"attempt": 2}])
    assert store.completed() == {"a1"}
    assert store.failed() == {}


def test_attempts_count_on_from_whatever_an_earlier_one_left(store: Store) -> None:
    assert next_attempt(store, "a1") == 1
    store.write("epochs", "s", "a1-1-1", [{"cell_id": "a1"}])
    store.write("epochs", "s", "a1-1-12", [{"cell_id": "a1"}])
    assert next_attempt(store, "a1") == 2
    store.write("trials", "other", "a1-2", [ROW])
    assert next_attempt(store, "a1") == 3
    assert next_attempt(store, "a") == 1


def test_a_folder_that_cannot_be_written_is_reported_before_any_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--results"):
        Store(tmp_path / "file").check_writable()


def test_a_column_that_a_later_version_added_is_null_in_older_files(store: Store) -> None:
    place = store.root / "trials" / "s" / "a1-1.parquet"
    place.parent.mkdir(parents=True)
    pq.write_table(pa.table({"cell_id": ["a1"], "status": ["completed"], "attempt": [1]}), place)
    assert store.completed() == {"a1"}
    assert store.read("trials")["resumed_from"].to_pylist() == [None]


def test_a_file_of_a_later_schema_is_refused_with_the_way_out(store: Store) -> None:
    place = store.root / "trials" / "s" / "a1-1.parquet"
    place.parent.mkdir(parents=True)
    later = pa.table({"cell_id": ["a1"]}).replace_schema_metadata(
        {"casting_tune.schema_version": "99"}
    )
    pq.write_table(later, place)
    with pytest.raises(StoreError, match="schema 99"):
        store.read("trials")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_no_parquet_is_named_in_one_line(store: Store, content: bytes) -> None:
    place = store.root / "trials" / "s" / "a1-1.parquet"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with pytest.raises(StoreError, match=r"a1-1\.parquet") as caught:
        store.read("trials")
    assert "\n" not in str(caught.value)


def test_no_message_says_to_move_a_store_file_that_may_not_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("trials", "s", "a-1", [{"cell_id": "a", "attempt": 1, "status": "completed"}])

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = store.root / "trials" / "s" / "a-1.parquet"
    monkeypatch.setattr(pq, "ParquetFile", refused)
    with pytest.raises(
        StoreError,
        match=f"^Cannot read '{file}': permission denied. Give this account read permission",
    ):
        store.read("trials")
    monkeypatch.setattr(
        os, "stat", refused
    )  # of a folder that may not be searched: it may hold attempts
    with pytest.raises(StoreError, match="Permission denied"):
        attempts_since(store, "a", 0, epochs=1)


def test_what_a_later_version_made_a_setting_was_its_default_before(
    store: Store, tmp_path: Path
) -> None:
    written = store.write("trials", "s", "a1-1", [ROW | {"backbone": "vgg16"}])
    old = pq.read_table(written).drop_columns(["rotation_deg", "micro_batch"])
    written.unlink()
    pq.write_table(old, written)
    (row,) = store.read("trials").to_pylist()
    assert (row["rotation_deg"], row["micro_batch"], row["backbone"]) == (45.0, None, "vgg16")


def test_the_attempts_of_a_cell_are_found_by_their_names_and_no_folder_is_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    store.write(
        "trials",
        "s",
        "a1-1",
        [{"cell_id": "a1", "attempt": 1, "status": "error", "started_at": at}],
    )
    store.write(
        "predictions", "s", "a1-2", [{"cell_id": "a1", "attempt": 2, "image": 0}]
    )  # died before its row
    store.write(
        "epochs", "other", "a1-3-4", [{"cell_id": "a1", "attempt": 3, "epoch": 4}]
    )  # continued, and died
    store.write(
        "trials",
        "other",
        "a1-4",
        [{"cell_id": "a1", "attempt": 4, "status": "completed", "started_at": at}],
    )
    store.write(
        "trials",
        "s",
        "a12-5",
        [{"cell_id": "a12", "attempt": 5, "status": "completed", "started_at": at}],
    )
    whole = store.read("trials", cell_ids=["a1"])

    def listed(*_: object) -> list[str]:
        raise AssertionError("a folder was listed")

    monkeypatch.setattr(Folder, "names", listed)
    assert [attempts_since(store, "a1", known, epochs=4).stop for known in range(5)] == [5] * 5
    assert attempts_since(store, "a1", 1, epochs=4) == range(2, 5)
    assert attempts_since(store, "nobody", 0, epochs=4) == range(1, 1)
    rows = read_cell(store, "trials", "a1", range(1, 5), epochs=4)
    assert rows.sort_by("attempt").to_pylist() == whole.sort_by("attempt").to_pylist()
    assert read_cell(store, "trials", "a1", range(2, 4), epochs=4).num_rows == 0
    assert read_cell(
        store, "epochs", "a1", range(1, 5), epochs=4, columns=["epoch"]
    ).to_pylist() == [{"epoch": 4}]
    completed = completed_since(store, "a1", 1, epochs=4)
    assert completed is not None
    assert completed["attempt"] == 4
    assert completed_since(store, "a1", 4, epochs=4) is None


def test_a_file_of_another_name_among_the_rows_is_no_attempt_and_stops_no_sweep(
    store: Store,
) -> None:
    store.write("trials", "s", "a1-2", [ROW])
    store.write("epochs", "s", "a1-3-1", [])
    store.write("trials", "s", "notes", [])
    assert last_attempts(store) == {"a1": 3}
