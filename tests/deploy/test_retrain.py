from __future__ import annotations

import sys

import pytest

from casting_tune.cli import main
from casting_tune.deploy import retrain
from casting_tune.store import completed
from casting_tune.store.store import Store


def flipped(store: Store) -> str:
    rows = store.read("trials").to_pylist()
    return str(next(row["cell_id"] for row in rows if row["flip"] and row["seed"] == 1))


def test_a_cell_trained_again_from_its_row_scores_every_image_the_same(trained: Store) -> None:
    before = sorted(trained.names(""))
    cell = completed.load(trained, flipped(trained))
    found = retrain.reproduce(cell)
    assert (found.n_identical, found.largest, found.n_decisions) == (found.n, 0.0, 0)
    assert found.n == len(cell.predictions.score) > 20
    assert sorted(trained.names("")) == before


def test_another_seed_gives_other_predictions(trained: Store) -> None:
    from dataclasses import replace

    cell = completed.load(trained, flipped(trained))
    found = retrain.reproduce(replace(cell, config=replace(cell.config, seed=5)))
    assert found.n_identical < found.n
    assert found.largest > 1e-4


def test_the_command_prints_the_comparison_and_exits_with_0(
    trained: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["casting-tune", "reproduce", flipped(trained), "--results", str(trained.root)]
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    assert "predictions are identical; the largest difference is 0;" in capsys.readouterr().out
