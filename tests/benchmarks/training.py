"""Measures what share of the bare step's speed a whole epoch reaches.

Run `python -m tests.benchmarks.training [--data DIR] [--images 320]`.

The bare step is forward, backward and optimiser on one preloaded batch. The epoch is what
`trial.run_trial` does: order, all nine augmentations, normalisation, the step, losses; its seconds
are those of the trial's own rows. Both in turn, in one process. Then what validation, checkpoint
and rows add to an epoch of the real set (5,307 images to train on, 1,326 to validate on), worked
out from the seconds that were measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from casting_tune import machine
from casting_tune.config import Epoch, TrialConfig
from casting_tune.data import pack, synthetic
from casting_tune.data.pack import Pack
from casting_tune.models import build
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES
from casting_tune.training import loop, trial
from casting_tune.training.inputs import memory_format
from casting_tune.training.precision import resolve
from casting_tune.training.records import Place, TrialContext
from tests.benchmarks import figures

SETTINGS = (("timm:resnet18", 128), ("mobilenetv2", 224))
REAL = (5307, 1326)


def bare_step(config: TrialConfig, *, seconds: float) -> float:
    """Return images a second of forward, backward and optimiser on one batch that lies there."""
    model = build.model(
        config.backbone, weights="none", dense=0, dropout=0, in_channels=config.in_channels, seed=0
    ).to(memory_format=memory_format(config))  # type: ignore[call-overload]
    shape = (config.batch_size, config.in_channels, config.image_px, config.image_px)
    inputs = torch.rand(shape).contiguous(memory_format=memory_format(config))
    batch = (inputs, (torch.arange(config.batch_size) % 2).float())
    spent, n_steps = 0.0, 3  # the first epoch warms up
    while spent < seconds:
        recipe = loop.Recipe(
            base_lr=1e-3, batch_size=config.batch_size, weight_decay=0.01, warmup_share=0.0,
            lr_schedule="constant", epochs=2, n_steps=n_steps,
            precision="bf16" if config.precision == "bf16" else "fp32",
        )  # fmt: skip
        optimiser = loop.make_optimiser(model, recipe)
        steps = [batch] * n_steps
        for epoch in loop.fit(
            model,
            optimiser,
            recipe,
            loop.Feed(batches=lambda _, of=steps: of, validation=lambda: [batch]),
        ):
            spent = epoch.train_s
        n_steps = max(n_steps + 1, round(n_steps * seconds / spent) + 1)
    return epoch.n_images / epoch.train_s


def whole_epoch(config: TrialConfig, packed: Pack, n_threads: int) -> tuple[float, float, float]:
    """Return the images a second of a trial's second epoch, and two times.

    The times are the validation seconds an image and the seconds of files an epoch.
    """
    seen: list[tuple[Epoch, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        row = trial.run_trial(
            replace(config, epochs=3), packed, Store(Path(folder)),
            context=TrialContext(sweep="bench", label="bench", place=Place(n_threads=n_threads)),
            on_epoch=lambda epoch: seen.append((epoch, time.perf_counter())),
        )  # fmt: skip
    if row["status"] != "completed":
        raise RuntimeError(row["error"])
    (_, first_at), (second, second_at), _ = seen
    files_s = (
        second_at - first_at - second.train_s - second.validation_s
    )  # checkpoint and row of the second epoch
    return second.n_images / second.train_s, second.validation_s / row["n_validation"], files_s


def main(words: Sequence[str] | None = None) -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="image folder; left out: castings are drawn")
    parser.add_argument("--images", type=int, default=320, help="images to train and validate on")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the bare step")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 4])
    parser.add_argument("--px", type=int, help="one size for both networks, to try the script")
    args = parser.parse_args(words)
    n_threads = machine.cpus()
    torch.set_num_threads(n_threads)
    rows: list[Sequence[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "castings"
        if args.data is None:
            synthetic.draw(data, n_images=args.images + 80, size_px=300)
        packed = pack.pack(data, Path(folder) / "packs")
        for backbone, px in SETTINGS:
            for batch in args.batch:
                config = TrialConfig(
                    backbone=backbone, image_px=args.px or px, batch_size=batch,
                    toggles=tuple(TOGGLES), train_images=args.images, test_images=32,
                )  # fmt: skip
                config = replace(config, precision=resolve(config, "cpu"))
                turns = [
                    (
                        bare_step(config, seconds=args.seconds),
                        *whole_epoch(config, packed, n_threads),
                    )
                    for _ in range(args.repeats)
                ]
                bare, epoch, validation_s, files_s = (
                    list(values) for values in zip(*turns, strict=True)
                )
                beside = statistics.median(validation_s) * REAL[1] + statistics.median(files_s)
                share = beside / (REAL[0] / statistics.median(epoch))
                rows.append((
                    backbone, config.image_px, batch, config.precision, figures.spread(bare, 0),
                    figures.spread(epoch, 0), figures.ratios(epoch, bare, 2), f"{share:.1%}",
                    f"{statistics.median(files_s) / (REAL[0] / statistics.median(epoch)):.2%}",
                ))  # fmt: skip
    header = (
        "network", "px", "batch", "precision", "bare step, images/s", "whole epoch, images/s",
        "share of the bare step", "validation, checkpoint and rows, of a real epoch",
        "without validation's own forward passes",
    )  # fmt: skip
    caption = f"{args.repeats} turns, {args.images} images, all nine toggles, {n_threads} threads. "
    aim = " Aimed at: 0.95 at batch 32, 0.90 at batch 4; 3 %."
    conditions = figures.conditions("torch", "timm", "kornia")
    text = f"{figures.table(header, rows)}\n\n{caption}{conditions}{aim}"
    figures.publish("training", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
