"""Measures the images a second up to the network.

Run `python -m tests.benchmarks.input_pipeline --data DIR [--px 224 512] [--batch 4]`.

All nine toggles on; files in, batches of normalised floats out. Ours (pack, loader, augmentation,
normalisation) against Keras' ImageDataGenerator (which the study used), torchvision v2,
albumentations (also given our ideas: gray, no hue) and one kornia module a toggle; two workers or
two threads each. Every side lives in a process of its own (tests/benchmarks/peers.py); they are
asked in turn, --repeats times. Ratios are ours over the peer's in the same turn.

Keras needs Python with keras and tensorflow-cpu: --keras-python; albumentations (MIT, below 2.1)
one with it, torch and torchvision: --peers-python. Without these an environment is made in a
temporary folder; where that fails the side is left out and the table says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casting_tune.data import pack, synthetic
from casting_tune.execution import ray_cluster
from tests.benchmarks import figures

NAMES = {
    "keras": "Keras ImageDataGenerator",
    "torchvision": "torchvision v2 + DataLoader",
    "albumentations": "albumentations + DataLoader",
    "albumentations_gray": "albumentations, gray, no hue",
    "kornia": "kornia, a module a toggle",
}
TARGETS = {
    "keras": 15,
    "torchvision": 12,
    "albumentations": 5,
    "albumentations_gray": 1.5,
    "kornia": 20,
}  # at batch 4


def environment(
    folder: Path, packages: tuple[str, ...], *, shared: bool
) -> tuple[Path | None, str]:
    """Make an environment; return its Python, or None and why not.

    `shared`: it sees this one's packages (torch).
    """
    python = folder / "bin" / "python"
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", str(folder)],
            check=True,
            capture_output=True,
            timeout=120,
        )
        if shared:
            inside = next(folder.glob("lib/python*/site-packages"))
            (inside / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [str(python), "-m", "pip", "install", "-q", *packages]
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        sentence = getattr(error, "stderr", "") or str(error)
        return (
            None,
            f"no environment with {packages[0]}: {str(sentence).strip().splitlines()[-1][:120]}",
        )
    return python, ""


class Side:
    """A process that measures one side when it is asked."""

    def __init__(self, side: str, python: Path, data: Path) -> None:
        self.why, words = (
            "",
            [str(python), str(Path(__file__).with_name("peers.py")), side, "--data", str(data)],
        )
        more = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if side == "ours":
            more |= {
                "GLIBC_TUNABLES": ray_cluster.MALLOC,
                "GOMP_SPINCOUNT": ray_cluster.SPINS,
            }  # as our workers have it
            root = str(Path(__file__).parent.parent.parent)
            more["PYTHONPATH"] = os.pathsep.join(
                filter(None, [root, os.environ.get("PYTHONPATH", "")])
            )
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | more,
        )

    def ask(self, **wish: Any) -> float | None:
        """Return images a second, or None with the reason in `why`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(wish) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        report = json.loads(line) if line else {"error": "its process ended"}
        self.why = report.get("error", "")
        return report.get("images_s")

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


@contextlib.contextmanager
def sides(args: Any, data: Path, packed: Path) -> Iterator[tuple[dict[str, Side], dict[str, str]]]:
    """Start every side that can be; yield them, and why others are missing."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        pythons: dict[str, tuple[Path | None, str]] = {"kornia": (Path(sys.executable), "")}
        pythons["torchvision"] = pythons["kornia"]
        if "keras" in args.sides:
            wanted = ("keras", "tensorflow-cpu", "scipy", "pillow")
            made = (
                environment(Path(scratch) / "keras", wanted, shared=False)
                if not args.keras_python
                else None
            )
            pythons["keras"] = made or (args.keras_python, "")
        if {"albumentations", "albumentations_gray"} & set(args.sides):
            wanted = ("albumentations>=2,<2.1",)
            made = (
                environment(Path(scratch) / "peers", wanted, shared=True)
                if not args.peers_python
                else None
            )
            pythons["albumentations"] = pythons["albumentations_gray"] = made or (
                args.peers_python,
                "",
            )
        started = {"ours": Side("ours", Path(sys.executable), packed)}
        missing = {}
        for side in args.sides:
            python, why = pythons[side]
            if python is None or not Path(python).exists():
                missing[side] = why or f"there is no {python}"
            else:
                started[side] = Side(side, python, data)
        for side in started.values():
            stack.callback(side.close)
        yield started, missing


def main() -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="image folder; left out: castings are drawn")
    parser.add_argument("--px", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8, 64])
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="of a measurement, after half of that as a warm-up",
    )
    parser.add_argument("--sides", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--keras-python", type=Path)
    parser.add_argument("--peers-python", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data
        if data is None:
            data = Path(folder) / "castings"
            synthetic.draw(data, n_images=200, size_px=300)
        began = time.perf_counter()
        packed = pack.pack(data, Path(folder) / "packs")
        pack_s = time.perf_counter() - began
        n_train = int((packed.splits == "train").sum())
        measured: dict[tuple[int, int], dict[str, list[float]]] = {}
        with sides(args, data, Path(folder) / "packs" / packed.dataset_id) as (started, missing):
            for px in args.px:
                for batch in args.batch:
                    of_setting = measured.setdefault((px, batch), {side: [] for side in started})
                    for _ in range(args.repeats):
                        for name, side in started.items():
                            rate = side.ask(px=px, batch=batch, seconds=args.seconds)
                            if rate is None:
                                missing[name] = side.why
                            else:
                                of_setting[name].append(rate)
    rows = [
        _row(px, batch, of_setting, pack_s / n_train)
        for (px, batch), of_setting in measured.items()
    ]
    header = [
        "px",
        "batch",
        "images/s: median (min to max)",
        "with the pack's one-off time, 1 and 10 epochs",
    ]
    text = figures.table([*header, *(f"times {NAMES[side]}" for side in args.sides)], [
        [*row[:4], *(row[4].get(side, "") for side in args.sides)] for row in rows
    ])  # fmt: skip
    notes = [f"All nine toggles, {args.repeats} turns of {args.seconds:g} s a side; "
             f"packing {len(packed.labels)} images took {pack_s:.1f} s, once.",
             figures.conditions("torch", "torchvision", "kornia")]  # fmt: skip
    targets = ", ".join(f"{TARGETS[side]:g} x {NAMES[side]}" for side in args.sides)
    notes.append(f"Aimed at, at batch 4: {targets}." if targets else "")
    notes += [f"Left out: {NAMES.get(side, side)} ({why})." for side, why in missing.items()]
    figures.publish(
        "input_pipeline",
        text + "\n\n" + " ".join(filter(None, notes)),
        write_docs=args.write_docs,
    )


def _row(
    px: int, batch: int, rates: dict[str, list[float]], pack_image_s: float
) -> tuple[Any, ...]:
    ours = rates["ours"]
    times = {
        side: figures.ratios(ours, theirs)
        for side, theirs in rates.items()
        if side != "ours" and len(theirs) == len(ours)
    }
    middle = sorted(ours)[len(ours) // 2]
    whole = " and ".join(f"{1 / (1 / middle + pack_image_s / epochs):,.0f}" for epochs in (1, 10))
    return px, batch, figures.spread(ours, 0), whole, times


if __name__ == "__main__":
    main()
