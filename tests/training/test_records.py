from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.data.splits import Folds
from casting_tune.store.schema import SCHEMAS
from casting_tune.toggles import TOGGLES
from casting_tune.training.records import describe, failure, of_predictions, predictions, score

NONE = np.array([], dtype=np.int64)


def test_the_schema_has_a_column_for_every_setting_and_every_toggle(packed: Pack) -> None:
    described = describe(
        TrialConfig(backbone="vgg16"), packed, Folds(train=NONE, validation=NONE, test=NONE)
    )
    assert set(described) <= set(SCHEMAS["trials"].names)
    assert set(TOGGLES) <= set(SCHEMAS["trials"].names)


def test_every_prediction_names_the_file_of_its_image_and_its_truth(packed: Pack) -> None:
    parts = Folds(train=NONE, validation=np.array([3, 5]), test=np.array([0]))
    given = np.array([0.25, 0.5, 0.75], dtype=np.float32)
    kinds = np.array([["", "blow hole"][y] for y in packed.labels])
    pack = replace(packed, kinds=kinds)
    found = of_predictions(predictions(parts, pack, [given[:2], given[2:]]), pack, "a1", 2)
    assert [(row["split"], row["image"], row["score"]) for row in found] == [
        ("validation", 3, 0.25), ("validation", 5, 0.5), ("test", 0, 0.75),
    ]  # fmt: skip
    for row in found:
        assert (row["path"], row["y_true"]) == (
            packed.paths[row["image"]],
            packed.labels[row["image"]],
        )
        assert (row["cell_id"], row["attempt"], row["leaked"]) == ("a1", 2, False)
        assert row["kind"] == ("blow hole" if row["y_true"] else "")


def test_the_metrics_of_a_row_are_those_of_its_predictions(packed: Pack) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(packed.labels))
    parts = Folds(train=order[:0], validation=np.sort(order[:20]), test=np.sort(order[20:]))
    given = rng.random(len(order), dtype=np.float32)
    columns = score(predictions(parts, packed, [given[:20], given[20:]]))
    for split, rows, of_split in (
        ("validation", parts.validation, given[:20]),
        ("test", parts.test, given[20:]),
    ):
        y_true, decided = packed.labels[rows], of_split >= 0.5
        assert columns[f"{split}_accuracy"] == accuracy_score(y_true, decided)
        assert columns[f"{split}_recall"] == recall_score(y_true, decided)
    assert columns["test_recall_ok"] == recall_score(1 - y_true, ~decided)


def test_of_a_failure_the_start_of_the_error_and_the_end_of_the_traceback_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert failure("E" * 1999 + "123", "a" * 16384 + "end") == {
        "error": "E" * 1999 + "1",
        "traceback": "a" * 16381 + "end",
    }
    # three bytes each: 16384 = 3 * 5461 + 1, and no half of a character is kept
    assert failure("", "€" * 6000)["traceback"] == "€" * 5461
    assert failure("no file \udcff", "") == {"error": "no file \\udcff", "traceback": None}
    monkeypatch.setenv(
        "PRESS_TOKEN", "s3cr3t-canary"
    )  # the cut goes through it, and half of it is kept by nobody
    cut = failure("E" * 1995 + "s3cr3t-canary", "s3cr3t-canary" + "a" * 16379)
    assert cut == {"error": "E" * 1995 + "$PRES", "traceback": "TOKEN" + "a" * 16379}
