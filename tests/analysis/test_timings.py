from __future__ import annotations

from typing import Any

import pytest

from casting_tune.analysis import timings
from casting_tune.store.store import Store
from tests.cli.test_main import call


def write(store: Store, cells: list[dict[str, Any]]) -> None:
    requested = []
    for i, cell in enumerate(cells):
        name = f"c{i}"
        requested.append(
            {
                "run_id": "r",
                "sweep": "s",
                "cell_id": name,
                "kind": cell.pop("kind", "cell"),
                "position": i,
                "row": name,
                "backbone": cell.pop("backbone", "xception"),
                "batch_size": cell.pop("batch", 4),
                "image_px": 512,
                "study": cell.pop("study", None),
                "quick": False,
            }
        )
        row = {
            "cell_id": name,
            "attempt": 1,
            "status": "completed",
            "device": "cpu",
            "n_threads": 2,
            "n_test": 10,
            "n_train": 5307,
            "latency_one_s": 0.1,
            "latency_batch_s": 1.6,
            "latency_batch_images": 32,
        } | cell
        store.write("trials", "s", f"{name}-1", [row])
    store.write("cells", "s", "r", requested)


def test_trials_with_others_and_passes_alone_have_separate_rows(store: Store) -> None:
    write(
        store,
        [
            {"n_at_once": 2, "step_s": 9.0, "image_s": 9.0},
            {"n_at_once": 1, "step_s": 0.8, "image_s": 0.2, "kind": "timing", "n_train": 48},
            {"n_at_once": 2, "step_s": 9.0, "image_s": 9.0, "batch": 8},
        ],
    )
    table = timings.timing(store, "s")
    rows = table.frame.set_index(["batch", "n_at_once"])
    assert list(rows.index) == [(4, 1), (4, 2), (8, 2)]
    row = rows.loc[(4, 1)]
    assert (row["n"], row["step_s"], row["image_s"]) == (1, 0.8, 0.2)
    assert row["epoch_s"] == pytest.approx(
        0.2 * 5307
    )  # of the sweep's own epochs, not of the short pass
    assert row["n_steps"] == 1327  # ceil(5307 / 4): every image once
    assert row["latency_image_s"] == pytest.approx(0.05)
    assert rows["step_s"].tolist() == [0.8, 9.0, 9.0]
    assert any(
        note.startswith("1 of 2 settings were measured only while other trials ran")
        for note in table.notes
    )


def test_a_sweep_without_timing_passes_has_its_trials_seconds_marked_with_how_many_ran_at_once(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = {"n_at_once": 4, "image_s": 0.1}
    write(
        store,
        [beside | {"step_s": 0.2}, beside | {"step_s": 0.4}, beside | {"step_s": 9.0, "batch": 8}],
    )
    frame = timings.timing(store, "s").frame
    assert frame["n"].tolist() == [2, 1]
    assert frame["step_s"].tolist() == [pytest.approx(0.3), 9.0]  # the median of 0.2 and 0.4
    assert frame["n_at_once"].tolist() == [4, 4]
    out = call(capsys, "table", "s", "--kind", "timing", "--results", store.root)[1]
    assert "at once" in out
    assert "0.3" in out


def test_a_setting_without_a_completed_trial_has_a_note(store: Store) -> None:
    write(store, [{"n_at_once": 1, "step_s": 0.2, "image_s": 0.1}, {"status": "error", "batch": 8}])
    table = timings.timing(store, "s")
    assert table.frame["n"].tolist() == [1, 0]
    assert table.frame["n_at_once"].isna().tolist() == [False, True]
    assert "1 of 2 settings have no completed trial." in table.notes


def test_a_search_that_has_chosen_no_cell_yet_has_an_empty_table(store: Store) -> None:
    write(store, [{"n_at_once": 1, "kind": "baseline"}])
    assert timings.timing(store, "s").frame.empty


def test_the_studys_seconds_a_step_are_its_seconds_an_epoch_over_its_own_steps(
    store: Store,
) -> None:
    write(store, [{"n_at_once": 1, "step_s": 0.8, "image_s": 0.2, "study": '{"epoch_s": 194}'}])
    table = timings.timing(store, "s")
    assert table.frame["study_step_s"].iloc[0] == pytest.approx(
        0.5861, abs=1e-4
    )  # the deck prints 0.586102719
    assert any("a half, a quarter and an eighth" in note for note in table.notes)
