from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from casting_tune import metrics
from casting_tune.analysis import decisions, run_results
from casting_tune.store.store import Store


def test_decisions_are_those_of_the_predictions_image_by_image(trained: Store) -> None:
    run = run_results.load(trained, "tiny")
    row, cells = run.rows()[0]
    images, right = decisions.correct(run, cells)
    assert row == "default"
    assert right.shape == (2, len(images))
    for seed, decided in enumerate(right):
        cell = cells.loc[cells["seed"] == seed, "cell_id"].iloc[0]
        rows = [
            r
            for r in trained.read("predictions", cell_ids=[cell]).to_pylist()
            if r["split"] == "test"
        ]
        expected = {r["image"]: (r["score"] >= 0.5) == bool(r["y_true"]) for r in rows}
        assert [expected[image] for image in images] == decided.tolist()


def test_a_threshold_moves_decisions(trained: Store) -> None:
    run = run_results.load(trained, "tiny")
    _, cells = run.rows()[0]
    _, strict = decisions.correct(run, cells, threshold=0.0)
    positives = run.predictions.drop_duplicates("image")["y_true"].mean()
    assert strict.mean() == pytest.approx(
        positives
    )  # everything is rejected: right on the defects alone


def test_all_thresholds_at_once_count_what_each_counts_alone(store: Store) -> None:
    requested = [
        {"run_id": "r", "sweep": "s", "cell_id": c, "position": i} for i, c in enumerate("abcd")
    ]
    store.write("cells", "s", "r", requested)
    random, scores = np.random.default_rng(0), {}
    for cell in "abc":
        store.write(
            "trials", "s", f"{cell}-1", [{"cell_id": cell, "attempt": 1, "status": "completed"}]
        )
        scores[cell] = random.choice(
            np.array([0.1, 0.3, 0.5, 0.7, 0.9], np.float32), 40
        )  # often on a threshold
    scores["c"][3] = np.nan
    for cell, score in scores.items():
        store.write(
            "predictions",
            "s",
            f"{cell}-1",
            [
                {
                    "cell_id": cell,
                    "attempt": 1,
                    "split": "test",
                    "image": i,
                    "y_true": i % 3 % 2,
                    "leaked": i % 5 == 0,
                }
                | {"score": value, "sha256": str(i)}
                for i, value in enumerate(score.tolist())
            ],
        )
    y_true, leaked = np.arange(40) % 3 % 2, np.arange(40) % 5 == 0
    thresholds = [0.9, 0.1, 0.7, 0.1, 1.5, 0.0]  # in any order, and twice
    for threshold, counted in zip(
        thresholds, decisions.count(run_results.load(store, "s"), thresholds), strict=True
    ):
        assert counted == {
            cell: tuple(
                astuple(metrics.counts(y_true[part], scores[cell][part], threshold=threshold))
                for part in (slice(None), leaked)
            )
            for cell in "ab"  # c has a score that is no number, d no prediction
        }


def test_without_an_audit_every_different_file_is_its_own_group(trained: Store) -> None:
    run = run_results.load(trained, "tiny")
    images, _ = decisions.correct(run, run.rows()[0][1])
    assert run.photo_groups is None
    assert len(set(run.groups(images).tolist())) == len(images)


def test_with_an_audit_images_of_one_photograph_share_a_group(store: Store) -> None:
    rows = [
        {"dataset_id": "d", "image": image, "group_id": group}
        for image, group in ((0, 7), (1, 7), (2, 9))
    ]
    store.write("images", "d", "audit-1", rows)
    store.write(
        "cells",
        "s",
        "r",
        [{"run_id": "r", "sweep": "s", "dataset_id": "d", "cell_id": "a", "position": 0}],
    )
    run = run_results.load(store, "s")
    assert run.groups(np.array([2, 0, 1])).tolist() == [9, 7, 7]


def test_predictions_of_an_attempt_that_was_cut_off_are_not_those_of_the_cell(store: Store) -> None:
    store.write("cells", "s", "r", [{"run_id": "r", "sweep": "s", "cell_id": "a", "position": 0}])
    image = {"cell_id": "a", "split": "test", "image": 0, "y_true": 1}
    store.write("predictions", "s", "a-1", [image | {"attempt": 1, "score": 0.1}])
    store.write("predictions", "s", "a-2", [image | {"attempt": 2, "score": 0.9}])
    store.write("trials", "s", "a-2", [{"cell_id": "a", "attempt": 2, "status": "completed"}])
    assert run_results.load(store, "s").predictions["score"].tolist() == [pytest.approx(0.9)]


def test_a_row_without_predictions_has_no_interval_and_a_note(store: Store) -> None:
    requested = [
        {
            "run_id": "r",
            "sweep": "s",
            "cell_id": c,
            "position": i,
            "row": c,
            "kind": "cell",
            "fold": 0,
            "seed": 0,
        }
        for i, c in enumerate("ab")
    ]
    store.write("cells", "s", "r", requested)
    for cell, kept in (("a", 2), ("b", 1)):  # of cell b one prediction of two is lost
        trial = {"cell_id": cell, "attempt": 1, "status": "completed", "n_test": 2, "seed": 0}
        store.write("trials", "s", f"{cell}-1", [trial])
        image = {"cell_id": cell, "attempt": 1, "split": "test", "y_true": 1, "score": 0.9}
        store.write(
            "predictions",
            "s",
            f"{cell}-1",
            [image | {"image": i, "sha256": str(i)} for i in range(kept)],
        )
    run = run_results.load(store, "s")
    rows = [cells for _, cells in run.rows()]
    assert decisions.correct(run, rows[1])[1].shape == (0, 0)
    sets, notes = decisions.comparable(run, rows)
    assert [one.indices for one in sets] == [[0]]
    assert notes == ("1 rows have no interval: predictions are missing in the store.",)
