"""Commands about images: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the
commands.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casting_tune import text
from casting_tune.cli import console
from casting_tune.cli.params import (
    RESULTS,
    DefectClass,
    Json,
    NeededData,
    PackSize,
    Results,
    SkipBad,
    make_folder,
)
from casting_tune.errors import FLAWED_IMAGES, UsageError

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder; left out: kagglehub's cache.")
    ] = None,
    accept_licence: Annotated[
        bool,
        typer.Option(
            "--accept-licence",
            help="You accept CC BY-NC-ND 4.0: by name, not commercial, unchanged.",
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Fetch nothing; hold this folder against what was published."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the published castings from Kaggle, and check that every image is the one that was published."""
    from casting_tune.data import kaggle as room

    told = console.console(as_json)
    if check is not None:
        if out is not None or accept_licence:
            useless = "--out" if out is not None else "--accept-licence"
            raise UsageError(f"--check fetches nothing, and so has no use for {useless}: drop one.")
        found = room.check(check)
    else:
        found = room.fetch(out, licence_accepted=accept_licence)
        console.say(told, room.TERMS)
    if as_json:
        console.write_json(found)
        return
    console.grid(["folder", "images"], [[name, f"{n:,}"] for name, n in found.counts.items()])
    console.say(told, f"{sum(found.counts.values()):,} images, each as it was published.")
    console.say(told, f"--data {shlex.quote(str(found.folder))}")


def synthetic(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    images: Annotated[int, typer.Option("--images", help="How many castings to draw.")] = 400,
    size: Annotated[int, typer.Option("--size", help="Their side in pixels.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same castings.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw castings, with and without defects, into train/ and test/ folders."""
    from casting_tune.data import synthetic as room

    out = console.console(as_json)
    with console.progress(out) as on_progress:
        room.draw(
            folder,
            n_images=images,
            size_px=size,
            seed=seed,
            on_progress=lambda done, total: on_progress("drawing castings", done, total),
        )
    if as_json:
        console.write_json({"folder": folder, "images": images, "size_px": size, "seed": seed})
        return
    console.say(out, f"{images} castings of {size} px in {folder}")


def pack(
    data: Annotated[Path, typer.Argument(envvar="CASTING_TUNE_DATA", help="The image folder.")],
    *,
    results: Results = RESULTS,
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Decode an image folder into a pack, once, and say what it holds."""
    from casting_tune.data import pack as room
    from casting_tune.store.store import Store

    out = console.console(as_json)
    with console.progress(out) as on_progress:
        packed = room.pack(
            data,
            Store(results).root / "packs",
            positive=positive,
            size_px=pack_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
    kind = "gray" if packed.images.ndim == 3 else "colour"
    height, width = packed.images.shape[-2:]
    counts = [
        {
            "split": split,
            "class": name,
            "images": int(((packed.splits == split) & (packed.labels == label)).sum()),
        }
        for split in ("train", "test")
        for label, name in ((1, packed.positive), (0, packed.negative))
    ]
    if as_json:
        console.write_json(
            {
                "dataset_id": packed.dataset_id,
                "images": len(packed.labels),
                "kind": kind,
                "width_px": width,
                "height_px": height,
                "counts": counts,
                "skipped": [{"path": path, "reason": reason} for path, reason in packed.skipped],
                "label_conflicts": room.conflicts(packed),
            }
        )
        return
    console.grid(
        ["split", "class", "images"], [[str(value) for value in row.values()] for row in counts]
    )
    console.say(
        out,
        f"dataset {packed.dataset_id}: {len(packed.labels)} images, {kind}, {width} x {height} px",
    )
    for path, reason in packed.skipped:
        console.say(out, f"skipped {path}: {reason}")
    if conflict := room.conflict_note(packed):
        console.say(out, conflict)


def audit(
    data: NeededData,
    *,
    results: Results = RESULTS,
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    accept_leakage: Annotated[
        bool, typer.Option("--accept-leakage", help="Exit 0 in spite of such files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find data leaks and label problems.

    Exit 3: files with the same bytes in train and test, or in both classes.
    """
    out = console.console(as_json)
    found = tell_audit(
        out, data, results, positive=positive, pack_size=pack_size, skip_bad=skip_bad
    )
    if as_json:
        console.write_json(found)
    leaks = ["Test images stand in train"] if found["n_test_copies_in_train"] else []
    leaks += ["The same files stand in both classes"] if found["label_conflicts"] else []
    if leaks and not accept_leakage:
        console.say(
            out, f"{'. '.join(leaks)}: exit code {FLAWED_IMAGES} (--accept-leakage makes it 0)."
        )
        raise typer.Exit(FLAWED_IMAGES)


def tell_audit(
    out: Console,
    data: Path,
    results: str,
    *,
    positive: str = "def_front",
    pack_size: int | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Report what the audit of an image folder found, with all files that both classes hold; return it for JSON."""
    from casting_tune.data import pack as packs
    from casting_tune.store import audits
    from casting_tune.store.store import Store

    with console.progress(out) as on_progress:
        packed = packs.pack(
            data,
            Store(results).root / "packs",
            positive=positive,
            size_px=pack_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: on_progress("packing images", done, total),
        )
        found = audits.stored_audit(
            packed,
            Store(results),
            on_progress=lambda done, total: on_progress("comparing images", done, total),
        )
    for sentence in found.findings:
        console.say(out, sentence)
    conflicts = packs.conflicts(packed)
    for bad, good in conflicts:
        console.say(out, f"same file in both classes: '{text.plain(bad)}' = '{text.plain(good)}'")
    return {
        "dataset_id": packed.dataset_id,
        "findings": found.findings,
        "n_test_copies_in_train": int((found.copy_in_train & (packed.splits == "test")).sum()),
        "label_conflicts": conflicts,
    }


def preview(
    data: NeededData,
    *,
    folder: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")] = Path("preview"),
    results: Results = RESULTS,
    positive: DefectClass = "def_front",
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write pictures of the images and of every augmentation, from the very pipeline that trains."""
    from casting_tune.data import image_folder
    from casting_tune.data import pack as packs
    from casting_tune.report import image_grids, mpl_charts
    from casting_tune.store.store import Store

    image_folder.check_outside(data, folder, "--out")
    packed = packs.pack(
        data, Store(results).root / "packs", positive=positive, size_px=pack_size, skip_bad=skip_bad
    )
    make_folder(folder)
    files = [
        *image_grids.preview(packed, folder),
        mpl_charts.plot_images(packed, folder / "images.png"),
    ]
    console.list_files(files, as_json)
