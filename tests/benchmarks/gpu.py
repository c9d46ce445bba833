"""Measures a GPU: `python -m tests.benchmarks.gpu [--parts PART ...] [--data DIR]`.

The parts are networks, peers, together and trial.

networks: training steps of each backbone, launched kernel by kernel and recorded
(`casting_tune.training.cuda_graph`), on a batch that lies there and with everything that a trial
does to make one; seconds an epoch of the real set (5,307 images) beside the study's, both worked
out from images a second. peers: EfficientNetB4 at batch size 4 as a user would write it instead.
together: several processes of it on one GPU. trial: a trial of one epoch on --data, as its own row
tells it.

Each figure is the median of some runs of steps, the host waiting once at the end of each, after
steps that warm up.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from casting_tune.config import TrialConfig
from casting_tune.data import pack, synthetic
from casting_tune.data.batches import shuffle, slices
from casting_tune.models import build, registry
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES
from casting_tune.training import cuda_graph, loop, memory
from casting_tune.training.inputs import Images, memory_format, normaliser, training_batches
from casting_tune.training.precision import resolve
from casting_tune.training.records import Place, TrialContext
from casting_tune.training.trial import run_trial
from tests.benchmarks import figures

REAL, NATIVE_PX, N_IMAGES = 5307, 300, 512
STUDY_STEPS = {
    2: 1327,
    4: 331,
    8: 83,
}  # the study's "epochs": a half, a quarter, an eighth of the images
MODES = ("as written", "recorded")
CHILD = """
import sys
from tests.benchmarks import gpu
gpu.child(sys.argv[1], sys.argv[2], px=int(sys.argv[3]), seconds=float(sys.argv[4]))
"""


def configure(backbone: str, batch: int, px: int, device: Literal["cpu", "cuda"]) -> TrialConfig:
    """Return a cell as in the study: three channels, all nine toggles, no pretrained weights."""
    px = min(px, 224) if backbone == "nasnet_mobile" else px  # the study's size of it
    config = TrialConfig(backbone=backbone, image_px=px, batch_size=batch, toggles=tuple(TOGGLES))
    return replace(config, precision=resolve(config, device))


def build_model(config: TrialConfig, device: torch.device) -> torch.nn.Module:
    """Return the network of a cell on the device."""
    made = build.model(config.backbone, weights="none", dense=0, dropout=0, in_channels=3, seed=0)
    layout: Any = memory_format(config)
    placed: torch.nn.Module = made.to(device, memory_format=layout)
    return placed


def launcher(mode: str, device: torch.device) -> Callable[[loop.Step], loop.Step]:
    """Return how steps are launched; on a CPU, where the script is only tried, there is one way."""
    return cuda_graph.Recorder() if mode == "recorded" and device.type == "cuda" else loop.by_kernel


def bare(config: TrialConfig, device: torch.device) -> tuple[Any, Any]:
    """Return batches and `make` of one batch that lies on the device."""
    inputs = torch.rand(config.batch_size, 3, config.image_px, config.image_px, device=device)
    inputs = inputs.contiguous(memory_format=memory_format(config))
    y_true = (torch.arange(config.batch_size, device=device) % 2).float()
    rows = torch.arange(config.batch_size, device=device)
    return lambda _: itertools.repeat((rows,)), lambda _: (inputs, y_true)


def whole(config: TrialConfig, device: torch.device) -> tuple[Any, Any]:
    """Return the batches and `make` of a trial, from uint8 on the device.

    They include the order, the draws, all toggles and normalisation.
    """
    stream = torch.Generator().manual_seed(0)
    side = min(NATIVE_PX, config.image_px)
    pixels = torch.randint(
        0, 256, (N_IMAGES, 1, side, side), dtype=torch.uint8, generator=stream
    ).to(device)
    y_true = (torch.arange(N_IMAGES, device=device) % 2).float()
    batches, make = training_batches(
        config,
        Images(y_true=y_true, pixels=pixels, rows=np.arange(N_IMAGES)),
        normaliser(config, device),
    )
    return lambda epoch: itertools.chain.from_iterable(
        map(batches, itertools.count(epoch * 1000))
    ), make


def rates(
    config: TrialConfig,
    model: torch.nn.Module,
    fed: tuple[Any, Any],
    launch: Callable[[loop.Step], loop.Step],
    *,
    seconds: float,
) -> Iterator[float]:
    """Yield the images a second of training steps, without end.

    Each value is of a run of about `seconds`; the first run is warm already.
    """
    batches, make = fed
    recipe = loop.Recipe(
        base_lr=1e-4, batch_size=config.batch_size, weight_decay=0.01, warmup_share=0.0,
        lr_schedule="constant", epochs=10**6, n_steps=1,
        precision="bf16" if config.precision == "bf16" else "fp32",
    )  # fmt: skip
    n_steps = [5]
    inputs = torch.zeros(
        2, 3, config.image_px, config.image_px, device=next(model.parameters()).device
    )
    validation = [(inputs, inputs[:, 0, 0, 0])]
    feed = loop.Feed(
        batches=lambda epoch: itertools.islice(batches(epoch), n_steps[0]),
        validation=lambda: validation,
        make=make,
        launch=launch,
    )
    for epoch in loop.fit(model, loop.make_optimiser(model, recipe), recipe, feed):
        if epoch.epoch == 2:
            n_steps[0] = max(4, round(5 * seconds / epoch.train_s))
        elif epoch.epoch > 2:
            yield epoch.n_images / epoch.train_s


def ours(
    args: Any, model: torch.nn.Module, config: TrialConfig, kind: str, mode: str
) -> list[float]:
    """Return images a second of our steps, `kind` bare or whole, `mode` one of MODES."""
    device = torch.device(args.device)
    fed = bare(config, device) if kind == "bare" else whole(config, device)
    return some(
        rates(config, model, fed, launcher(mode, device), seconds=args.seconds), args.repeats
    )


def some(found: Iterator[float], n: int) -> list[float]:
    """Return the first n of what is found and end it."""
    values = list(itertools.islice(found, n))
    found.close()  # type: ignore[attr-defined]
    return values


def study_s(config: TrialConfig) -> float | None:
    """Return the study's seconds for 5,307 images of a network and batch size.

    They are computed from the study's own epoch time and number of images.
    """
    parts = tomllib.loads(
        (figures.ROOT / "sweeps" / "backbone_grid.toml").read_text(encoding="utf-8")
    )["study"]
    batch = config.batch_size
    for part in parts:
        if (
            part["part"] == 4
            and part["match"]["batch_size"] == batch
            and config.backbone in part["rows"]
        ):
            return float(part["rows"][config.backbone][0]) / (STUDY_STEPS[batch] * batch) * REAL
    return None


def networks(args: Any) -> str:
    """Return the table of networks; what is known of it is in --out after each of them."""
    device = torch.device(args.device)
    header = (
        "network", "px", "batch", "whole step recorded, images/s", "of the bare step",
        "times as written", "s for 5,307 images", "the study's", "GiB",
        "bare step in bf16, channels last", "times fp32", "times contiguous",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    for name, batch in [(name, 4) for name in args.backbones] + [
        ("efficientnetb4", n) for n in args.b4
    ]:
        config = configure(name, batch, args.px, args.device)
        model = build_model(config, device)
        memory.reset_peak(device)
        recorded = ours(args, model, config, "whole", "recorded")
        peak = memory.peak(device) or 0
        written = ours(args, model, config, "whole", "as written")
        alone = ours(args, model, config, "bare", "recorded")
        others = ["", ""]
        if batch == 4:
            others[0] = figures.ratios(
                alone, ours(args, model, replace(config, precision="fp32"), "bare", "recorded")
            )
            config = replace(config, layout="contiguous")
            others[1] = figures.ratios(
                alone, ours(args, build_model(config, device), config, "bare", "recorded")
            )
        study = study_s(config)
        rows.append((
            name, config.image_px, batch, figures.spread(recorded, 0),
            figures.ratios(recorded, alone, 2), figures.ratios(recorded, written, 1),
            figures.spread((REAL / rate for rate in recorded), 1),
            "" if study is None else f"{study:.0f}", f"{peak / 2**30:.1f}",
            figures.spread(alone, 0), *others,
        ))  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
        if args.out:
            (args.out / "gpu_networks.md").write_text(figures.table(header, rows), encoding="utf-8")
    return figures.table(header, rows)


def in_a_loop(
    args: Any,
    steps: Iterator[tuple[torch.Tensor, torch.Tensor]],
    *,
    bf16: bool,
    channels_last: bool,
) -> Iterator[float]:
    """Yield the images a second of an ordinary PyTorch loop.

    The batches are [b, 3, px, px], in 0..1 or normalised.
    """
    device = torch.device(args.device)
    config = configure("efficientnetb4", 4, args.px, args.device)
    model = build_model(
        replace(config, layout="channels_last" if channels_last else "contiguous"), device
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def taken() -> Iterator[int]:
        for images, y_true in steps:
            inputs = images.to(device, non_blocking=True)
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(inputs)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits.float(), y_true.float().to(device, non_blocking=True)
            )
            loss.backward()
            optimiser.step()
            yield len(inputs)

    counted, n_steps = taken(), 10
    for turn in itertools.count():
        spent, n = timed(counted, n_steps, device)
        if turn == 1:
            n_steps = max(10, round(n_steps * args.seconds / spent))
        elif turn > 1:
            yield n / spent


def timed(counted: Iterator[int], n_steps: int, device: torch.device) -> tuple[float, int]:
    """Return seconds and images of so many steps, the device awaited at the end."""
    import time

    started = time.perf_counter()
    n = sum(itertools.islice(counted, n_steps))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, n


def loaded(data: Path, px: int, n_workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of 4 from torchvision's ImageFolder, v2 transforms and DataLoader, for ever."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from tests.benchmarks import peers

    steps = v2.Compose([
        v2.ToImage(), v2.Resize((px, px)),
        v2.RandomAffine(
            peers.ROTATION, translate=(peers.SHIFT, peers.SHIFT), scale=peers.ZOOM,
            shear=(-peers.SHEAR, peers.SHEAR), interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=peers.BRIGHTNESS, contrast=peers.CONTRAST, hue=peers.HUE),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(peers.MEAN, peers.STD),
    ])  # fmt: skip
    images = DataLoader(
        ImageFolder(str(data / "train"), transform=steps), 4, shuffle=True, drop_last=True,
        num_workers=n_workers, persistent_workers=True, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    while True:
        yield from images


def one_module_each(px: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of 4 from uint8 RGB on the device, without end: one kornia module a toggle."""
    import kornia.augmentation as K  # noqa: N812
    from torch.nn.functional import interpolate

    from tests.benchmarks import peers

    pixels = torch.randint(
        0, 256, (N_IMAGES, 3, NATIVE_PX, NATIVE_PX), dtype=torch.uint8, device=device
    )
    shift, zoom, shear = (peers.SHIFT, peers.SHIFT), peers.ZOOM, (-peers.SHEAR, peers.SHEAR)
    steps = torch.nn.Sequential(
        K.RandomAffine(0, translate=shift, p=1), K.RandomRotation(peers.ROTATION, p=1),
        K.RandomShear(shear, p=1), K.RandomAffine(0, scale=zoom, p=1), K.RandomHorizontalFlip(),
        K.RandomVerticalFlip(), K.ColorJitter(brightness=peers.BRIGHTNESS, p=1),
        K.RandomHue((-peers.HUE, peers.HUE), p=1), K.ColorJitter(contrast=peers.CONTRAST, p=1),
        K.Normalize(
            torch.tensor(peers.MEAN, device=device),
            torch.tensor(peers.STD, device=device),
        ),
    )  # fmt: skip
    y_true = torch.tensor([0.0, 1.0, 0.0, 1.0], device=device)
    for epoch in itertools.count():
        order = torch.from_numpy(shuffle(N_IMAGES, seed=0, epoch=epoch)).to(device)
        for part in slices(N_IMAGES, 4):
            yield steps(interpolate(pixels[order[part]] / 255, (px, px), mode="bilinear")), y_true


def peers_table(args: Any, data: Path) -> str:
    """Return the table of EfficientNetB4 at batch size 4 beside what a user would write instead."""
    device, n_workers = torch.device(args.device), args.workers
    config = configure("efficientnetb4", 4, args.px, args.device)
    recorded, written = (
        ours(args, build_model(config, device), config, "whole", mode)
        for mode in ("recorded", "as written")
    )
    sides = {"casting_tune, recorded": recorded, "casting_tune, kernel by kernel": written}
    for name, made, fast in (
        (
            "one kornia module a toggle on the GPU, bf16, channels last",
            lambda: one_module_each(args.px, device),
            True,
        ),
        (f"torchvision v2, DataLoader of {n_workers} workers, bf16, channels last",
         lambda: loaded(data, args.px, n_workers), True),
        (f"torchvision v2, DataLoader of {n_workers} workers, fp32, as its tutorial",
         lambda: loaded(data, args.px, n_workers), False),
    ):  # fmt: skip
        sides[name] = some(in_a_loop(args, made(), bf16=fast, channels_last=fast), args.repeats)
    rows = [
        (name, figures.spread(found, 0), figures.ratios(recorded, found, 1))
        for name, found in sides.items()
    ]
    return figures.table(("training EfficientNetB4, batch 4", "images/s", "recorded over it"), rows)


def child(backbone: str, mode: str, *, px: int, seconds: float) -> None:
    """Print when ready; then measure a run for each line of stdin and print its images a second."""
    config = configure(backbone, 4, px, "cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = rates(
        config,
        build_model(config, device),
        whole(config, device),
        launcher(mode, device),
        seconds=seconds,
    )
    next(found)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(next(found), flush=True)


def together(args: Any) -> str:
    """Return the table of several processes on one GPU; a waiting process holds only memory."""
    most = max(args.at_once)
    started: dict[tuple[str, str], list[subprocess.Popen[str]]] = {}
    rows: list[Sequence[Any]] = []
    try:
        for backbone, mode in itertools.product(args.shared, MODES):
            words = [
                sys.executable,
                "-c",
                CHILD,
                backbone,
                mode,
                str(args.px),
                str(args.seconds * 2),
            ]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started[backbone, mode] = [
                subprocess.Popen(words, text=True, **pipes) for _ in range(most)
            ]
        for process in itertools.chain(*started.values()):
            if _line(process) != "ready":
                raise RuntimeError("A process did not get ready.")
        for (backbone, mode), processes in started.items():
            found = {
                n: [_at_once(processes[:n]) for _ in range(args.repeats)] for n in args.at_once
            }
            alone = found[args.at_once[0]]
            rows += [
                (backbone, mode, n, figures.spread(values, 0), figures.ratios(values, alone, 2))
                for n, values in found.items()
            ]
    finally:
        for process in itertools.chain(*started.values()):
            process.communicate()
    return figures.table(
        ("network, batch 4", "steps", "processes", "images/s together", "times one"), rows
    )


def _at_once(processes: Sequence[subprocess.Popen[str]]) -> float:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(_line(process)) for process in processes)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def trial(args: Any, data: Path) -> str:
    """Return the table of a whole trial of one epoch on all images of a folder."""
    config = replace(configure("efficientnetb4", 4, args.px, args.device), epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        packed = pack.pack(data, Path(folder) / "packs")
        store = Store(Path(folder) / "results")
        place = Place(device=args.device, n_threads=4)
        row = run_trial(
            config, packed, store, context=TrialContext(sweep="bench", label="bench", place=place)
        )
        if row["status"] != "completed":
            raise RuntimeError(row["error"])
        (epoch,) = store.read("epochs").to_pylist()
    rows = [
        (
            "images trained on, validated on, tested",
            f"{row['n_train']:,}, {row['n_validation']:,}, {row['n_test']:,}",
        ),
        ("the epoch with its warm-up and recording, s", f"{epoch['train_s']:.1f}"),
        ("validation, s", f"{epoch['validation_s']:.2f}"),
        ("whole trial, s", f"{row['duration_s']:.1f}"),
        ("accuracy of the test images", f"{row['test_accuracy']:.2%}"),
        ("latency of 1 image, ms", f"{row['latency_one_s'] * 1e3:.1f}"),
        (
            f"latency of {row['latency_batch_images']} images, ms",
            f"{row['latency_batch_s'] * 1e3:.1f}",
        ),
        ("most GPU memory, GiB", f"{row['peak_memory_bytes'] / 2**30:.1f}"),
        ("steps recorded", "yes" if row["cuda_graph"] else "no"),
    ]
    return figures.table(("EfficientNetB4, batch 4, all toggles, from scratch", "n = 1"), rows)


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print a table each."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--parts", nargs="+", default=["networks", "peers", "together"])
    parser.add_argument("--data", type=Path, help="image folder; left out: castings are drawn")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each run of steps")
    parser.add_argument("--backbones", nargs="*", default=list(registry.BACKBONES))
    parser.add_argument(
        "--b4", type=int, nargs="*", default=[2, 8], help="more batch sizes of EfficientNetB4"
    )
    parser.add_argument(
        "--shared", nargs="+", default=["efficientnetb4"], help="networks of part together"
    )
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the DataLoader")
    parser.add_argument("--out", type=Path, help="folder for the tables, beside printing them")
    args = parser.parse_args(words)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU"
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "castings"
        if args.data is None and not {"peers", "trial"}.isdisjoint(args.parts):
            synthetic.draw(data, n_images=400, size_px=NATIVE_PX)
        parts: dict[str, Callable[[], str]] = {
            "networks": lambda: networks(args), "peers": lambda: peers_table(args, data),
            "together": lambda: together(args), "trial": lambda: trial(args, data),
        }  # fmt: skip
        for part in args.parts:
            caption = f"{name}, torch {torch.__version__}, {args.px} px. "
            if part != "trial":
                caption += f"{args.repeats} runs of {args.seconds} s a figure. "
            text = f"{parts[part]()}\n\n{caption}{figures.conditions('timm', 'kornia')}"
            if args.out:
                (args.out / f"gpu_{part}.md").write_text(text, encoding="utf-8")
            figures.publish(f"gpu_{part}", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
