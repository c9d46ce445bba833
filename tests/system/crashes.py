"""Makes every step of a run fail once, in every way, and checks what is left.

Run `python tests/system/crashes.py FOLDER STRIDE`.

With STRIDE 1 every step in every way; with 4 each step in one of the ways. Not a test itself:
test_crash.py runs it as a process of its own, so that forks find one thread and no OpenMP at work.
Prints a JSON object: how many injections were survived, of what kind. Ends with a traceback at the
first that was not.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import nn

from casting_tune import failpoints, machine
from casting_tune.data import synthetic
from casting_tune.execution import runner
from casting_tune.models import build
from casting_tune.planning.options import Options
from casting_tune.store import verify
from casting_tune.store.store import Store

SWEEP = """
question = "What is left?"
type = "grid"

[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 16
batch_size = 16
epochs = 2

[axes]
seed = [0, 1]
"""
KINDS = ("kill -9", "ENOSPC", "EIO", "exception")
TIMES = (
    "_s",
    "started_at",
    "ended_at",
    "peak_memory_bytes",
    "latency_batch_images",
    "resumed_from",
    "attempt",
)


class Small(nn.Module):
    """Stands in for a network: a trial takes milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.head(self.backbone(inputs).flatten(1)).squeeze(1)
        return pooled


def build_model(name: str, *, seed: int, **more: Any) -> Small:
    torch.manual_seed(seed)
    return Small()


def run(folder: Path) -> int:
    options = Options(
        sweep=str(folder / "crash.toml"), data=folder / "castings", results=folder / "results",
        inline=True, baselines=False,
    )  # fmt: skip
    return runner.execute(runner.prepare(options, say=lambda _: None), on_event=lambda _: None)


def failing(nth: int, kind: str) -> Callable[[str], None]:
    count = 0

    def hook(name: str) -> None:
        nonlocal count
        count += 1
        if count != nth:
            return
        if kind == "kill -9":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exception":
            raise RuntimeError(f"injected at {name}")
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))

    return hook


def in_child(folder: Path, hook: Callable[[str], None], *, reached: Path | None = None) -> int:
    """Run in a fork and return its exit code.

    0: every cell has a result; 1: a cell lacks one, or an error occurred; -9: killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            seen = 0

            def counting(name: str) -> None:
                nonlocal seen
                seen += 1
                hook(name)

            failpoints.hook = counting
            code = int(run(folder) > 0)
            if reached:
                reached.write_text(str(seen))
        except Exception as error:  # what a command would say and exit with
            (folder / "error").write_text(repr(error))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Store(root).read(table).to_pylist()
    return found


def completed(root: Path) -> list[tuple[str, int]]:
    return [
        (row["cell_id"], row["attempt"])
        for row in rows(root, "trials")
        if row["status"] == "completed"
    ]


def truth(root: Path) -> set[tuple[Any, ...]]:
    """Return what crashes must not change: rows of completed trials without times and attempts."""
    done = set(completed(root))
    return {
        (table, *((name, value) for name, value in row.items() if not name.endswith(TIMES)))
        for table in ("trials", "predictions", "epochs")
        for row in rows(root, table)
        if table == "epochs" or (row["cell_id"], row["attempt"]) in done
    }


def four_readers_agree(root: Path) -> None:
    import duckdb
    import polars as pl

    for table in ("trials", "epochs", "predictions", "cells"):
        if not any((root / table).glob("*/*.parquet")):
            continue
        glob = f"{root}/{table}/*/*.parquet"
        n = {
            len(pd.read_parquet(root / table)),
            pq.read_table(root / table).num_rows,
            duckdb.sql(f"select count(*) from '{glob}'").fetchall()[0][0],
            pl.read_parquet(glob).height,
        }
        assert len(n) == 1, (table, n)


def unique(root: Path) -> None:
    for table, key in (
        ("trials", ("cell_id", "attempt")), ("epochs", ("cell_id", "epoch")),
        ("predictions", ("cell_id", "attempt", "image")),
    ):  # fmt: skip
        counts = Counter(tuple(row[name] for name in key) for row in rows(root, table))
        assert not counts or max(counts.values()) == 1, (table, counts.most_common(1))
    assert verify.verify(Store(root)).faults == []


def main(folder: Path, stride: int, kinds: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    machine.cpus = lambda root=None: 1
    machine.git_commit = lambda: None
    build.model = build_model  # type: ignore[assignment]
    (folder / "crash.toml").write_text(SWEEP)
    synthetic.draw(folder / "castings", n_images=40, size_px=32, seed=1)
    assert in_child(folder, lambda _: None, reached=folder / "steps") == 0, (
        folder / "error"
    ).read_text()
    n_steps = int((folder / "steps").read_text())
    untouched = truth(folder / "results")
    shutil.copytree(folder / "results" / "packs", folder / "packs")
    shutil.rmtree(folder / "results")
    run(folder)  # warms this process: forks start where it stands
    around = sorted(path.name for path in folder.iterdir())
    survived: Counter[str] = Counter()
    started = time.perf_counter()
    for kind in kinds:
        for nth in [*range(1 + KINDS.index(kind) % stride, n_steps + 1, stride), n_steps + 1]:
            shutil.rmtree(folder / "results")
            shutil.copytree(folder / "packs", folder / "results" / "packs")
            code = in_child(folder, failing(nth, kind))
            if nth > n_steps:
                assert code == 0, "the run was to pass untouched"
                break
            where = (kind, nth, code)
            assert code == -9 if kind == "kill -9" else code in (0, 1), where
            root = folder / "results"
            four_readers_agree(root)
            unique(root)
            assert truth(root) <= untouched, where
            done = set(completed(root))
            assert in_child(folder, lambda _: None) == 0, (where, (folder / "error").read_text())
            unique(root)
            assert truth(root) == untouched, where
            again = completed(root)
            assert done <= set(again), where
            assert len(again) == len({cell for cell, _ in again}), (
                where
            )  # a done cell never runs again
            assert (
                sorted(path.name for path in folder.iterdir() if path.name != "error") == around
            ), where
            survived[kind] += 1
    print(
        json.dumps(
            {"steps": n_steps, "survived": survived, "seconds": time.perf_counter() - started}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), tuple(sys.argv[3:]) or KINDS)
