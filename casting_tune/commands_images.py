"""Commands about images: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casting_tune import terminal
from casting_tune.options import DefectClass, NeededData, PackSize, Results, SkipBad


def synthetic(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    images: Annotated[int, typer.Option("--images", help="How many castings to draw.")] = 400,
    size: Annotated[int, typer.Option("--size", help="Their side in pixels.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same castings.")] = 0,
) -> None:
    """Draw castings, with and without defects, into train/ and test/ folders."""
    from casting_tune import synthetic as room

    out = terminal.console()
    with terminal.progress(out) as on_progress:
        room.draw(
            folder,
            n_images=images,
            size_px=size,
            seed=seed,
            on_progress=lambda done, total: on_progress("drawing castings", done, total),
        )
    terminal.say(out, f"{images} castings of {size} px in {folder}")


def pack(
    data: Annotated[Path, typer.Argument(envvar="CASTING_TUNE_DATA", help="The image folder.")],
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
) -> None:
    """Decode an image folder into a pack, once, and say what it holds."""
    from casting_tune import pack as room

    out = terminal.console()
    with terminal.progress(out) as on_progress:
        packed = room.pack(
            data,
            results / "packs",
            positive=positive,
            size_px=pack_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
    rows = []
    for split in ("train", "test"):
        for label, name in ((1, packed.positive), (0, packed.negative)):
            rows.append([split, name, str(int(((packed.splits == split) & (packed.labels == label)).sum()))])
    terminal.grid(["split", "class", "images"], rows)
    kind = "gray" if packed.images.ndim == 3 else "colour"
    height, width = packed.images.shape[-2:]
    terminal.say(out, f"dataset {packed.dataset_id}: {len(packed.labels)} images, {kind}, {width} x {height} px")
    for path, reason in packed.skipped:
        terminal.say(out, f"skipped {path}: {reason}")


def audit(
    data: NeededData,
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
    accept_leakage: Annotated[bool, typer.Option("--accept-leakage", help="Exit 0 even so.")] = False,
) -> None:
    """Find what would flatter a result: copies, photographs on both sides, label conflicts. Exit 3: a leak."""
    from casting_tune import audits
    from casting_tune import pack as packs
    from casting_tune.store import Store

    out = terminal.console()
    with terminal.progress(out) as on_progress:
        packed = packs.pack(
            data,
            results / "packs",
            positive=positive,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
        found = audits.kept(
            packed, Store(results), on_progress=lambda done, total: on_progress("comparing images", done, total)
        )
    for sentence in found.findings:
        terminal.say(out, sentence)
    if bool((found.copy_in_train & (packed.splits == "test")).any()) and not accept_leakage:
        terminal.say(out, "Test images stand in train: exit code 3 (--accept-leakage makes it 0).")
        raise typer.Exit(3)


def preview(
    data: NeededData,
    folder: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")] = Path("preview"),
    results: Results = Path("results"),
    positive: DefectClass = "def_front",
) -> None:
    """Write pictures of the images and of every augmentation, from the very pipeline that trains."""
    from casting_tune import charts, pictures
    from casting_tune import pack as packs

    packed = packs.pack(data, results / "packs", positive=positive)
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*pictures.preview(packed, folder), charts.plot_images(packed, folder / "images.png")]:
        terminal.say(terminal.console(), str(file))
