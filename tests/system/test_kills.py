"""Kills driver and workers of a Ray run at random: nothing is lost, doubled or trained again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from casting_tune.analysis import tables
from casting_tune.report import render
from casting_tune.store.store import Store

N_KILLS = int(os.environ.get("CASTING_TUNE_KILLS", "20"))  # .ci/run has time for fewer
N_CELLS, N_EPOCHS = 12, 24
SWEEP = """
question = "Does it survive?"
[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
batch_size = 16
epochs = 24
precision = "fp32"
[axes]
augmentation = ["default", "only flip"]
seed = [0, 1, 2, 3, 4, 5]
"""


def start(file: Path, data: Path, results: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [
        "-m",
        "casting_tune.sweep",
        file,
        "--data",
        data,
        "--results",
        results,
        "--no-baselines",
        *more,
    ]
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def workers(driver: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in driver.children(recursive=True):
        try:
            if "ImplicitFunc" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_kills_of_drivers_and_workers_cost_nothing(drawn: Path, tmp_path: Path) -> None:
    file, rng = tmp_path / "killed.toml", random.Random(0)
    file.write_text(SWEEP)
    reference = start(
        file, drawn, tmp_path / "untouched"
    )  # threads a trial as in the run that is killed
    _, output = reference.communicate(timeout=300)
    assert reference.returncode == 0, output.decode()
    store, n_kills, n_drivers = Store(tmp_path / "killed"), 0, 0
    done: set[str] = set()
    while n_kills < N_KILLS:
        run = start(file, drawn, tmp_path / "killed")
        driver = psutil.Process(run.pid)
        until = rng.randint(3, 5)
        killed = 0
        while run.poll() is None and n_kills < N_KILLS:
            time.sleep(rng.uniform(0.05, 0.4))
            victims = workers(driver)
            if not victims:
                continue
            last = killed == until
            victim = driver if last else rng.choice(victims)
            victim.send_signal(signal.SIGKILL)
            n_kills, killed, n_drivers = n_kills + 1, killed + 1, n_drivers + last
            if last:
                break
        assert run.wait(300) in (0, 1, -signal.SIGKILL), (
            run.stderr.read().decode()  # type: ignore[union-attr]
        )
        assert run.stderr is not None
        run.stderr.close()
        completed = store.completed()
        assert done <= completed
        done = completed
        assert len(done) < N_CELLS or n_kills == N_KILLS, (
            "the sweep ended before all kills were spent"
        )
    last_run = start(file, drawn, tmp_path / "killed", "--retry-failed")
    _, output = last_run.communicate(timeout=300)
    assert last_run.returncode == 0, output.decode()
    trials, epochs = store.read("trials").to_pandas(), store.read("epochs").to_pandas()
    assert not trials.duplicated(["cell_id", "attempt"]).any()
    assert not epochs.duplicated(["cell_id", "epoch"]).any()
    finished = trials[trials["status"] == "completed"]
    assert len(finished) == finished["cell_id"].nunique() == N_CELLS
    assert len(epochs) == N_CELLS * N_EPOCHS
    ours, theirs = (
        json.loads(render.render(tables.TABLES["trainings"](s, "killed"), "json"))
        for s in (store, Store(tmp_path / "untouched"))
    )
    for row in ours + theirs:
        for timed in [name for name in row if name.endswith("_s") or name == "cell_id"]:
            del row[timed]
    assert ours == theirs
    assert n_drivers >= N_KILLS // 6
    print(f"{n_kills} kills survived, {n_drivers} of them of the driver")
    time.sleep(1)
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
    assert os.listdir(tmp_path / "killed" / "checkpoints") == []  # noqa: PTH208
