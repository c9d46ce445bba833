"""Commands for images: `fetch`, `synthetic`, `pack`, `audit`, `preview`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casting_tune import text
from casting_tune.cli import console, params
from casting_tune.cli.params import (
    RESULTS,
    Bits,
    DefectClass,
    DefectClasses,
    GoodClasses,
    Gray,
    GroupPattern,
    Json,
    KeepSplit,
    MaxMegapixels,
    NeededData,
    PackSize,
    Resize,
    Results,
    SkipBad,
    make_folder,
    pixel_rules,
)
from casting_tune.data.pixel_rules import RULES, PixelRules
from casting_tune.errors import FLAWED_IMAGES, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from casting_tune.data.image_folder import Reading
    from casting_tune.data.pack import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """An image folder and the options for its pack."""

    data: Path
    results: str
    reading: Reading | None = None
    pack_size: int | None = None
    pixels: PixelRules = RULES
    skip_bad: bool = False

    def pack(self, out: Console) -> Pack:
        """Return the pack of the folder in the store, with a progress bar."""
        from casting_tune.data import pack as packs
        from casting_tune.store.store import Store

        with console.progress(out) as on_progress:
            return packs.pack(
                self.data,
                Store(self.results).root / "packs",
                reading=self.reading or packs.DEFAULT_READING,
                pixels=replace(self.pixels, size_px=self.pack_size),
                skip_bad=self.skip_bad,
                on_progress=lambda done, total: on_progress("packing images", done, total),
            )


def fetch(
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder. Default: the cache of kagglehub.")
    ] = None,
    accept_licence: Annotated[
        bool,
        typer.Option(
            "--accept-licence",
            help="Accept CC BY-NC-ND 4.0: attribution, non-commercial, no changes.",
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Download nothing; compare this folder with the original."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download the published castings from Kaggle and check every image."""
    from casting_tune.data import kaggle

    messages = console.console(as_json)
    if check is not None:
        if out is not None or accept_licence:
            useless = "--out" if out is not None else "--accept-licence"
            raise UsageError(f"--check downloads nothing and has no use for {useless}: drop one.")
        castings = kaggle.check(check)
    else:
        castings = kaggle.fetch(out, licence_accepted=accept_licence)
        console.say(messages, kaggle.TERMS)
    if as_json:
        console.write_json(castings)
        return
    console.grid(["folder", "images"], [[name, f"{n:,}"] for name, n in castings.counts.items()])
    console.say(messages, f"{sum(castings.counts.values()):,} images, identical to the original.")
    console.say(messages, f"--data {shlex.quote(str(castings.folder))}")


def synthetic(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    images: Annotated[int, typer.Option("--images", help="Number of images.")] = 400,
    size: Annotated[int, typer.Option("--size", help="Side of an image in pixels.")] = 300,
    seed: Annotated[
        int, typer.Option("--seed", help="Random seed; the same seed gives the same images.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Generate synthetic castings with and without defects in train/ and test/ folders."""
    from casting_tune.data import synthetic as castings

    out = console.console(as_json)
    with console.progress(out) as on_progress:
        castings.draw(
            folder,
            n_images=images,
            size_px=size,
            seed=seed,
            on_progress=lambda done, total: on_progress("generating castings", done, total),
        )
    if as_json:
        console.write_json({"folder": folder, "images": images, "size_px": size, "seed": seed})
        return
    console.say(out, f"{images} castings of {size} px in {folder}")


def pack(
    data: Annotated[Path, typer.Argument(envvar="CASTING_TUNE_DATA", help="Image folder.")],
    *,
    results: Results = RESULTS,
    positive: DefectClass = None,
    good: GoodClasses = None,
    defect: DefectClasses = None,
    group_pattern: GroupPattern = None,
    keep_split: KeepSplit = False,
    pack_size: PackSize = None,
    bits: Bits = None,
    resize: Resize = "letterbox",
    max_megapixels: MaxMegapixels = 25,
    gray: Gray = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Decode an image folder once into a pack, and print its contents."""
    from casting_tune.data import label_conflicts

    out = console.console(as_json)
    packed = ImageFolder(
        data=data,
        results=results,
        reading=params.reading(
            positive, good, defect, group_pattern=group_pattern, keep_split=keep_split
        ),
        pack_size=pack_size,
        pixels=pixel_rules(bits, resize, max_megapixels, gray),
        skip_bad=skip_bad,
    ).pack(out)
    if as_json:
        console.write_json(_pack_record(packed))
        return
    record = _pack_record(packed)
    for note in record["notes"]:
        console.say(out, note)
    console.grid(
        ["split", "class", "images"],
        [[str(value) for value in row.values()] for row in record["counts"]],
    )
    size = f"{record['width_px']} x {record['height_px']} px"
    console.say(
        out, f"dataset {packed.dataset_id}: {record['images']} images, {record['kind']}, {size}"
    )
    for path, reason in packed.skipped:
        console.say(out, f"skipped {path}: {reason}")
    if conflict := label_conflicts.conflict_note(packed):
        console.say(out, conflict)


def _pack_record(packed: Pack) -> dict[str, Any]:
    """Return the contents of a pack as `pack --json` prints them."""
    from casting_tune.data import label_conflicts

    height, width = packed.images.shape[-2:]
    return {
        "dataset_id": packed.dataset_id,
        "images": len(packed.labels),
        "kind": "gray" if packed.images.ndim == 3 else "colour",
        "width_px": width,
        "height_px": height,
        "pixels": asdict(packed.pixels),
        "counts": [
            {
                "split": split,
                "class": kind or packed.negative,
                "images": int(((packed.splits == split) & (packed.kinds == kind)).sum()),
            }
            for split in ("train", "validation", "test")
            if split != "validation" or "validation" in packed.splits
            for kind in sorted(set(packed.kinds.tolist()), key=lambda kind: (not kind, kind))
        ],
        "notes": [
            *packed.notes,
            *filter(None, [label_conflicts.group_note(packed)]),
        ],
        "skipped": [{"path": path, "reason": reason} for path, reason in packed.skipped],
        "label_conflicts": label_conflicts.conflicts(packed),
    }


def audit(
    data: NeededData,
    *,
    results: Results = RESULTS,
    positive: DefectClass = None,
    good: GoodClasses = None,
    defect: DefectClasses = None,
    group_pattern: GroupPattern = None,
    keep_split: KeepSplit = False,
    pack_size: PackSize = None,
    bits: Bits = None,
    resize: Resize = "letterbox",
    max_megapixels: MaxMegapixels = 25,
    gray: Gray = None,
    skip_bad: SkipBad = False,
    accept_leakage: Annotated[
        bool, typer.Option("--accept-leakage", help="Exit with code 0 despite such files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find data leaks and label problems.

    Exit code 3: identical files in train and test, or in both classes.
    """
    out = console.console(as_json)
    folder = ImageFolder(
        data=data,
        results=results,
        reading=params.reading(
            positive, good, defect, group_pattern=group_pattern, keep_split=keep_split
        ),
        pack_size=pack_size,
        pixels=pixel_rules(bits, resize, max_megapixels, gray),
        skip_bad=skip_bad,
    )
    record = print_audit(out, folder)
    if as_json:
        console.write_json(record)
    problems = []
    if record["n_test_copies_in_train"]:
        problems.append("Some test images are also in train")
    if record["label_conflicts"]:
        problems.append("Some files are in both classes")
    if problems and not accept_leakage:
        console.say(
            out,
            f"{'. '.join(problems)}: exit code {FLAWED_IMAGES} (0 with --accept-leakage).",
        )
        raise typer.Exit(FLAWED_IMAGES)


def print_audit(out: Console, folder: ImageFolder) -> dict[str, Any]:
    """Print the audit of an image folder with all files in both classes; return it for JSON."""
    from casting_tune.data import label_conflicts
    from casting_tune.store import audits
    from casting_tune.store.store import Store

    packed = folder.pack(out)
    with console.progress(out) as on_progress:
        result = audits.stored_audit(
            packed,
            Store(folder.results),
            on_progress=lambda done, total: on_progress("comparing images", done, total),
        )
    kept = audits.keep_columns(packed, Store(folder.results))
    for sentence in filter(None, (*packed.notes, kept, *result.findings)):
        console.say(out, sentence)
    conflicts = label_conflicts.conflicts(packed)
    for bad, good in conflicts:
        console.say(out, f"same file in both classes: '{text.plain(bad)}' = '{text.plain(good)}'")
    return {
        "dataset_id": packed.dataset_id,
        "notes": packed.notes,
        "findings": result.findings,
        "n_test_copies_in_train": int((result.copy_in_train & (packed.splits == "test")).sum()),
        "label_conflicts": conflicts,
    }


def preview(
    data: NeededData,
    *,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the PNG files.")] = Path(
        "preview"
    ),
    results: Results = RESULTS,
    positive: DefectClass = None,
    good: GoodClasses = None,
    defect: DefectClasses = None,
    group_pattern: GroupPattern = None,
    keep_split: KeepSplit = False,
    pack_size: PackSize = None,
    bits: Bits = None,
    resize: Resize = "letterbox",
    max_megapixels: MaxMegapixels = 25,
    gray: Gray = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write pictures of the images and of every augmentation, with the code that trains."""
    from casting_tune.data import image_folder
    from casting_tune.report import image_grids, mpl_charts

    image_folder.check_outside(data, folder, "--out")
    packed = ImageFolder(
        data=data,
        results=results,
        reading=params.reading(
            positive, good, defect, group_pattern=group_pattern, keep_split=keep_split
        ),
        pack_size=pack_size,
        pixels=pixel_rules(bits, resize, max_megapixels, gray),
        skip_bad=skip_bad,
    ).pack(console.console(as_json))
    make_folder(folder)
    files = [
        *image_grids.preview(packed, folder),
        mpl_charts.plot_images(packed, folder / "images.png"),
    ]
    console.list_files(files, as_json)
