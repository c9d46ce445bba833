"""How long the first things take: `python -m tests.benchmarks.cold --data DIR`.

Packing all images from nothing, the files in the system's cache (and how fast they decode on one
thread), opening the pack again, `--help`, `--plan` of 330 cells with the pack there, and the time
from the command to the first training step of a small network, by the trial's own row. Each in a
fresh process, --repeats times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from casting_tune import machine
from casting_tune.data import synthetic
from casting_tune.store.store import Store
from tests.benchmarks import figures

PACK = """
import sys, time
from pathlib import Path
from casting_tune.data import pack
started = time.perf_counter()
packed = pack.pack(Path(sys.argv[1]), Path(sys.argv[2]))
print(time.perf_counter() - started, packed.dataset_id, len(packed.labels))
"""
OPEN = """
import sys, time
from pathlib import Path
from casting_tune.data import pack
started = time.perf_counter()
packed = pack.open_pack(Path(sys.argv[1]))
packed.images[-1, -1, -1]
print(time.perf_counter() - started)
"""
SMALL = """
question = "How soon does it train?"
type = "grid"
[fixed]
backbone = "timm:resnet10t"
weights = "none"
image_px = 32
batch_size = 64
epochs = 1
train_images = 320
test_images = 80
[axes]
seed = [0]
"""


def timed(words: Sequence[str]) -> tuple[float, str]:
    """Return the seconds of a command and what it printed."""
    started = time.perf_counter()
    ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return time.perf_counter() - started, ended.stdout


def first_step(python: str, data: Path, results: Path, folder: Path) -> float:
    """Return the seconds from the command to the start of the first step.

    These are the seconds to the end of the only epoch, minus those of the epoch.
    """
    file = folder / "first_step.toml"
    file.write_text(SMALL)
    begun = datetime.now(UTC)
    more = [
        "--data",
        str(data),
        "--results",
        str(results),
        "--no-baselines",
        "--trials-at-once",
        "1",
    ]
    timed([python, "-m", "casting_tune.sweep", str(file), *more])
    (epoch,) = Store(results).read("epochs").to_pylist()
    taken = (epoch["ended_at"] - begun).total_seconds()
    return float(taken - epoch["train_s"] - epoch["validation_s"])


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = figures.parser(__doc__, repeats=5)
    parser.add_argument("--data", type=Path, help="image folder; left out: castings are drawn")
    args = parser.parse_args(words)
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "castings"
        if args.data is None:
            synthetic.draw(data, n_images=100, size_px=300)
        python = sys.executable
        command = str(Path(python).with_name("casting-tune"))
        for turn in range(args.repeats):
            results = Path(folder) / f"results{turn}"
            seconds, dataset, n_images = timed(
                [python, "-c", PACK, str(data), str(results / "packs")]
            )[1].split()
            measured.setdefault(f"{int(n_images):,} images to a pack", []).append(float(seconds))
            opened = timed([python, "-c", OPEN, str(results / "packs" / dataset)])[1]
            measured.setdefault("a pack opened again", []).append(float(opened))
            measured.setdefault("casting-tune --help", []).append(timed([command, "--help"])[0])
            plan = [
                python,
                "-m",
                "casting_tune.sweep",
                "full_factorial",
                "--plan",
                "--no-baselines",
            ]
            planned = timed([*plan, "--data", str(data), "--results", str(results)])
            measured.setdefault("--plan of 330 cells", []).append(planned[0])
            began = first_step(python, data, results, Path(folder))
            measured.setdefault("command to first training step", []).append(began)
    aims = ["2 s", "0.05 s", "0.5 s", "1 s", "8 s"]
    rows = [
        (name, figures.spread(seconds, 3), aim)
        for (name, seconds), aim in zip(measured.items(), aims, strict=True)
    ]
    caption = f"{args.repeats} fresh processes each, the images' files in the system's cache, "
    caption += f"{machine.cpus()} threads. {figures.conditions('torch', 'pillow', 'ray')}"
    text = (
        f"{figures.table(('what', 's: median (min to max)', 'aimed at, under'), rows)}\n\n{caption}"
    )
    figures.publish("cold", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
