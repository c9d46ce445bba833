"""Is latency measured as it should be, and what does it cost a trial?

`python -m tests.benchmarks.evaluation`.

`train.latency` (a warm-up, then the median of passes whose scores are read back) beside torch's own
`benchmark.Timer.blocked_autorange` of the same forward pass, for one image and for 32; and the
share of a trial of the real set (5,307 images, 10 epochs) that test predictions and latency take
together, after training, from the seconds measured here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.benchmark import Timer

from casting_tune import machine
from casting_tune.config import TrialConfig
from casting_tune.models import build
from casting_tune.training import loop
from casting_tune.training.precision import resolve
from tests.benchmarks import figures, training

N_TEST, N_VALIDATION, EPOCHS = 715, 1326, 10


def main(words: Sequence[str] | None = None) -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--px", type=int, help="one size for both networks, to try the script")
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args(words)
    torch.set_num_threads(machine.cpus())
    rows: list[Sequence[Any]] = []
    for backbone, px in training.SETTINGS:
        config = TrialConfig(backbone=backbone, image_px=args.px or px, batch_size=32)
        config = replace(config, precision=resolve(config, "cpu"))
        precision = resolve(config, "cpu")
        model = build.model(backbone, weights="none", dense=0, dropout=0, in_channels=3, seed=0)
        model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        images = torch.rand(32, 3, config.image_px, config.image_px).contiguous(
            memory_format=torch.channels_last
        )
        step_s = config.batch_size / training.bare_step(config, seconds=args.seconds)
        for n in (1, 32):
            ours, theirs, cost = [], [], []
            for _ in range(args.repeats):
                began = time.perf_counter()
                ours.append(loop.latency(model, images[:n], precision=precision) * 1e3)
                cost.append(time.perf_counter() - began)
                timer = Timer(
                    "predict(model, [(x, x)], precision=precision)",
                    globals={
                        "predict": loop.predict,
                        "model": model,
                        "x": images[:n],
                        "precision": precision,
                    },
                    num_threads=torch.get_num_threads(),
                )
                theirs.append(timer.blocked_autorange(min_run_time=args.seconds / 2).median * 1e3)
            trial_s = training.REAL[0] / config.batch_size * step_s * EPOCHS
            predicted_s = N_TEST * sorted(ours)[len(ours) // 2] / 1e3 / n if n == 32 else 0.0
            share = (max(cost) + predicted_s) / trial_s
            rows.append((
                backbone, config.image_px, precision, n, figures.spread(ours, 1),
                figures.spread(theirs, 1), figures.ratios(ours, theirs, 2), f"{share:.2%}",
            ))  # fmt: skip
    header = (
        "network",
        "px",
        "precision",
        "images",
        "latency, ms",
        "torch's Timer, ms",
        "ratio",
        "of a trial's time",
    )
    caption = (
        f"{args.repeats} turns, {machine.cpus()} threads; "
        f"the trial is {EPOCHS} epochs of 5,307 images. "
    )
    text = f"{figures.table(header, rows)}\n\n{caption}{figures.conditions('torch', 'timm')}"
    figures.publish("evaluation", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
