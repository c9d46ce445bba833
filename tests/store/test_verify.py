from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casting_tune.errors import StoreError, UsageError
from casting_tune.store import migrate, verify
from casting_tune.store.locks import sweep_lock
from casting_tune.store.schema import SCHEMA_VERSION, SCHEMAS
from casting_tune.store.store import Store

OLD = Path(__file__).parent.parent / "fixtures" / "store-v1"
CELL = "547a1273053b3dd9"
TRIAL, PREDICTED = f"trials/tiny/{CELL}-1.parquet", f"predictions/tiny/{CELL}-1.parquet"
EPOCH = f"epochs/tiny/{CELL}-1-1.parquet"


@pytest.fixture
def old(tmp_path: Path) -> Store:
    shutil.copytree(OLD, tmp_path / "old")
    return Store(tmp_path / "old")


def found(store: Store) -> list[tuple[str, str]]:
    return [(finding.kind, finding.file) for finding in verify.verify(store).findings]


def change(store: Store, file: str, **columns: object) -> None:
    """Write a file again with an invalid column that has one value in every row."""
    rows = pq.read_table(store.root / file)
    for name, value in columns.items():
        position = rows.schema.get_field_index(name)
        rows = rows.set_column(
            position, rows.schema.field(name), pa.array([value] * rows.num_rows, rows[name].type)
        )
    pq.write_table(rows, store.root / file, write_page_checksum=True)


def test_a_store_that_version_1_wrote_opens_and_is_without_fault(old: Store) -> None:
    assert old.completed() == {CELL}
    assert old.read("trials")["micro_batch"].to_pylist() == [None]
    report = verify.verify(old)
    assert report.findings == []
    assert report.versions == {1: 5}
    assert report.files == dict.fromkeys(("trials", "epochs", "predictions", "cells", "images"), 1)
    assert report.rows["predictions"] == pq.read_table(OLD / PREDICTED).num_rows


def test_a_migrated_store_holds_the_same_rows_under_todays_schema_and_the_old_one_is_as_it_was(
    old: Store, tmp_path: Path
) -> None:
    before = {name: (old.root / name).read_bytes() for name in old.names("")}
    new = Store(tmp_path / "new")
    assert set(migrate.ORDER) == set(SCHEMAS)
    written = migrate.migrate(old, new)
    assert written == dict.fromkeys(migrate.ORDER, 1) | {"probes": 0}  # version 1 knew no probes
    for table in set(SCHEMAS) - {"probes"}:
        schema = SCHEMAS[table]
        rows = pq.read_table(OLD / next((OLD / table).rglob("*.parquet")))
        assert (
            new.read(table)
            .select(rows.column_names)
            .equals(rows.cast(pa.schema(list(rows.schema))))
        )
        assert pq.read_schema(str(new.files(table)[0])).equals(schema)
    assert verify.verify(new).versions == {SCHEMA_VERSION: 5}
    assert {name: (old.root / name).read_bytes() for name in old.names("")} == before
    with pytest.raises(UsageError, match="--out"):
        migrate.migrate(old, new)


def test_a_store_in_a_bucket_is_migrated_and_verified_alike(old: Store, bucket: str) -> None:
    new = Store(bucket)
    migrate.migrate(old, new)
    assert verify.verify(new).findings == []
    assert new.read("trials").equals(old.read("trials"))


@pytest.mark.parametrize("file", [TRIAL, PREDICTED, EPOCH])
@pytest.mark.parametrize("content", [b"", b"PAR1", "half", "flipped"])
def test_a_broken_file_is_found_and_moved_aside_and_its_cell_runs_again(
    old: Store, file: str, content: bytes | str
) -> None:
    whole = (old.root / file).read_bytes()
    if content == "half":
        content = whole[: len(whole) // 2]
    elif content == "flipped":
        position = whole.index(b"PAR1") + 120  # in the first page
        content = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    assert isinstance(content, bytes)
    (old.root / file).write_bytes(content)
    report = verify.verify(old)
    assert ("broken", file) in [(finding.kind, finding.file) for finding in report.findings]
    moved = dict(verify.quarantine(old, report))
    assert (old.root / moved[file]).read_bytes() == content
    assert moved[file] == f"quarantine/{file}"
    assert old.completed() == set()
    assert verify.verify(old).faults == []


@pytest.mark.parametrize(
    ("file", "columns", "what"),
    [
        (PREDICTED, {"score": 1.5}, "outside 0..1"),
        (PREDICTED, {"score": None}, "outside 0..1"),
        (PREDICTED, {"y_true": 2}, "outside 0..1"),
        (PREDICTED, {"image": 3}, "two predictions of one image"),
        (PREDICTED, {"attempt": 2}, "another trial"),
        (PREDICTED, {"split": "test"}, "validation images"),
        (TRIAL, {"n_test": 5}, "but its trial had 5"),
        (TRIAL, {"test_tp": 99}, "but its trial counted"),
        (TRIAL, {"status": "finished"}, "not contain the one row"),
        (TRIAL, {"attempt": 2}, "not contain the one row"),
        (EPOCH, {"epoch": 2}, "not contain the one epoch"),
    ],
)
def test_rows_that_cannot_be_are_a_fault_and_its_cell_runs_again(
    old: Store, file: str, columns: dict[str, object], what: str
) -> None:
    change(old, file, **columns)
    report = verify.verify(old)
    assert any(what in finding.what for finding in report.faults), report.findings
    verify.quarantine(old, report)
    assert old.completed() == set()
    assert verify.verify(old).faults == []


@pytest.mark.parametrize("file", [TRIAL, EPOCH])
def test_a_row_that_two_sweeps_have_is_a_fault_and_one_of_them_stays(old: Store, file: str) -> None:
    twin = file.replace("tiny", "tiny2")
    (old.root / twin).parent.mkdir()
    shutil.copy(old.root / file, old.root / twin)
    assert found(old) == [("fault", twin)]
    verify.quarantine(old, verify.verify(old))
    assert old.completed() == {CELL}
    assert found(old) == []


def test_a_completed_trial_without_predictions_is_a_fault(old: Store) -> None:
    (old.root / PREDICTED).unlink()
    assert found(old) == [("fault", TRIAL)]


def test_what_a_killed_process_left_is_no_fault_and_goes_aside_too(old: Store) -> None:
    (old.root / TRIAL).unlink()
    beside = "trials/tiny/.a1-1.parquet.0123"
    (old.root / beside).write_bytes(b"PAR1 half")
    report = verify.verify(old)
    assert [(finding.kind, finding.file) for finding in report.findings] == [
        ("leftover", beside), ("leftover", PREDICTED),
    ]  # fmt: skip
    assert report.faults == []
    verify.quarantine(old, report)
    assert found(old) == []


def test_a_file_of_a_later_version_is_named_and_left_where_it_is(old: Store) -> None:
    rows = pq.read_table(old.root / TRIAL)
    pq.write_table(
        rows.replace_schema_metadata({"casting_tune.schema_version": "99"}), old.root / TRIAL
    )
    report = verify.verify(old)
    assert ("later", TRIAL) in [(finding.kind, finding.file) for finding in report.findings]
    verify.quarantine(old, report)
    assert (old.root / TRIAL).exists()


def test_nothing_is_moved_while_a_sweep_runs(old: Store) -> None:
    (old.root / TRIAL).write_bytes(b"")
    report = verify.verify(old)
    with sweep_lock(old, "tiny"), pytest.raises(StoreError, match="is already running"):
        verify.quarantine(old, report)
    assert (old.root / TRIAL).exists()


def test_what_a_sweep_was_still_writing_as_it_was_read_is_not_moved(old: Store) -> None:
    content = (old.root / TRIAL).read_bytes()
    (old.root / TRIAL).unlink()
    report = verify.verify(old)
    assert [(finding.kind, finding.moves) for finding in report.findings] == [
        ("leftover", (PREDICTED,))
    ]
    (old.root / TRIAL).write_bytes(content)
    assert verify.quarantine(old, report) == []
    assert found(old) == []


def test_a_reader_that_meets_a_broken_file_names_the_command_that_moves_it(old: Store) -> None:
    (old.root / TRIAL).write_bytes(b"")
    with pytest.raises(
        StoreError, match="casting-tune store verify --quarantine --results"
    ) as refused:
        old.completed()
    assert "\n" not in str(refused.value)


def test_probes_are_verified_and_migrated_too(tmp_path: Path) -> None:
    old, new = Store(tmp_path / "old"), Store(tmp_path / "new")
    old.write("probes", "cpu", "0123abcd", [{"backbone": "vgg16", "step_s": 1.0}])
    assert verify.verify(old).rows["probes"] == 1
    assert migrate.migrate(old, new)["probes"] == 1
    assert new.read("probes").equals(old.read("probes"))
    (old.root / "probes" / "cpu" / "0123abcd.parquet").write_bytes(b"")
    assert found(old) == [("broken", "probes/cpu/0123abcd.parquet")]
