from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import duckdb
import pandas as pd
import pytest
import sklearn.metrics as sk

from casting_tune.analysis import tables
from casting_tune.errors import UsageError
from casting_tune.report import render
from casting_tune.store.store import Store

STUDY = '{"accuracy": 98.46, "recall": 96.96, "f1": 0.98}'
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ask(store: Store, run: str, cells: list[dict[str, Any]], hour: int = 12) -> None:
    rows = [
        {
            "run_id": run,
            "sweep": "s",
            "asked_at": NOON.replace(hour=hour),
            "position": i,
            "backbone": "vgg16",
            "augmentation": "default",
            "batch_size": 4,
            "image_px": 512,
            "weights": "none",
            "dataset_id": "d",
            "quick": False,
            "kind": "cell",
            "fold": 0,
            **cell,
        }
        for i, cell in enumerate(cells)
    ]
    store.write("cells", "s", run, rows)


def finish(
    store: Store,
    cell: str,
    counts: tuple[int, int, int, int],
    *,
    sweep: str = "s",
    leaked: tuple[bool, ...] = (),
    **more: Any,
) -> None:
    tp, fp, tn, fn = counts
    row = {
        "cell_id": cell,
        "attempt": 1,
        "sweep": sweep,
        "status": "completed",
        "started_at": NOON,
        "n_test": sum(counts),
        "test_tp": tp,
        "test_fp": fp,
        "test_tn": tn,
        "test_fn": fn,
        "epoch_s": 2.0,
        "device": "cpu",
        "n_threads": 1,
        "n_at_once": 2,
        "seed": int(cell[1]),
        "validation_accuracy": 0.9,
    } | more
    store.write("trials", sweep, f"{cell}-{row['attempt']}", [row])
    decided = [(1, 0.9)] * tp + [(0, 0.9)] * fp + [(0, 0.1)] * tn + [(1, 0.1)] * fn
    decided.sort(
        key=lambda decision: -decision[0]
    )  # the images of two trainings are the same: defects first
    images = [
        {
            "cell_id": cell,
            "attempt": 1,
            "split": "test",
            "image": i,
            "sha256": str(i),
            "y_true": y,
            "score": score,
            "leaked": leaked[i] if leaked else False,
        }
        for i, (y, score) in enumerate(decided)
    ]
    store.write("predictions", sweep, f"{cell}-{row['attempt']}", images)


@pytest.fixture
def known(store: Store) -> Store:
    """Three rows: one trained twice, one trained by another sweep, one that failed."""
    ask(
        store,
        "r1",
        [
            {"cell_id": "a0", "row": "A", "seed": 0, "study": STUDY},
            {"cell_id": "a1", "row": "A", "seed": 1, "study": STUDY},
            {"cell_id": "b0", "row": "B", "seed": 0, "batch_size": 8},
            {"cell_id": "c0", "row": "C", "seed": 0, "batch_size": 2},
        ],
    )
    finish(store, "a0", (450, 3, 260, 3))  # 716 images: accuracy 710/716
    finish(store, "a1", (440, 3, 260, 13))  # accuracy 700/716
    finish(store, "b0", (453, 0, 263, 0), sweep="other")
    finish(store, "c0", (0, 0, 0, 0), status="error")
    return store


def by_row(table: tables.Table) -> dict[str, Any]:
    return table.frame.set_index("row").to_dict("index")


def test_a_row_is_the_mean_over_its_trainings_with_their_spread(known: Store) -> None:
    row = by_row(tables.comparison(known, "s"))["A"]
    assert row["n"] == 2
    assert row["accuracy"] == pytest.approx((710 / 716 + 700 / 716) / 2)
    assert row["accuracy_sd"] == pytest.approx(
        (10 / 716) / 2**0.5
    )  # two values: half their distance, times sqrt 2
    assert row["recall"] == pytest.approx((450 + 440) / 2 / 453)
    assert row["escape_rate"] == pytest.approx((3 + 13) / 2 / 453)
    assert row["overkill_rate"] == pytest.approx(3 / 263)
    assert row["study_accuracy"] == 98.46


def test_the_studys_view_is_the_same_decisions_with_ok_as_the_positive_class(known: Store) -> None:
    table = tables.comparison(known, "s", positive="ok")
    row = by_row(table)["A"]
    assert row["recall"] == pytest.approx(260 / 263)
    assert row["precision"] == pytest.approx((260 / 263 + 260 / 273) / 2)
    assert row["accuracy"] == pytest.approx((710 / 716 + 700 / 716) / 2)
    assert row["escape_rate"] == pytest.approx((3 + 13) / 2 / 453)  # an escape stays an escape
    assert "Positive class: ok, as in the study" in table.notes[0]


def test_a_note_says_that_the_studys_recall_is_for_the_other_class(known: Store) -> None:
    def has_note(positive: str) -> bool:
        notes = tables.comparison(known, "s", positive=positive).notes  # type: ignore[arg-type]
        return any("--positive ok_front shows ours" in note for note in notes)

    assert has_note("defective")
    assert not has_note("ok")


def test_a_cell_is_found_by_its_id_wherever_it_was_trained(known: Store) -> None:
    assert by_row(tables.comparison(known, "s"))["B"]["accuracy"] == 1.0


def test_a_cell_without_a_result_keeps_its_row_and_is_counted(known: Store) -> None:
    table = tables.comparison(known, "s")
    assert by_row(table)["C"]["n"] == 0
    assert pd.isna(by_row(table)["C"]["accuracy"])
    assert "1 of 4 cells have no result: 1 error." in table.notes


def test_rows_on_other_images_are_compared_among_themselves(known: Store) -> None:
    small = [{"cell_id": c, "row": c, "seed": int(c[1])} for c in ("d0", "e0")]
    both = [{"cell_id": "a0", "row": "A", "seed": 0}, {"cell_id": "b0", "row": "B", "seed": 0}]
    ask(known, "r2", both + small, hour=13)
    finish(known, "d0", (50, 0, 50, 0))
    finish(known, "e0", (0, 50, 0, 50))
    table = tables.comparison(known, "s")
    letters = table.frame.set_index("row")["letters"]
    assert letters["A"].islower()
    assert (letters["d0"], letters["e0"]) == ("A", "B")
    assert any("compare only within a set" in note for note in table.notes)


def test_one_training_has_no_spread(known: Store) -> None:
    assert pd.isna(by_row(tables.comparison(known, "s"))["B"]["accuracy_sd"])


def test_rows_come_in_the_order_of_the_sweep(known: Store) -> None:
    assert list(tables.comparison(known, "s").frame["row"]) == ["A", "B", "C"]


def test_the_last_run_is_shown_unless_another_is_named(known: Store) -> None:
    ask(known, "r2", [{"cell_id": "b0", "row": "B", "seed": 0}], hour=13)
    assert list(tables.comparison(known, "s").frame["row"]) == ["B"]
    assert list(tables.comparison(known, "s", run_id="r1").frame["row"]) == ["A", "B", "C"]


def test_an_unknown_run_or_sweep_is_an_error(known: Store, store: Store) -> None:
    with pytest.raises(UsageError, match="Unknown run 'r9'"):
        tables.comparison(known, "s", run_id="r9")
    with pytest.raises(UsageError, match="Unknown sweep in this store 't'"):
        tables.comparison(known, "t")
    with pytest.raises(UsageError, match=r"python -m casting_tune.sweep s"):
        tables.comparison(Store(store.root / "empty"), "s")


def test_csv_and_json_carry_the_values_unrounded(known: Store) -> None:
    table = tables.comparison(known, "s")
    csv = pd.read_csv(io.StringIO(render.render(table, "csv")))
    loaded = json.loads(render.render(table, "json"))
    assert csv["accuracy"].iloc[0] == pytest.approx(1410 / 1432, rel=1e-12)
    assert loaded[0]["accuracy"] == pytest.approx(1410 / 1432, rel=1e-9)
    assert loaded[2]["accuracy"] is None


@pytest.mark.parametrize("form", render.FORMATS)
def test_every_format_holds_every_row(known: Store, form: str) -> None:
    text = render.render(tables.comparison(known, "s"), form)
    assert "98.46" in text
    assert text.endswith("\n")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_text_never_runs_over_the_terminals_edge(known: Store, width: int) -> None:
    text = render.render(tables.comparison(known, "s"), "text", width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_hostile_names_cannot_control_terminal_markdown_or_html(store: Store) -> None:
    ask(
        store,
        "r1",
        [
            {
                "cell_id": "a",
                "row": "\x1b[31m[/foo]|<script>",
                "seed": 0,
                "backbone": "\x1b[2Jx|<script>",
            }
        ],
    )
    table = tables.comparison(store, "s")
    for form in ("text", "markdown", "html", "latex"):
        assert "\x1b" not in render.render(table, form) or form == "html"
    assert "<script>" not in render.render(table, "html")
    assert "\\|" in render.render(table, "markdown")


def test_rows_with_names_of_their_own_keep_them_and_others_show_their_settings(
    store: Store,
) -> None:
    ask(
        store,
        "r1",
        [
            {"cell_id": "a0", "row": "No Flip", "seed": 0},
            {"cell_id": "b0", "row": "Base", "seed": 0},
        ],
    )
    assert list(render.shown(tables.comparison(store, "s"))["row"]) == ["No Flip", "Base"]
    settings = [
        {"cell_id": f"c{b}", "row": f"vgg16, batch {b}", "batch_size": b, "seed": 0} for b in (4, 8)
    ]
    ask(store, "r2", settings, hour=13)
    assert list(render.shown(tables.comparison(store, "s"))["batch"]) == ["4", "8"]


def test_an_unknown_format_is_an_error_with_the_nearest_name(known: Store) -> None:
    with pytest.raises(UsageError, match="Did you mean 'markdown'"):
        render.render(tables.comparison(known, "s"), "markdwn")


def test_every_figure_of_a_store_is_that_of_scikit_learn_and_of_sql(trained: Store) -> None:
    frame = tables.comparison(trained, "tiny").frame.set_index("row")
    cell_rows = trained.read("cells").to_pandas()
    predictions = trained.read("predictions").to_pandas()
    tested = predictions[predictions["split"] == "test"]
    for row, cells in cell_rows[cell_rows["kind"] != "timing"].groupby("row"):
        each = [tested[tested["cell_id"] == cell] for cell in cells["cell_id"]]
        for name, peer in (
            ("accuracy", sk.accuracy_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            values = [peer(one["y_true"], one["score"] >= 0.5) for one in each]
            assert frame.loc[row, name] == pytest.approx(sum(values) / len(values), abs=1e-12)
        escapes = [1 - sk.recall_score(one["y_true"], one["score"] >= 0.5) for one in each]
        assert frame.loc[row, "escape_rate"] == pytest.approx(
            sum(escapes) / len(escapes), abs=1e-12
        )
    query = f"""
        select cell_id, avg(((score >= 0.5) = (y_true = 1))::int)
        from '{trained.root}/predictions/*/*.parquet'
        where split = 'test' group by cell_id
    """
    by_sql = dict(duckdb.sql(query).fetchall())
    for trial in trained.read("trials").to_pylist():
        assert by_sql[trial["cell_id"]] == trial["test_accuracy"]


def test_five_thresholds_come_from_one_set_of_predictions(trained: Store) -> None:
    frame = tables.thresholds(trained, "tiny").frame
    assert list(frame["threshold"].unique()) == [0.1, 0.2, 0.3, 0.4, 0.5]
    recall = frame[frame["row"] == "default"].sort_values("threshold")["recall"].to_numpy()
    assert (recall[:-1] >= recall[1:]).all()  # a higher threshold never finds more defects
    each = tables.trainings(trained, "tiny").frame
    at_half = each[(each["row"] == "default") & (each["threshold"] == 0.5)]
    mean = frame[(frame["row"] == "default") & (frame["threshold"] == 0.5)].iloc[0]
    assert mean["accuracy"] == pytest.approx(at_half["accuracy"].mean())
    assert mean["accuracy_sd"] == pytest.approx(at_half["accuracy"].std(ddof=1))


def test_thresholds_separate_clean_from_leaked_test_images(store: Store) -> None:
    ask(store, "r1", [{"cell_id": "a0", "row": "A", "seed": 0}])
    finish(
        store, "a0", (1, 0, 1, 2), leaked=(True, False, False, True)
    )  # defects first: found, missed, missed; good
    frame = tables.thresholds(store, "s").frame.set_index("threshold")
    assert frame.loc[0.5, "accuracy"] == 0.5
    assert frame.loc[0.5, "leaked_accuracy"] == 1.0
    assert frame.loc[0.5, "clean_accuracy"] == 0.0


def test_the_studys_threshold_is_one_on_the_good_castings(trained: Store) -> None:
    ours = tables.thresholds(trained, "tiny", positive="ok").frame
    ours = ours[ours["row"] == "default"].sort_values("threshold")
    recall = ours["recall"].to_numpy()
    assert (recall[:-1] >= recall[1:]).all()
    overkill = ours["overkill_rate"].to_numpy()
    assert recall == pytest.approx(1 - overkill)  # a good casting found is one that is not rejected
