from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as peer

from casting_tune.analysis import compare, lookup
from casting_tune.config import TrialConfig
from casting_tune.errors import UsageError
from casting_tune.planning import expand
from casting_tune.store.store import Store
from tests.cli.test_main import call
from tests.test_config import OTHER

A, B, C, D = ("a" * 16, "ab" + "0" * 14, "c" * 16, "d" * 16)
SCORES = {A: [0.9, 0.9, 0.9, 0.9, 0.1, 0.1], B: [0.9, 0.1, 0.1, 0.9, 0.1, 0.9]}
LABELS = [1, 1, 1, 0, 0, 0]  # A is wrong on image 3 alone; B on 1, 2, 3 and 5


@pytest.fixture
def filled(store: Store) -> Store:
    """A sweep of four cells: A and B done, C failed, D not run."""
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    base = {
        "dataset_id": "d1",
        "sweep": "s",
        "backbone": "vgg16",
        "epochs": 2,
        "seed": 0,
        "started_at": when,
    }
    for cell, label, validation in ((A, "one", 0.9), (B, "two", 0.95)):
        images = [
            {
                "cell_id": cell,
                "attempt": 2,
                "split": "test",
                "image": i,
                "path": f"test/{i}.png",
                "sha256": str(i),
                "leaked": False,
                "y_true": LABELS[i],
                "score": SCORES[cell][i],
            }
            for i in range(6)
        ]
        store.write("predictions", "s", f"{cell}-2", images)
        for epoch in (1, 2):
            row = {
                "cell_id": cell,
                "attempt": 2,
                "sweep": "s",
                "epoch": epoch,
                "validation_accuracy": 0.4 + epoch / 10,
            }
            store.write("epochs", "s", f"{cell}-2-{epoch}", [row])
        ended = {
            "status": "completed",
            "validation_accuracy": validation,
            "n_test": 6,
            "duration_s": 2.0,
        }
        store.write(
            "trials",
            "s",
            f"{cell}-2",
            [base | ended | {"cell_id": cell, "attempt": 2, "label": label}],
        )
    failed = {
        "cell_id": C,
        "attempt": 1,
        "label": "three",
        "status": "error",
        "error": "it [/broke]",
    }
    store.write("trials", "s", f"{C}-1", [base | failed])
    requested = [
        {
            "run_id": "r1",
            "sweep": "s",
            "asked_at": when,
            "position": n,
            "cell_id": cell,
            "row": row,
            "label": row,
            "backbone": "vgg16",
            "dataset_id": "d1",
            "quick": False,
            "kind": "cell",
            "seed": 0,
            "fold": 0,
        }
        for n, (cell, row) in enumerate([(A, "one"), (B, "two"), (C, "three"), (D, "four")])
    ]
    store.write("cells", "s", "r1", requested)
    return store


def test_a_run_counts_its_cells_and_names_the_best_row_on_validation(filled: Store) -> None:
    (run,) = lookup.runs(filled).to_dict("records")
    assert (run["cells"], run["done"], run["failed"], run["missing"]) == (4, 2, 1, 1)
    assert (run["best"], run["best_validation"]) == ("two", 0.95)


def test_a_cell_that_a_scheduler_stopped_has_not_failed(
    filled: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert " stopped" not in call(capsys, "list", "--results", filled.root)[1]
    stopped = {
        "cell_id": D,
        "attempt": 1,
        "sweep": "s",
        "label": "four",
        "dataset_id": "d1",
        "status": "stopped",
    }
    filled.write("trials", "s", f"{D}-1", [stopped])
    (run,) = lookup.runs(filled).to_dict("records")
    assert (run["done"], run["stopped"], run["failed"], run["missing"]) == (2, 1, 1, 0)
    assert " stopped " in call(capsys, "list", "--results", filled.root)[1]


def test_a_run_without_a_completed_cell_is_listed_without_a_best_row(
    filled: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = {
        "run_id": "r2",
        "sweep": "t",
        "asked_at": datetime(2026, 1, 3, tzinfo=UTC),
        "cell_id": D,
        "row": "four",
    }
    filled.write("cells", "t", "r2", [cell | {"kind": "cell", "quick": False}])
    code, out, err = call(capsys, "list", "--results", filled.root)
    assert (code, err) == (0, "")
    (line,) = (line.split() for line in out.splitlines() if line.startswith("t "))
    assert line[-2:] == ["-", "-"]
    listed = json.loads(call(capsys, "list", "--results", filled.root, "--json")[1])
    assert [(run["run_id"], run["best"]) for run in listed] == [("r1", "two"), ("r2", None)]


def test_images_without_a_path_are_compared_too(
    filled: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell, score in ((A, 0.9), (B, 0.1)):
        image = {
            "cell_id": cell,
            "attempt": 3,
            "split": "test",
            "image": 0,
            "sha256": "0",
            "y_true": 1,
            "score": score,
        }
        filled.write("predictions", "s", f"{cell}-3", [image])
        row = {
            "cell_id": cell,
            "attempt": 3,
            "sweep": "s",
            "status": "completed",
            "dataset_id": "d1",
        }
        filled.write("trials", "s", f"{cell}-3", [row])
    code, out, err = call(capsys, "compare", A, B, "--results", filled.root)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].split() == ["-", "defect", "0%", "100%"]


def test_of_a_cell_that_was_trained_again_the_newest_training_counts(filled: Store) -> None:
    """Attempt 10 and another sweep's folder stand before attempt 2 in the order of names."""
    for attempt, sweep, validation, score in ((3, "another", 0.5, 0.2), (10, "s", 0.99, 0.7)):
        record = {
            "cell_id": A,
            "attempt": attempt,
            "sweep": sweep,
            "status": "completed",
            "dataset_id": "d1",
        }
        image = {
            "cell_id": A,
            "attempt": attempt,
            "split": "test",
            "image": 0,
            "y_true": 1,
            "score": score,
        }
        filled.write("predictions", sweep, f"{A}-{attempt}", [image])
        filled.write(
            "trials", sweep, f"{A}-{attempt}", [record | {"validation_accuracy": validation}]
        )
    assert lookup.predictions(filled, A)["score"].tolist() == pytest.approx([0.7])
    (run,) = lookup.runs(filled).to_dict("records")
    assert (run["best"], run["best_validation"]) == ("one", 0.99)


def test_a_cell_is_shown_with_its_attempts_epochs_files_and_intervals(filled: Store) -> None:
    found = lookup.show(filled, B)
    assert (found.status, found.label, found.sweeps) == ("completed", "two", ("s",))
    assert [epoch["epoch"] for epoch in found.epochs] == [1, 2]
    assert len(found.files) == 4
    rates = {(m.split, m.name): (m.k, m.n) for m in found.metrics}
    assert rates == {
        ("test", "accuracy"): (2, 6),
        ("test", "escape rate"): (2, 3),
        ("test", "overkill rate"): (2, 3),
    }
    escape = next(m for m in found.metrics if m.name == "escape rate")
    exact = peer.binomtest(2, 3).proportion_ci(method="exact")
    assert (escape.low, escape.high) == pytest.approx((exact.low, exact.high))
    assert escape.interval == "over 3 different images"
    assert lookup.show(filled, D).status == "not run"
    assert lookup.show(filled, C).attempts[0]["error"] == "it [/broke]"


def test_show_prints_the_traceback_of_a_failed_attempt(
    filled: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = 'Traceback (most recent call last):\n  File "k.py", line 3, in step\n'
    trace += "RuntimeError: \x1b[31mbroken\n"
    failed = {
        "cell_id": D,
        "attempt": 1,
        "sweep": "s",
        "label": "four",
        "dataset_id": "d1",
        "status": "error",
    }
    when = {"started_at": datetime(2026, 1, 2, tzinfo=UTC), "error": "RuntimeError: broken"}
    filled.write("trials", "s", f"{D}-1", [failed | when | {"traceback": trace}])
    _, out, _ = call(capsys, "show", D, "--results", filled.root)
    (at,) = [i for i, line in enumerate(out.splitlines()) if line.startswith("attempt 1: error")]
    assert out.splitlines()[at + 1 : at + 4] == [
        "  Traceback (most recent call last):",
        '    File "k.py", line 3, in step',
        "  RuntimeError: ?[31mbroken",
    ]
    shown = json.loads(call(capsys, "show", D, "--results", filled.root, "--json")[1])
    assert shown["attempts"][0]["traceback"] == trace


def test_every_setting_of_a_cell_is_shown(filled: Store) -> None:
    settings = {
        f.name: OTHER[f.name] for f in fields(TrialConfig) if f.name not in ("weights", "toggles")
    }
    row = settings | {
        "cell_id": D,
        "attempt": 1,
        "sweep": "s",
        "label": "four",
        "dataset_id": "d1",
        "flip": True,
    }
    filled.write("trials", "s", f"{D}-1", [row | {"status": "completed", "weights": "none"}])
    assert lookup.show(filled, D).settings == settings | {"weights": "none", "toggles": ["flip"]}


def test_two_cells_are_compared_image_by_image(filled: Store) -> None:
    found = compare.cells(filled, A, B)
    assert found.counts == {"both right": 2, "only a wrong": 0, "only b wrong": 3, "both wrong": 1}
    assert found.difference == pytest.approx(3 / 6)
    assert found.mcnemar_p == pytest.approx(2 * 0.5**3)
    assert np.isnan(found.p)  # six images are too few for an interval
    assert sorted(found.disagreements["path"]) == ["test/1.png", "test/2.png", "test/5.png"]
    assert any("another seed" in note for note in found.notes)


def test_rows_of_a_sweep_give_what_their_cells_give(filled: Store) -> None:
    of_rows, of_cells = compare.rows(filled, "s", "one", "two"), compare.cells(filled, A, B)
    assert of_rows.counts == of_cells.counts
    assert (of_rows.difference, of_rows.mcnemar_p) == (of_cells.difference, of_cells.mcnemar_p)
    with pytest.raises(UsageError, match="Did you mean 'three'"):
        compare.rows(filled, "s", "one", "threa")
    with pytest.raises(UsageError, match="no complete training"):
        compare.rows(filled, "s", "one", "three")


def test_a_row_is_found_by_a_part_of_its_label_that_no_other_row_has(filled: Store) -> None:
    quick, full = (
        [cell.row for cell in expand.read("backbone_grid", quick=quick).cells]
        for quick in (True, False)
    )
    assert compare._row("vgg16", quick) == "vgg16, default, batch 8"
    assert (
        compare._row("resnet50", quick) == "resnet50, default, batch 8"
    )  # no part of "inception_resnet_v2"
    assert compare._row("vgg16, default, batch 4", full) == "vgg16, default, batch 4"
    assert compare._row("Batch 4, vgg16, default", full) == "vgg16, default, batch 4"
    assert compare._row("inceptionv", quick) == "inceptionv3, default, batch 8"
    with pytest.raises(
        UsageError,
        match=r"'vgg16' matches 6 rows: 'vgg16, default, batch 2', 'vgg16, default, batch 4', ",
    ):
        compare._row("vgg16", full)
    with pytest.raises(
        UsageError, match=r"'default' matches 30 rows: .* and 18 more\. Give more of the label\."
    ):
        compare._row("default", full)
    found = compare.rows(filled, "s", "on", "tw")
    assert (found.a, found.b) == ("one", "two")


def test_a_cell_that_has_not_completed_cannot_be_compared(filled: Store) -> None:
    with pytest.raises(UsageError, match="no completed trial"):
        compare.cells(filled, A, C)


@pytest.mark.parametrize(
    "words", [("list",), ("show", B), ("show", C), ("show", D), ("compare", A, B)]
)
def test_the_commands_fit_80_columns_and_come_as_json(
    words: tuple[str, ...], filled: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *words, "--results", filled.root)
    assert (code, err) == (0, "")
    assert "vgg16" in out or "one" in out
    code, out, _ = call(capsys, *words, "--results", filled.root, "--json")
    assert code == 0
    json.loads(out)


def test_an_empty_store_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "list", "--results", tmp_path / "none")
    assert (code, "No runs in" in err) == (2, True)
