"""Escapes by kind of defect: by hand in a store, in tables, verdict, report and threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import beta

from casting_tune.analysis import (
    class_view,
    kind_rates,
    kinds,
    run_results,
    selection,
    tables,
    verdict,
)
from casting_tune.report import embedded_images, page_data, render
from casting_tune.report import page as report
from casting_tune.store.store import Store
from tests.analysis.test_tables import NOON, ask
from tests.cli.test_main import call

CRACK, HOLE = ("crack", 12), ("hole", 40)


def finish(store: Store, cell: str, escapes: dict[str, int], **more: Any) -> None:
    """Write a completed training whose first defects of each kind escape: 12 cracks, 40 holes.

    The 10 good images pass. Test and validation are the same images with the same scores.
    """
    images = [
        {"y_true": 1, "kind": kind, "score": 0.2 if i < escapes[kind] else 0.8}
        for kind, n in (CRACK, HOLE)
        for i in range(n)
    ] + [{"y_true": 0, "kind": "", "score": 0.3}] * 10
    rows = [
        {"cell_id": cell, "attempt": 1, "split": split, "image": i, "sha256": str(i),
         "path": f"{one['kind'] or 'fine'}/{i}.png", "leaked": False, **one}
        for split in ("validation", "test") for i, one in enumerate(images)
    ]  # fmt: skip
    fn = sum(escapes.values())
    trial = {
        "cell_id": cell, "attempt": 1, "sweep": "s", "status": "completed", "started_at": NOON,
        "n_test": 62, "n_validation": 62, "seed": int(cell[1]), "validation_accuracy": 0.9,
        "test_tp": 52 - fn, "test_fp": 0, "test_tn": 10, "test_fn": fn, "dataset_id": "d",
        "positive": "defective", "negative": "fine",
    }  # fmt: skip
    store.write("predictions", "s", f"{cell}-1", rows)
    store.write("trials", "s", f"{cell}-1", [trial | more])


@pytest.fixture
def one(store: Store) -> Store:
    """One row, trained once: 3 of 12 cracks and 1 of 40 holes escape."""
    ask(store, "r1", [{"cell_id": "a0", "row": "A", "seed": 0}])
    finish(store, "a0", {"crack": 3, "hole": 1})
    return store


@pytest.fixture
def two(store: Store) -> Store:
    """Row A with two seeds: 3 and 5 of 12 cracks, 1 and 0 of 40 holes; row B never trained."""
    cells = [{"cell_id": f"a{seed}", "row": "A", "seed": seed} for seed in (0, 1)]
    ask(store, "r1", [*cells, {"cell_id": "b0", "row": "B", "seed": 0}])
    finish(store, "a0", {"crack": 3, "hole": 1})
    finish(store, "a1", {"crack": 5, "hole": 0})
    return store


def bound(k: int, n: int) -> float:
    """Clopper and Pearson's one-sided 95 % bound from the beta distribution."""
    return float(beta.ppf(0.95, k + 1, n - k))


def test_each_kind_has_its_escapes_and_its_exact_bound_the_worst_kind_first(one: Store) -> None:
    frame = tables.TABLES["kinds"](one, "s").frame
    assert frame["kind"].tolist() == ["crack", "hole"]
    assert frame["n_images"].tolist() == [12, 40]
    assert frame["escapes"].tolist() == [3, 1]
    assert frame["escape_rate"].tolist() == [0.25, 0.025]
    assert frame["escape_upper"].tolist() == pytest.approx([bound(3, 12), bound(1, 40)])
    assert frame["n_groups"].isna().all()


def test_of_two_seeds_the_rate_is_the_mean_and_the_bound_is_that_of_the_worst(two: Store) -> None:
    table = kinds.table(two, "s")
    frame = table.frame
    assert frame["row"].tolist() == ["A", "A"]
    assert frame["n"].tolist() == [2, 2]
    assert frame["escape_rate"].tolist() == pytest.approx([8 / 24, 1 / 80])
    assert frame["escapes"].tolist() == [5, 1]
    assert frame["escape_upper"].tolist() == pytest.approx([bound(5, 12), bound(1, 40)])
    assert any("the highest of the trainings" in note for note in table.notes)
    assert "1 of 3 cells have no result: 1 not run." in table.notes


def test_the_folds_of_a_seed_are_joined_so_that_every_image_counts_once(store: Store) -> None:
    cells = [{"cell_id": f"a{fold}", "row": "A", "seed": 7, "fold": fold} for fold in (0, 1)]
    ask(store, "r1", cells)
    finish(store, "a0", {"crack": 2, "hole": 0}, fold=0)
    finish(store, "a1", {"crack": 4, "hole": 0}, fold=1)
    table = kinds.table(store, "s")
    crack = table.frame.iloc[0]
    assert (crack["n"], crack["n_images"], crack["escapes"]) == (1, 24, 6)
    assert crack["escape_upper"] == pytest.approx(bound(6, 24))
    assert any("folds of one seed are joined" in note for note in table.notes)


def test_photographs_of_a_kind_are_counted_where_the_dataset_was_audited(one: Store) -> None:
    audited = [{"dataset_id": "d", "image": i, "group_id": i // 6} for i in range(62)]
    one.write("images", "d", "audit-1", audited)
    table = kinds.table(one, "s")
    assert table.frame["n_groups"].tolist() == [2, 7]  # images 0 to 11, and 12 to 51: groups 2..8
    assert any("see photographs" in note for note in table.notes)


def test_predictions_without_kinds_are_one_kind_and_the_table_says_so(store: Store) -> None:
    ask(store, "r1", [{"cell_id": "a0", "row": "A", "seed": 0}])
    rows = [
        {"cell_id": "a0", "attempt": 1, "split": "test", "image": i, "sha256": str(i),
         "leaked": False, "y_true": int(i < 4), "score": 0.2 if i == 0 else 0.9}
        for i in range(8)
    ]  # fmt: skip
    store.write("predictions", "s", "a0-1", rows)
    trial = {"cell_id": "a0", "attempt": 1, "status": "completed", "n_test": 8, "seed": 0}
    store.write("trials", "s", "a0-1", [trial | {"positive": "porosity", "started_at": NOON}])
    table = kinds.table(store, "s")
    assert table.frame[["kind", "escapes", "n_images"]].values.tolist() == [["porosity", 1, 4]]
    assert [note for note in table.notes if "without stored kinds" in note]
    assert table.verdict == ""


def test_the_verdict_names_the_worst_kind_of_the_best_row(two: Store) -> None:
    run = run_results.load(two, "s")
    text = verdict.verdict(run, tables.comparison(two, "s").frame).sentence
    assert text.endswith(" Worst kind: crack, 5 of 12 escaped in the worst training "
                         "(at most 69 %).")  # fmt: skip
    assert tables.comparison(two, "s").verdict == text


def test_one_training_needs_no_word_about_trainings(one: Store) -> None:
    text = tables.comparison(one, "s").verdict
    assert text.endswith(" Worst kind: crack, 3 of 12 escaped (at most 53 %).")  # 52.73 %


def test_a_bound_is_rounded_up_to_two_digits() -> None:
    for k, n, text in ((3, 12, "53 %"), (0, 453, "0.66 %"), (12, 12, "100 %"), (1, 40, "12 %")):
        assert kind_rates.rate("x", escapes=k, n=n).at_most == text, bound(k, n)


def test_a_score_that_is_not_a_number_leaves_its_training_out(two: Store) -> None:
    run = run_results.load(two, "s")
    run.predictions.loc[run.predictions["cell_id"] == "a1", "score"] = float("nan")
    n, escapes = kinds.of_row(run, dict(run.rows())["A"])
    assert n == 1
    assert [(e.worst.kind, e.worst.escapes) for e in escapes] == [("crack", 3), ("hole", 1)]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_fits_the_terminal(two: Store, width: int) -> None:
    text = render.render(kinds.table(two, "s"), "text", width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "crack" in text


@pytest.mark.parametrize("form", render.FORMATS)
def test_every_format_has_every_kind(one: Store, form: str) -> None:
    text = render.render(kinds.table(one, "s"), form)
    assert "crack" in text
    assert "hole" in text


def test_the_command_prints_the_table_and_its_json(
    one: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("table", "s", "--kind", "kinds", "--results", one.root)
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert "escapes by kind of defect" in out
    rows = json.loads(call(capsys, *words, "--json")[1])["rows"]
    assert [(row["kind"], row["escapes"], row["n_images"]) for row in rows] == [
        ("crack", 3, 12), ("hole", 1, 40),
    ]  # fmt: skip


def test_a_threshold_reports_the_escapes_by_kind_on_test_and_validation(
    one: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    point = selection.threshold(one, "a0", max_escape="10%")
    assert [(kind.kind, kind.escapes, kind.n) for kind in point.test_kinds] == [
        ("crack", 3, 12), ("hole", 1, 40),
    ]  # fmt: skip
    assert point.validation_kinds == point.test_kinds
    code, out, _ = call(capsys, "threshold", "a0", "--max-escape", "10%", "--results", one.root)
    assert code == 0
    assert "crack, 3 of 12 escaped (at most 53 %); hole, 1 of 40 escaped" in " ".join(out.split())


def test_the_report_shows_the_kinds_of_the_best_row(
    one: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_images, "augmentation", tuple)  # pictures take seconds
    monkeypatch.setattr(page_data, "charts", lambda *_, **__: [])
    html = report.page(one, report.Request(sweep="s"))
    section = html.split('<section id="kinds">')[1].split("</section>")[0]
    assert section.index("crack") < section.index("hole")
    assert ">3</td><td>12</td>" in section
    assert "<details><summary>All rows by kind" in section


# the names of classes after training


def test_a_kind_as_positive_class_is_that_kind_against_the_good_images(one: Store) -> None:
    table = tables.comparison(one, "s", positive="crack")
    row = table.frame.iloc[0]
    assert row["recall"] == 9 / 12
    assert row["accuracy"] == pytest.approx((9 + 10) / 22)
    assert row["escape_rate"] == 0.25
    assert any(note.startswith("Positive class: crack, against the good") for note in table.notes)
    assert "test images of crack and good castings" in table.verdict
    at_half = tables.thresholds(one, "s", positive="crack").frame.set_index("threshold").loc[0.5]
    assert at_half["recall"] == 9 / 12
    each = tables.trainings(one, "s", positive="hole").frame.set_index("threshold").loc[0.5]
    assert each["recall"] == 39 / 40


@pytest.mark.parametrize("name", ["fine", "ok"])
def test_the_good_class_is_understood_by_its_name(one: Store, name: str) -> None:
    table = tables.comparison(one, "s", positive=name)
    assert table.frame.iloc[0]["recall"] == 1.0
    assert table.frame.iloc[0]["precision"] == pytest.approx(10 / 14)
    assert table.notes[0] == (
        "Positive class: fine; escape and overkill rates still refer to defects."
    )


def test_an_unknown_class_is_answered_with_the_nearest_name(
    one: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("table", "s"), ("plot", "s", "--out", tmp_path), ("report", "s")):
        code, _, err = call(capsys, *words, "--positive", "krack", "--results", one.root)
        assert code == 2
        assert err == "error: Unknown class 'krack'. Did you mean --positive crack?\n"
    code, _, err = call(capsys, "table", "s", "--positive", "xyz", "--results", one.root)
    assert "The classes are 'crack', 'defective', 'fine', 'good', 'hole'" in err


def test_a_store_of_before_finds_the_good_class_in_the_paths(one: Store) -> None:
    run = run_results.load(one, "s")
    run.trials["negative"] = pd.NA
    assert class_view.of_run(run).negative == "fine"
