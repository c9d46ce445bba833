"""The cache of small files never changes what is read; a change of its sources ends it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casting_tune.errors import StoreError
from casting_tune.store.schema import PREDICTIONS, SCHEMAS, VERSION_KEY
from casting_tune.store.store import Store


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files are many here, and a lot is four."""
    monkeypatch.setattr("casting_tune.store.cache.FEW", 3)
    monkeypatch.setattr("casting_tune.store.cache._LOT", 4)


def fill(store: Store, cells: range, *, sweep: str = "s") -> None:
    for i in cells:
        rows = [
            {"cell_id": f"{i:04d}", "attempt": 1, "image": j, "score": i / 100, "sha256": "ab"}
            for j in range(i % 4)
        ]
        store.write("predictions", sweep, f"{i:04d}-1", rows)


def one_by_one(store: Store) -> pa.Table:
    """What the files hold, read by pyarrow alone."""
    return pa.concat_tables([pq.read_table(file) for file in store.files("predictions")])


def cache(store: Store) -> Path:
    return store.root / ".cache" / "predictions.parquet"


def test_rows_and_their_order_are_those_of_the_files_whatever_is_kept(store: Store) -> None:
    fill(store, range(0, 20, 2))
    assert store.read("predictions").equals(one_by_one(store))  # makes the cache
    made = cache(store).stat().st_mtime_ns
    assert store.read("predictions").equals(one_by_one(store))  # reads it
    fill(store, range(1, 5, 2), sweep="a")  # two new files, in a folder before the others
    fill(store, range(7, 8))  # and one between them
    assert store.read("predictions").equals(one_by_one(store))
    assert (
        cache(store).stat().st_mtime_ns == made
    )  # three new files are no reason to write it again
    fill(store, range(9, 20, 2))
    assert store.read("predictions").equals(one_by_one(store))
    assert cache(store).stat().st_mtime_ns > made
    assert store.read("predictions").equals(one_by_one(store))


def test_some_cells_and_some_columns_are_those_of_all(store: Store) -> None:
    fill(store, range(20))
    wanted = [f"{i:04d}" for i in range(3, 17, 2)]
    for _ in range(2):
        part = store.read("predictions", columns=["score", "cell_id"], cell_ids=wanted)
        assert part.schema.names == ["score", "cell_id"]
        assert part["cell_id"].to_pylist() == [
            f"{i:04d}" for i in range(3, 17, 2) for _ in range(i % 4)
        ]
        assert part["score"].to_pylist() == pytest.approx(
            [i / 100 for i in range(3, 17, 2) for _ in range(i % 4)]
        )


def test_an_encoded_column_has_the_same_values(store: Store) -> None:
    fill(store, range(20))
    for _ in range(2):
        read = store.read(
            "predictions", columns=["cell_id", "sha256", "score"], encoded=["cell_id", "sha256"]
        )
        assert pa.types.is_dictionary(read.schema.field("cell_id").type)
        assert read["cell_id"].to_pylist() == one_by_one(store)["cell_id"].to_pylist()


@pytest.mark.parametrize("change", ["removed", "rewritten", "touched"])
def test_a_changed_or_removed_file_makes_the_cache_anew(store: Store, change: str) -> None:
    fill(store, range(20))
    store.read("predictions")
    file = Path(store.files("predictions")[7])
    rows = pq.read_table(file)
    if change == "removed":
        file.unlink()
    elif change == "rewritten":
        pq.write_table(rows.slice(0, 1), file)
    else:
        os.utime(file, ns=(1, 1))
    assert store.read("predictions").equals(one_by_one(store))


@pytest.mark.parametrize("damage", [b"", b"not Parquet", None])
def test_a_damaged_cache_is_made_anew(store: Store, damage: bytes | None) -> None:
    fill(store, range(20))
    store.read("predictions")
    content = cache(store).read_bytes()
    cache(store).write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert store.read("predictions").equals(one_by_one(store))


def test_a_folder_that_takes_no_cache_is_read_all_the_same(store: Store) -> None:
    fill(store, range(20))
    (store.root / ".cache").write_text("a file, where the folder would be")
    assert store.read("predictions").equals(one_by_one(store))


def test_a_damaged_store_file_is_an_error_and_leaves_no_cache(store: Store) -> None:
    fill(store, range(20))
    file = Path(store.files("predictions")[7])
    content = bytearray(file.read_bytes())
    content[60] ^= 255  # in a page: only its checksum can tell
    file.write_bytes(content)
    with pytest.raises(StoreError, match="0007-1"):
        store.read("predictions")
    assert not cache(store).exists()
    assert list(cache(store).parent.iterdir()) == []


def test_a_few_files_make_no_cache(store: Store) -> None:
    fill(store, range(3))
    assert store.read("predictions").equals(one_by_one(store))
    assert not cache(store).exists()


def test_a_cache_of_a_later_schema_is_not_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version may give a column another meaning and leave its name and type."""
    fill(store, range(10))
    with monkeypatch.context() as later:
        metadata = {VERSION_KEY: b"99"}
        later.setattr("casting_tune.store.table_file.SCHEMA_VERSION", 99)
        later.setitem(SCHEMAS, "predictions", PREDICTIONS.with_metadata(metadata))
        fill(store, range(10, 20))
        assert store.read("predictions").num_rows == 30
    assert pq.read_schema(cache(store)).metadata[VERSION_KEY] == b"99"
    with pytest.raises(StoreError, match="newer casting_tune"):
        store.read("predictions")
