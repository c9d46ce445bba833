"""Measures what packing trials on a GPU gives.

Run `python -m tests.benchmarks.packed [--data DIR] [--repeats 1]`.

Twelve unlike cells, three networks at four batch sizes, by `--gpus-per-trial auto` and one at a
time (`--gpus-per-trial 1`), in turn, each in a store of its own. The networks' memory is measured
before and reported separately, since a store keeps it. The clock runs from the start of the first
trial to the end of the last.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from casting_tune.data import synthetic
from casting_tune.execution import runner
from casting_tune.planning.options import Options
from tests.benchmarks import figures

NATIVE_PX = 512
COUNTED = ("completed", "tries that ran out of memory", "most at once", "images a second")
CELLS = """
question = "Do they fit?"
type = "grid"
[fixed]
weights = "none"
image_px = {px}
epochs = {epochs}
train_images = {n_train}
test_images = {n_test}
[axes]
backbone = {backbones}
batch_size = {batches}
"""


def ran(options: Options) -> dict[str, float]:
    """Run the sweep; return the figures of its trials."""
    prepared = runner.prepare(options, say=lambda line: print(line, flush=True))
    runner.execute(prepared)
    trials = prepared.store.read("trials").to_pandas()
    begun = trials["started_at"]
    ended = begun + pd.to_timedelta(trials["duration_s"], unit="s")
    wall = (ended.max() - begun.min()).total_seconds()
    done = trials["status"] == "completed"
    images = (trials["n_train"] * trials["epochs"])[done].sum()
    return {
        "completed": float(done.sum()),
        "tries that ran out of memory": float((trials["status"] == "oom").sum()),
        "most at once": float(
            max(((begun <= moment) & (moment < ended)).sum() for moment in begun)
        ),
        "wall": wall,
        "images a second": images / wall,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run the cells both ways and print a table."""
    parser = figures.parser(__doc__, repeats=1)
    parser.add_argument("--data", type=Path, help="image folder; left out: castings are drawn")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-images", type=int, default=1600)
    parser.add_argument("--test-images", type=int, default=320)
    parser.add_argument(
        "--backbones", nargs="+", default=["resnet50", "mobilenetv2", "efficientnetb4"]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32])
    args = parser.parse_args(words)
    ways: dict[str, float | Literal["auto"]] = {"packed by memory": "auto", "one at a time": 1}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    probing: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = args.data or folder / "castings"
        if args.data is None:
            n_images = 2 * (args.train_images + args.test_images)
            synthetic.draw(data, n_images=n_images, size_px=min(NATIVE_PX, args.px))
        file = folder / "packed.toml"
        cells = CELLS.format(
            px=args.px, epochs=args.epochs, n_train=args.train_images, n_test=args.test_images,
            backbones=[*args.backbones], batches=[*args.batches],
        )  # fmt: skip
        file.write_text(cells.replace("'", '"'), encoding="utf-8")
        for turn in range(args.repeats):
            for way, gpus in ways.items():
                options = Options(
                    sweep=str(file),
                    data=data,
                    results=folder / f"{gpus}-{turn}",
                    gpus_per_trial=gpus,
                    baselines=False,
                )
                if gpus == "auto":
                    began = time.perf_counter()
                    runner.prepare(replace(options, plan=True, probe=True), say=lambda _: None)
                    probing.append(time.perf_counter() - began)
                found[way].append(ran(options))
    alone = [turn["wall"] for turn in found["one at a time"]]
    rows = []
    for way, turns in found.items():
        taken = {name: [turn[name] for turn in turns] for name in turns[0]}
        counts = (figures.spread(taken[name], 0) for name in COUNTED)
        rows.append(
            (way, *counts, figures.spread(taken["wall"], 1), figures.ratios(alone, taken["wall"]))
        )
    header = (
        "cells",
        *COUNTED,
        "s from the first's start to the last's end",
        "times one at a time",
    )
    caption = f"{len(args.backbones)} networks x {len(args.batches)} batch sizes, {args.px} px, "
    caption += f"{args.epochs} epochs of {args.train_images:,} images each; "
    caption += f"their memory was measured in {figures.spread(probing, 0)} s. "
    caption += figures.conditions("torch", "ray", "timm")
    text = f"{figures.table(header, rows)}\n\n{_device()}{caption}"
    figures.publish("packed", text, write_docs=args.write_docs)


def _device() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}. " if torch.cuda.is_available() else ""


if __name__ == "__main__":
    main()
