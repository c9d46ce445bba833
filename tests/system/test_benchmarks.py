"""The benchmarks stay alive: a small version of each runs and prints its table.

No second is asserted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import figures

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "orchestration": (
        ["--trials", "6", "--peer-trials", "2", "--repeats", "1"],
        [
            "| casting_tune | 6 x 1 |",
            "| Ray Tune's defaults | 2 x 1 |",
            "| plain Ray tasks | 6 x 1 |",
        ],
    ),
    "input_pipeline": (
        ["--px", "32", "--batch", "4", "--repeats", "1", "--seconds", "0.2",
         "--sides", "kornia", "torchvision"],
        ["| 32 | 4 |", "times kornia, a module a toggle"],
    ),
    "training": (
        ["--px", "32", "--batch", "8", "--images", "32", "--seconds", "0.1", "--repeats", "1"],
        ["| timm:resnet18 | 32 | 8 |", "| mobilenetv2 | 32 | 8 |"],
    ),
    "precision": (
        ["--px", "32", "--batch", "2", "--seconds", "0.05", "--repeats", "1",
         "--backbones", "timm:resnet18"],
        ["| timm:resnet18 |", "| 2 | 1 |"],
    ),
    "contention": (
        ["--threads", "1", "--seconds", "0.05", "--repeats", "1"],
        ["| timm:resnet18 | 128 | 32 | 1 |", "| mobilenetv2 | 224 | 4 | 2 |"],
    ),
    "gpu": (
        ["--device", "cpu", "--px", "32", "--seconds", "0.05", "--repeats", "1",
         "--backbones", "mobilenetv2", "--b4", "--parts", "networks", "together",
         "--shared", "mobilenetv2", "--at-once", "1"],
        [
            "| mobilenetv2 | 32 | 4 |",
            "| mobilenetv2 | as written | 1 |",
            "| mobilenetv2 | recorded | 1 |",
        ],
    ),
    "evaluation": (
        ["--px", "32", "--seconds", "0.1", "--repeats", "1"],
        ["| timm:resnet18 | 32 |", "| mobilenetv2 | 32 |"],
    ),
    "scale": (
        ["--cells", "10", "20", "--workers", "2"],
        ["| 10 x 1 |", "| 20 x 1 |", "five thresholds, s", "A trial of 20 costs"],
    ),
    "cold": (
        ["--repeats", "1"],
        ["| 100 images to a pack |", "| command to first training step |"],
    ),
    "larger_than_memory": (
        ["--images", "120", "--size", "64", "--px", "32", "--limit-gib", "2", "--repeats", "1"],
        ["| device | 0.00 |", "| disk | 0.00 | 2.00 |", "Scores of all runs are equal."],
    ),
    "queries": (
        ["--trials", "90", "--images", "20", "--repeats", "1",
         "--sweeps", "backbone_grid", "full_factorial",
         "--tables", "thresholds", "comparison", "--peer-runs", "3"],
        ["| backbone_grid | thresholds | 300 |", "| full_factorial | comparison |",
         "| MLflow search_runs, SQLite | 3 |", "| Tune ResultGrid.get_dataframe | 3 |"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_version_runs_and_prints_its_table(name: str) -> None:
    words, lines = SMALL[name]
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    missing = [line for line in lines if line not in ended.stdout]
    assert not missing, ended.stdout + ended.stderr


def test_every_benchmark_has_its_place_in_the_docs_and_a_small_version() -> None:
    scripts = {path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")} - {
        "__init__",
        "figures",
        "peers",
        "coverage",  # in docs/statistics.md; tests/analysis/test_coverage.py runs a small version
    }
    assert scripts == set(SMALL) | {
        "packed"
    }  # which tests/test_sharing.py runs on GPUs that are made up
    page = figures.PAGE.read_text(encoding="utf-8")
    gpu = {"gpu_networks", "gpu_peers", "gpu_together", "gpu_trial"}  # a table a part
    for name in (scripts - {"gpu"}) | gpu:
        assert figures.placed(page, name, "text").count("text\n<!-- end") == 1


def test_a_table_replaces_what_stood_between_its_markers_alone() -> None:
    readme = (
        "a\n<!-- measured: x -->\nold\n<!-- end: x -->\nb\n<!-- measured: y -->\n<!-- end: y -->\n"
    )
    once = figures.placed(readme, "x", "| new |\n")
    assert once == readme.replace("old", "| new |")
    assert figures.placed(once, "x", "| new |") == once
    with pytest.raises(ValueError, match="no place for 'z'"):
        figures.placed(readme, "z", "text")


def test_ratios_are_taken_turn_by_turn() -> None:
    assert figures.ratios([10, 40, 30], [5, 10, 30]) == "2.0 (1.0 to 4.0)"
    assert figures.spread([1.234]) == "1.23"
    assert figures.spread([]) == ""
