"""Measures which precision and layout suit a backbone on this CPU.

Run `python -m tests.benchmarks.precision [--px 96]`.

Training steps in fp32 and bf16, channels last and contiguous, in turn, one thread: the evidence
behind `precision.gains` and the default layout. What a sweep uses is settled from that table, never
by a probe: a cell's key must not change with a machine's noise. Then two trials at once on a thread
each against one on two threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from casting_tune.config import TrialConfig
from casting_tune.execution import ray_cluster
from casting_tune.models import registry
from casting_tune.training.precision import TIMM_CPU_BF16, gains
from tests.benchmarks import figures, training

CASES: tuple[tuple[Literal["fp32", "bf16"], Literal["channels_last", "contiguous"]], ...] = (
    ("fp32", "channels_last"), ("bf16", "channels_last"), ("fp32", "contiguous"),
    ("bf16", "contiguous"),
)  # fmt: skip
ALONE = """
import sys, torch
from casting_tune.training.precision import gains
from casting_tune.config import TrialConfig
from tests.benchmarks import training
torch.set_num_threads(int(sys.argv[1]))
px, batch = int(sys.argv[3]), int(sys.argv[4])
config = TrialConfig(backbone=sys.argv[2], image_px=px, batch_size=batch, precision="fp32")
print(training.bare_step(config, seconds=float(sys.argv[5])))
"""


def at_once(
    n: int,
    *,
    n_threads: int,
    px: int,
    seconds: float,
    backbone: str = "timm:resnet18",
    batch: int = 32,
    spins: str = ray_cluster.SPINS,
) -> float:
    """Return the images a second of `n` processes together, each with `n_threads`.

    `spins` = "" leaves the waiting of threads to GNU OpenMP.
    """
    words = [
        sys.executable,
        "-c",
        ALONE,
        str(n_threads),
        backbone,
        str(px),
        str(batch),
        str(seconds),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"GOMP_SPINCOUNT": spins} if spins else {}
    started = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(n)
    ]
    return sum(float(process.communicate(timeout=600)[0]) for process in started)


def main(words: Sequence[str] | None = None) -> None:
    """Measure in turn and print two tables."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument(
        "--backbones", nargs="+", default=[*registry.BACKBONES, *sorted(TIMM_CPU_BF16)]
    )
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    rows: list[Sequence[Any]] = []
    for name in args.backbones:
        rates: dict[Any, list[float]] = {case: [] for case in CASES}
        config = TrialConfig(backbone=name, image_px=args.px, batch_size=args.batch)
        for _ in range(args.repeats):
            for precision, layout in CASES:
                case = replace(config, precision=precision, layout=layout)
                rates[precision, layout].append(training.bare_step(case, seconds=args.seconds))
        base = rates[CASES[0]]
        used = "bf16" if gains(name) else "fp32"
        rows.append(
            (
                name,
                figures.spread(base, 1),
                *(figures.ratios(rates[case], base, 2) for case in CASES[1:]),
                used,
            )
        )
    header = (
        "backbone",
        "fp32, channels last, images/s",
        "times in bf16",
        "fp32, contiguous",
        "bf16, contiguous",
        "auto",
    )
    sides = {(1, 2): [], (2, 1): [], (2, 2): []}  # type: dict[tuple[int, int], list[float]]
    for _ in range(args.repeats):
        for (n, n_threads), rates_of in sides.items():
            rates_of.append(at_once(n, n_threads=n_threads, px=128, seconds=args.seconds * 3))
    alone = sides[1, 2]
    columns = ("trials at once", "threads each", "images/s together", "times one on two threads")
    threads = figures.table(columns, [
        (n, n_threads, figures.spread(rates_of, 0), figures.ratios(rates_of, alone, 2))
        for (n, n_threads), rates_of in sides.items()
    ])  # fmt: skip
    caption = (
        f"Training steps at {args.px} px, batch {args.batch}, one thread, {args.repeats} turns; "
    )
    caption += f"below it resnet18, 128 px, batch 32, fp32. {figures.conditions('torch', 'timm')}"
    text = f"{figures.table(header, rows)}\n\n{threads}\n\n{caption}"
    figures.publish("precision", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
