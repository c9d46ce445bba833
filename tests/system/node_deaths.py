"""Runs sweeps on a Ray cluster of one machine while its nodes die.

    python -c "from tests.system.node_deaths import main; main()" FOLDER --kills 20 --seed 7

A head on which no trial runs, three workers with a made-up GPU each. A worker that trains is
removed without grace and another takes its place; then the sweep continues. Trials write what a
real one writes, in milliseconds. Not a test: test_dying_nodes.py runs it in a process of its own,
since Ray reads its token once a process. Prints a JSON object: of each kill the node and the cells
that were training there, and how the cells ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casting_tune.config import Epoch, TrialConfig, cell_id
from casting_tune.data import pack, synthetic
from casting_tune.data.pack import Pack
from casting_tune.execution import ray_cluster, ray_tune
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Event, Task, Work
from casting_tune.store import artifacts
from casting_tune.store.attempts import next_attempt
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Place

WORKERS, CELLS, EPOCH_S = 3, 6, 0.3
KILLS_A_SWEEP = 7
EPOCH = Epoch(
    epoch=0, n_images=1, n_steps=1, learning_rate=0.1, train_loss=0.1, validation_loss=0.1,
    validation_accuracy=0.5, train_s=EPOCH_S, validation_s=0.0,
)  # fmt: skip


def marked_trial(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Leave on which node this attempt runs, and train."""
    import ray

    cell = cell_id(config, packed.dataset_id)
    marks = store.root / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    # by the time: an attempt that dies before its first row leaves its number to the next
    (marks / f"{cell}-{time.time_ns()}").write_text(ray.get_runtime_context().get_node_id())
    train = trial.run_trial if config.backbone.startswith("timm:") else quick_trial
    return train(config, packed, store, **more)


def quick_trial(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Do as `run_trial`, without a network: a checkpoint and row per epoch, then the last row."""
    cell, sweep = cell_id(config, packed.dataset_id), more["context"].sweep
    attempt, checkpoint = next_attempt(store, cell), artifacts.checkpoint(store, cell)
    known = set(store.read("epochs", columns=["epoch"], cell_ids=[cell])["epoch"].to_pylist())
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    n_done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for epoch in range(
        max(1, n_done), config.epochs + 1
    ):  # the last one again: its row may be missing
        if epoch > n_done:
            time.sleep(EPOCH_S)
            beside = checkpoint.with_suffix(f".{attempt}")
            beside.write_text(str(epoch))
            beside.replace(checkpoint)
        if epoch not in known:
            row = {
                "cell_id": cell,
                "attempt": attempt,
                "epoch": epoch,
                "ended_at": datetime.now(UTC),
            }
            store.write("epochs", sweep, f"{cell}-{attempt}-{epoch}", [row])
        more["on_epoch"](replace(EPOCH, epoch=epoch))
    row = {
        "cell_id": cell,
        "attempt": attempt,
        "sweep": sweep,
        "status": "completed",
        "resumed_from": n_done,
    }
    store.write("trials", sweep, f"{cell}-{attempt}", [row])
    artifacts.drop(store, checkpoint)
    return row


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Give a head and its workers behind a token; their files are gone afterwards."""
    folder = tempfile.mkdtemp(
        prefix="ct-"
    )  # else Ray notes the address where others' "auto" finds it
    os.environ |= {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    os.environ |= ray_cluster.ENVIRONMENT
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(WORKERS):
            add_node(made)
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add_node(made: Any) -> None:
    """Add a worker."""
    made.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 * 2**20)


def last_nodes(store: Store) -> dict[str, str]:
    """Return the node of each cell's last attempt."""
    last: dict[str, tuple[int, str]] = {}
    for mark in (store.root / "marks").glob("*"):
        cell, started = mark.name.split("-")
        last[cell] = max(last.get(cell, (0, "")), (int(started), mark.read_text()))
    return {cell: node for cell, (_, node) in sorted(last.items())}


def training(store: Store) -> dict[str, list[str]]:
    """Return the cells that train on each node: those of which no attempt has completed."""
    done = store.completed()
    found: dict[str, list[str]] = {}
    for cell, node in last_nodes(store).items():
        if cell not in done:
            found.setdefault(node, []).append(cell)
    return found


def swept(
    made: Any, work: Work, packed: Pack, *, n_kills: int, chance: random.Random
) -> tuple[list[dict[str, Any]], list[Event]]:
    """Run one sweep, and up to so many kills while it runs; return them and the events."""
    events: list[Event] = []
    failed: list[BaseException] = []

    def sweep() -> None:
        try:
            resources = Resources(cpus=1, gpus=1)
            ray_tune.run_ray(
                work,
                packed,
                resources=replace(resources, address=made.address),
                on_event=events.append,
            )
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=sweep)
    thread.start()
    kills: list[dict[str, Any]] = []
    while thread.is_alive():
        n_before = sum(event.kind == "epoch" for event in events)
        while thread.is_alive() and sum(event.kind == "epoch" for event in events) < n_before + 2:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2 * EPOCH_S))
        busy = training(work.store)
        victims = sorted(
            (node for node in made.worker_nodes if node.node_id in busy),
            key=lambda node: node.node_id,
        )
        if thread.is_alive() and len(kills) < n_kills and victims:
            victim = chance.choice(victims)
            made.remove_node(victim, allow_graceful=False)
            # a cell that completed there between the look and the node's end lost nothing
            survived = work.store.completed() & {
                c for c, n in last_nodes(work.store).items() if n == victim.node_id
            }
            if cells := [cell for cell in busy[victim.node_id] if cell not in survived]:
                kills.append({"node": victim.node_id, "cells": cells})
            add_node(made)
    thread.join()
    if failed:
        raise failed[0]
    return kills, events


def main() -> None:
    """Sweep and kill until so many nodes have died."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--backbone", default="vgg16", help="timm:... trains it; any other name only writes rows"
    )
    args = parser.parse_args()
    chance = random.Random(args.seed)
    synthetic.draw(args.folder / "castings", n_images=40, size_px=32, seed=1)
    packed = pack.pack(args.folder / "castings", args.folder / "packs")
    store = Store(args.folder / "results")
    kills: list[dict[str, Any]] = []
    endings: list[list[Any]] = []
    n_cells = 0
    with cluster() as made:
        while len(kills) < args.kills:
            configs = [
                TrialConfig(
                    backbone=args.backbone, image_px=32, batch_size=16, epochs=args.epochs,
                    seed=seed, precision="fp32", test_images=8,
                )
                for seed in range(n_cells, n_cells + CELLS)
            ]  # fmt: skip
            work = Work(
                tasks=tuple(Task(config=config, label=str(config.seed)) for config in configs),
                store=store,
                sweep="nodes",
                place=Place(n_at_once=WORKERS),
                trial=marked_trial,
            )
            n_kills = min(KILLS_A_SWEEP, args.kills - len(kills))
            now, events = swept(made, work, packed, n_kills=n_kills, chance=chance)
            assert now, "No node died: the sweep was too short, or its trials failed."
            kills += now
            endings += [
                [n_cells + event.task, event.status] for event in events if event.kind == "ended"
            ]
            n_cells += CELLS
    print(json.dumps({"n_cells": n_cells, "kills": kills, "endings": endings}))
