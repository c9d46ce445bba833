"""Runs on the real castings, where CASTING_TUNE_DATA names them.

Accuracies are recorded in docs/benchmarks.md, not asserted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casting_tune.analysis import tables
from casting_tune.execution import runner
from casting_tune.planning.options import Options
from casting_tune.store.store import Store


@pytest.mark.slow
def test_a_quick_sweep_on_the_real_castings_completes_and_says_what_leaks(
    real_images: Path, store: Store
) -> None:
    lines: list[str] = []
    options = Options(
        sweep="cpu_baseline", data=real_images, results=store.root, quick=True, inline=True
    )
    prepared = runner.prepare(options, say=lines.append)
    assert (
        "64 of 715 test images are byte-for-byte copies of training images: scores look too good."
        in lines
    )
    assert len(prepared.pack.labels) == 7348
    assert runner.execute(prepared, on_event=lambda _: None) == 0
    frame = tables.comparison(prepared.store, "cpu_baseline").frame
    assert list(frame["n"]) == [3, 1, 1, 1, 1]


def run_sweep(real_images: Path, results: Path, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "casting_tune.sweep", *words, "--results", str(results)],
        capture_output=True,
        text=True,
        env=os.environ | {"CASTING_TUNE_DATA": str(real_images)},
        timeout=1100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_backbones_complete_on_the_real_castings(real_images: Path, tmp_path: Path) -> None:
    few = ("--set", "train_images=48", "--set", "test_images=32")
    run_sweep(real_images, tmp_path / "r", "backbone_grid", "--quick", "--no-baselines", *few)
    frame = tables.comparison(Store(tmp_path / "r"), "backbone_grid").frame
    assert list(frame.loc[frame["kind"] == "cell", "n"]) == [1] * 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_cpu_baseline_predicts_every_test_image_with_each_of_three_seeds(
    real_images: Path, tmp_path: Path
) -> None:
    few = (
        "--set",
        "epochs=1",
        "--set",
        "train_images=960",
    )  # the whole of it takes 3 to 17 minutes
    print(run_sweep(real_images, tmp_path / "r", "cpu_baseline", "--no-baselines", *few))
    predictions = Store(tmp_path / "r").read("predictions").to_pandas()
    tested = predictions[predictions["split"] == "test"]
    assert tested.groupby("cell_id").size().tolist() == [715] * 3
    assert (
        0 < tested["leaked"].sum() < 64 * 3
    )  # copies of what was trained on: of all 64 where all are
