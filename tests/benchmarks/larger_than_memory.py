"""Measures training on a set three times larger than the memory limit of the process.

Run `python -m tests.benchmarks.larger_than_memory [--images 10000] [--size 512] [--px 32]`.

Drawn images are packed by a process of their own. Then each way trains one network in a process of
its own, in turn: all images on the device without a limit, and batches read from disk by a process
whose memory is limited to a third of the pack (`--max-memory` of a sweep does the same). Before
each run the pack is dropped from the system's cache, so its first reads come from the disk. Scores
must be equal bit for bit. Peaks are resident memory, with the libraries: these take more than half
of a GiB, so a limit below 0.7 GiB leaves no space for a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import figures

ROOT = Path(__file__).parent.parent.parent
GIB, MIB = 2**30, 2**20
N_DRAWN = 40


def draw(folder: Path, *, n_images: int, size_px: int) -> None:
    """Draw castings, and write each of them many times: shifted, so that no two are equal."""
    from PIL import Image

    from casting_tune.data import synthetic

    kinds = (None, "blow_hole")
    drawn = [
        synthetic.casting(np.random.default_rng(i), size_px=size_px, defect=kinds[i % 2])
        for i in range(N_DRAWN)
    ]
    for i in range(n_images):
        split = "test" if i % 10 < 2 else "train"
        of_class = folder / split / ("def_front" if i % 2 else "ok_front")
        of_class.mkdir(parents=True, exist_ok=True)
        turns, shift = divmod(i // N_DRAWN, size_px)
        pixels = np.roll(np.rot90(drawn[i % N_DRAWN], turns), shift, axis=1)
        Image.fromarray(np.ascontiguousarray(pixels)).save(of_class / f"{i:06}.bmp")


def child_pack(folder: Path) -> dict[str, Any]:
    """Pack the drawn images in this process; return the id and this process's peak."""
    import torch

    from casting_tune.data import pack
    from casting_tune.training import memory

    cpu = torch.device("cpu")
    memory.reset_peak(cpu)
    packed = pack.pack(folder / "castings", folder / "packs")
    return {"dataset_id": packed.dataset_id, "peak_bytes": memory.peak(cpu)}


def child_train(folder: Path, dataset_id: str, px: int, limit_bytes: int) -> dict[str, Any]:
    """Train in this process; a limit of 0 is none, and all images are on the device."""
    from casting_tune.config import Allowance, Epoch, TrialConfig
    from casting_tune.data import pack
    from casting_tune.store.store import Store
    from casting_tune.toggles import TOGGLES
    from casting_tune.training import trial
    from casting_tune.training.records import Place, TrialContext

    packed = pack.open_pack(folder / "packs" / dataset_id)
    file = folder / "packs" / dataset_id / "castings.npy"
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    allowance = (
        Allowance(memory_bytes=limit_bytes, images_bytes=0)
        if limit_bytes
        else Allowance(images_bytes=2**62)
    )
    config = TrialConfig(
        backbone="timm:test_resnet.r160_in1k", image_px=px, batch_size=32, epochs=2,
        precision="fp32", toggles=tuple(TOGGLES),
    )  # fmt: skip
    epochs: list[Epoch] = []
    held: list[int] = []

    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        held.append(resident_bytes())

    with tempfile.TemporaryDirectory() as results:
        row = trial.run_trial(
            config, packed, Store(Path(results)),
            context=TrialContext(
                sweep="bench", label="bench", place=Place(), allowance=allowance
            ),
            on_epoch=on_epoch,
        )  # fmt: skip
        scores = Store(Path(results)).read("predictions")["score"].to_numpy()
    if row["status"] != "completed":
        raise RuntimeError(row["error"])
    return {
        "images_from": row["images_from"],
        "images_s": [epoch.n_images / epoch.train_s for epoch in epochs],
        "peak_bytes": row["peak_memory_bytes"],
        "grown_bytes": held[-1] - held[0],
        "scores": hashlib.sha256(scores.tobytes()).hexdigest(),
    }


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def child(*words: object) -> dict[str, Any]:
    """Run a function of this module in a process of its own, and return its result."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.larger_than_memory", "--child", json.dumps(words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def measure(
    *, n_images: int, size_px: int, px: int, repeats: int, limit_gib: float | None
) -> dict[str, Any]:
    """Return the pack's bytes, the limit, the packing and the runs of both ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "castings", n_images=n_images, size_px=size_px)
        packing = child("pack", name)
        pack_bytes = n_images * size_px**2
        limit = int(limit_gib * GIB) if limit_gib else pack_bytes // 3
        runs: dict[str, list[dict[str, Any]]] = {"device": [], "disk": []}
        for _ in range(repeats):
            for way, of_way in runs.items():
                given = limit if way == "disk" else 0
                of_way.append(child("train", name, packing["dataset_id"], px, given))
    same = {run["scores"] for of_way in runs.values() for run in of_way}
    if len(same) != 1:
        raise RuntimeError("the ways give different scores")
    return {"pack_bytes": pack_bytes, "limit_bytes": limit, "packing": packing, "runs": runs}


def main(words: Sequence[str] | None = None) -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512, help="side of the packed images")
    parser.add_argument("--px", type=int, default=32, help="side of the network's input")
    parser.add_argument(
        "--limit-gib", type=float, help="memory limit; left out: a third of the pack"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.child:
        kind, folder, *more = json.loads(args.child)
        result = {"pack": child_pack, "train": child_train}[kind](Path(folder), *more)
        print(json.dumps(result))
        return
    found = measure(
        n_images=args.images, size_px=args.size, px=args.px, repeats=args.repeats,
        limit_gib=args.limit_gib,
    )  # fmt: skip
    rows = []
    for way, runs in found["runs"].items():
        limit = "" if way == "device" else f"{found['limit_bytes'] / GIB:.2f}"
        first, second = ([run["images_s"][epoch] for run in runs] for epoch in (0, 1))
        rows.append((
            way, f"{found['pack_bytes'] / GIB:.2f}", limit, figures.spread(first, 0),
            figures.spread(second, 0),
            figures.spread((run["peak_bytes"] / GIB for run in runs), 2),
            figures.spread((run["grown_bytes"] / MIB for run in runs), 0),
        ))  # fmt: skip
    header = (
        "images from", "pack, GiB", "memory limit, GiB", "first epoch, images/s",
        "second epoch, images/s", "peak memory, GiB", "MiB more after the second epoch",
    )  # fmt: skip
    caption = (
        f"{args.images} images of {args.size} px, trained at {args.px} px, batch 32, one "
        f"thread, all nine toggles, {args.repeats} turns. Scores of all runs are equal. The "
        "process that "
        f"packed the images had a peak of {found['packing']['peak_bytes'] / GIB:.2f} GiB. "
    )
    text = (
        f"{figures.table(header, rows)}\n\n{caption}{figures.conditions('torch', 'timm', 'kornia')}"
    )
    figures.publish("larger_than_memory", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
