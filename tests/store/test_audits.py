from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from casting_tune import query
from casting_tune.analysis import image_groups, lookup, run_results, selection
from casting_tune.data import audit
from casting_tune.data.pack import Pack
from casting_tune.report import page_data
from casting_tune.store import audits, verify
from casting_tune.store.store import Store


def test_a_dataset_is_audited_once_and_read_afterwards(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audits.stored_audit(packed, store)
    monkeypatch.setattr(audit, "audit", None)  # a second audit would raise
    second = audits.stored_audit(packed, store)
    np.testing.assert_array_equal(first.group, second.group)
    np.testing.assert_array_equal(first.twin_in_train, second.twin_in_train)
    assert first.findings == second.findings
    assert len(first.findings) >= 2
    assert store.read("images")["kind"].to_pylist() == packed.kinds.tolist()


def test_two_sweeps_that_audit_the_same_images_at_once_both_go_on(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = audit.audit

    def meanwhile(images: Pack, **more: object) -> audit.Audit:
        found = real(images)
        monkeypatch.setattr(audit, "audit", real)
        audits.stored_audit(images, store)
        return found

    monkeypatch.setattr(audit, "audit", meanwhile)
    assert len(audits.stored_audit(packed, store).group) == len(packed.labels)
    assert store.read("images").num_rows == len(packed.labels)


@pytest.fixture
def twice(store: Store) -> Store:
    """Four test images of a dataset: audit version 9 found one photograph, version 10 two."""
    image = {"dataset_id": "d", "split": "test", "y_true": 1, "conflict": False}
    for version, groups in ((9, [0, 0, 0, 0]), (10, [0, 0, 1, 1])):
        rows = [
            image
            | {
                "image": i,
                "group_id": group,
                "copy_in_train": version == 9,
                "twin_in_train": version == 9,
            }
            for i, group in enumerate(groups)
        ]
        store.write(
            "images",
            "d",
            f"audit-{version}",
            [rows[0] | {"finding": f"of version {version}"}, *rows[1:]],
        )
    store.write(
        "images", "other", "audit-9", [image | {"dataset_id": "other", "image": 0, "group_id": 5}]
    )
    store.write(
        "cells",
        "s",
        "r",
        [{"run_id": "r", "sweep": "s", "dataset_id": "d", "cell_id": "a", "position": 0}],
    )
    return store


def test_of_two_versions_of_an_audit_every_reader_sees_the_newest_alone(twice: Store) -> None:
    groups = twice.read("images").to_pylist()
    assert [(row["dataset_id"], row["group_id"]) for row in groups] == [
        ("d", 0),
        ("d", 0),
        ("d", 1),
        ("d", 1),
        ("other", 5),
    ]
    sql = (
        "select dataset_id, count(*) as n, count(distinct group_id) as g "
        "from images group by all order by 1"
    )
    assert query.run(twice, sql).to_pylist() == [
        {"dataset_id": "d", "n": 4, "g": 2}, {"dataset_id": "other", "n": 1, "g": 1},
    ]  # fmt: skip
    assert selection.photographs(twice, "d", [0, 1, 2, 3]) == [0, 0, 1, 1]
    kind, found = lookup.photographs(twice, "d", pd.DataFrame({"image": [3, 0, 1]}))
    assert (kind, found.tolist()) == ("photographs", [1, 0, 0])
    run = run_results.load(twice, "s")
    assert run.groups(np.array([0, 1, 2, 3])).tolist() == [0, 0, 1, 1]
    assert run.twins == frozenset()
    reported = page_data.audit(run)
    assert reported is not None
    assert reported["findings"] == ["of version 10"]
    assert [(row["n"], row["photographs"]) for row in reported["counts"]] == [(4, 2)]


def test_an_older_casting_tune_keeps_to_the_audit_of_its_own_version(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audits.stored_audit(packed, store)
    monkeypatch.setattr(audits, "VERSION", 2)
    audits.stored_audit(packed, store)
    monkeypatch.setattr(audit, "audit", None)  # a third audit would raise
    for version in (1, 2):
        monkeypatch.setattr(audits, "VERSION", version)
        np.testing.assert_array_equal(audits.stored_audit(packed, store).group, first.group)
    assert store.read("images").num_rows == len(packed.labels)
    assert verify.verify(store).files["images"] == 2


def test_further_columns_of_a_list_are_rows_until_the_audit_writes_them_too(
    packed: Pack, store: Store
) -> None:
    n = len(packed.labels)
    listed = replace(packed, columns=tuple(f'{{"line": {i % 2}}}' for i in range(n)))
    assert audits.keep_columns(listed, store) == ""
    counted = "select columns->>'line' as line, count(*) as n from images group by 1 order by 1"
    halves = [{"line": "0", "n": n // 2}, {"line": "1", "n": n // 2}]
    assert query.run(store, counted).to_pylist() == halves
    assert image_groups.photo_groups(store, packed.dataset_id) is None  # rows, but no audit
    audits.stored_audit(listed, store)
    assert audits.keep_columns(listed, store) == ""
    assert query.run(store, counted).to_pylist() == halves
    assert len(image_groups.photo_groups(store, packed.dataset_id) or {}) == n
    changed = replace(listed, columns=("{}",) * n)
    assert "differ from those that the store has" in audits.keep_columns(changed, store)


def test_given_groups_join_the_photographs_of_an_audit(packed: Pack) -> None:
    alone = audit.audit(packed)
    names = ["lot" if i in (0, 40) else "" for i in range(len(packed.labels))]
    grouped = audit.audit(replace(packed, groups=np.array(names)))
    assert alone.group[0] != alone.group[40]
    assert grouped.group[0] == grouped.group[40]
    assert len(set(grouped.group.tolist())) == len(set(alone.group.tolist())) - 1
    np.testing.assert_array_equal(grouped.conflict, alone.conflict)
