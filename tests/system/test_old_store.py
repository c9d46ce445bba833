"""A store of version 0.1 (d524bce) opens; its sweep continues and trains nothing again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from casting_tune.analysis import tables
from casting_tune.execution import runner
from casting_tune.planning.options import Options
from casting_tune.store.store import Store
from tests.cli.test_main import call

OLD = Path(__file__).parent.parent / "fixtures" / "store-0.1"
COMPLETED = {"bc8ad9e89ea18c7b", "cf7c3fba73c0de6f"}
"""The cells of seed 0 of the tiny sweep on the drawn castings (80 of 64 px, seed 1)."""


def prepared(tiny: Path, drawn: Path, results: Path, **more: object) -> runner.Prepared:
    options = Options(
        sweep=str(tiny), data=drawn, results=results, inline=True, baselines=False, **more
    )  # type: ignore[arg-type]
    return runner.prepare(options, say=lambda _: None)


def scores(store: Store, cell: str) -> np.ndarray:
    rows = pq.read_table(store.root / f"predictions/tiny/{cell}-1.parquet").sort_by(
        [("split", "ascending"), ("image", "ascending")]
    )
    return rows["score"].to_numpy()


def test_its_sweep_continues_with_the_missing_cells_and_leaves_its_files_as_they_were(
    tiny: Path, drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(OLD, tmp_path / "results")
    before = {
        file: hashlib.sha256(file.read_bytes()).digest()
        for file in (tmp_path / "results").rglob("*.parquet")
    }
    run = prepared(tiny, drawn, tmp_path / "results")
    assert run.store.completed() == COMPLETED
    assert {p.cell_id for p in run.plan.planned if p.state == "done"} == COMPLETED
    assert len(run.plan.to_do) == 2
    assert runner.execute(run) == 0
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in before} == before
    assert len(run.store.completed()) == 4


def test_its_rows_have_no_kinds_and_its_defects_count_as_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(OLD, tmp_path / "results")
    store = Store(tmp_path / "results")
    assert store.read("predictions")["kind"].null_count == store.read("predictions").num_rows
    table = tables.TABLES["kinds"](store, "tiny")
    assert set(table.frame["kind"]) == {"def_front"}
    assert [note for note in table.notes if "without stored kinds" in note]
    words = ("table", "tiny", "--results", store.root, "--positive")
    assert call(capsys, *words, "ok_front")[0] == 0
    code, _, err = call(capsys, *words, "ok_fornt")
    assert code == 2
    assert "Did you mean --positive ok_front?" in err


def test_training_its_cells_again_gives_its_scores(tiny: Path, drawn: Path, tmp_path: Path) -> None:
    run = prepared(tiny, drawn, tmp_path / "results", only=("seed=0",))
    assert runner.execute(run) == 0
    for cell in COMPLETED:  # bit for bit on the CPU that trained them; other CPUs round otherwise
        np.testing.assert_allclose(scores(run.store, cell), scores(Store(OLD), cell), atol=1e-3)
