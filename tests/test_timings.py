from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from casting_tune import timings
from casting_tune.store import Store


def write(store: Store, cells: list[dict[str, Any]]) -> None:
    asked = []
    for i, cell in enumerate(cells):
        name = f"c{i}"
        asked.append({
            "run_id": "r", "sweep": "s", "cell_id": name, "kind": cell.pop("kind", "cell"), "position": i, "row": name,
            "backbone": cell.pop("backbone", "xception"), "batch_size": cell.pop("batch", 4), "image_px": 512,
            "study": cell.pop("study", None), "quick": False,
        })  # fmt: skip
        row = {
            "cell_id": name, "attempt": 1, "status": "completed", "device": "cpu", "n_threads": 2, "n_test": 10,
            "n_train": 5307, "latency_one_s": 0.1, "latency_batch_s": 1.6, "latency_batch_images": 32,
        } | cell  # fmt: skip
        store.write("trials", "s", f"{name}-1", [row])
    store.write("cells", "s", "r", asked)


def test_only_trials_that_had_their_device_alone_are_timed(store: Store) -> None:
    write(
        store,
        [
            {"n_at_once": 2, "step_s": 9.0, "image_s": 9.0},
            {"n_at_once": 1, "step_s": 0.8, "image_s": 0.2, "kind": "timing", "n_train": 48},
            {"n_at_once": 2, "step_s": 9.0, "image_s": 9.0, "batch": 8},
        ],
    )
    table = timings.timing(store, "s")
    row = table.frame.set_index("batch").loc[4]
    assert (row["n"], row["step_s"], row["image_s"]) == (1, 0.8, 0.2)
    assert row["epoch_s"] == pytest.approx(0.2 * 5307)  # of the sweep's own epochs, not of the short pass
    assert row["n_steps"] == 1327  # ceil(5307 / 4): every image once
    assert row["latency_image_s"] == pytest.approx(0.05)
    assert pd.isna(table.frame.set_index("batch").loc[8, "step_s"])
    assert "1 of 2 rows are not measured: run the sweep with --timing." in table.notes


def test_the_studys_seconds_a_step_are_its_seconds_an_epoch_over_its_own_steps(store: Store) -> None:
    write(store, [{"n_at_once": 1, "step_s": 0.8, "image_s": 0.2, "study": '{"epoch_s": 194}'}])
    table = timings.timing(store, "s")
    assert table.frame["study_step_s"].iloc[0] == pytest.approx(0.5861, abs=1e-4)  # the deck prints 0.586102719
    assert any("a half, a quarter and an eighth" in note for note in table.notes)
