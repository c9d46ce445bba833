"""What is left of sweeps whose nodes died without grace, and how the sweeps ended."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casting_tune.store.store import Store
from tests.system.node_deaths import CELLS, KILLS_A_SWEEP

ROOT = Path(__file__).parent.parent.parent


def killed(folder: Path, *words: str, epochs: int) -> dict[str, Any]:
    """Let nodes die in another process, check the store, and return the process' JSON."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.system.node_deaths import main; main()",
            str(folder),
            "--epochs",
            str(epochs),
            *words,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    report: dict[str, Any] = json.loads(
        next(line for line in ended.stdout.splitlines() if line.startswith('{"n_cells"'))
    )
    store = Store(folder / "results")
    trials, epochs_ = store.read("trials").to_pandas(), store.read("epochs").to_pandas()
    assert sorted(report["endings"]) == [[task, "completed"] for task in range(report["n_cells"])]
    assert list(trials["status"]) == ["completed"] * report["n_cells"]
    assert trials["cell_id"].is_unique
    assert not epochs_.duplicated(["cell_id", "epoch"]).any()
    assert set(epochs_.groupby("cell_id")["epoch"].agg(tuple).map(sorted).map(tuple)) == {
        tuple(range(1, epochs + 1))
    }
    nodes: dict[str, list[str]] = {}
    for mark in sorted(
        (store.root / "marks").glob("*"), key=lambda mark: int(mark.name.split("-")[1])
    ):
        nodes.setdefault(mark.name.split("-")[0], []).append(mark.read_text())
    hit = {(cell, kill["node"]) for kill in report["kills"] for cell in kill["cells"]}
    assert len(hit) >= len(report["kills"])
    for cell, node in hit:  # on which it was tried once, and then on others
        assert nodes[cell].count(node) == 1
        assert nodes[cell][-1] != node
    for trial in trials.itertuples():  # every later attempt continued where an epoch was saved
        before = epochs_[
            (epochs_["cell_id"] == trial.cell_id) & (epochs_["attempt"] < trial.attempt)
        ]
        assert trial.resumed_from >= (before["epoch"].max() if len(before) else 0)
        own = epochs_[(epochs_["cell_id"] == trial.cell_id) & (epochs_["attempt"] == trial.attempt)]
        assert len(own) == epochs - len(before)
    resumed = int((trials["resumed_from"] > 0).sum())
    assert resumed
    print(
        f"{len(report['kills'])} nodes died, {len(hit)} trials with them, "
        f"{resumed} of {len(trials)} cells resumed"
    )
    return report


@pytest.mark.slow
def test_cells_whose_nodes_die_end_completed_once_on_other_nodes_from_their_last_epoch(
    tmp_path: Path,
) -> None:
    result = killed(tmp_path, "--kills", "2", epochs=15)
    assert len(result["kills"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_die_at_random_cost_no_cell(tmp_path: Path) -> None:
    n_kills = int(os.environ.get("CASTING_TUNE_KILLS", "20"))
    result = killed(tmp_path, "--kills", str(n_kills), "--seed", "7", epochs=25)
    assert len(result["kills"]) == n_kills
    assert result["n_cells"] >= CELLS * math.ceil(
        n_kills / KILLS_A_SWEEP
    )  # several sweeps, with twenty
