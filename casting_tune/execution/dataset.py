"""The images of a run: drawn where none are given, packed, counted for each cell, and what must be said of them.

Comes in: Options, cells. Goes out: a Pack, the photographs of its images, counts, notes. Trains
nothing.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from casting_tune.config import TrialConfig
from casting_tune.data import pack, synthetic
from casting_tune.data.pack import Pack
from casting_tune.planning import estimate
from casting_tune.planning.cells import Cell
from casting_tune.planning.options import Options
from casting_tune.store import audits
from casting_tune.store.store import Store
from casting_tune.training import precision, trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHETIC_IMAGES, SYNTHETIC_PX = 400, 300


def packed(
    options: Options,
    store: Store,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None,
) -> Pack:
    """Return the pack of the images that are asked for, or of castings that are drawn here."""
    folder = options.data
    if folder is None:
        folder = store.root / f"synthetic-{SYNTHETIC_IMAGES}x{SYNTHETIC_PX}"
        say(f"No dataset given (--data DIR): training on {SYNTHETIC_IMAGES} drawn castings.")
        if not folder.is_dir():
            beside = store.root / f".drawing-{uuid.uuid4().hex}"
            told = progress(on_progress, "drawing castings")
            try:
                synthetic.draw(
                    beside, n_images=SYNTHETIC_IMAGES, size_px=SYNTHETIC_PX, on_progress=told
                )
                beside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another sweep of this store has just drawn the same
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)  # gone already, unless drawing broke off
    return pack.pack(
        folder,
        store.root / "packs",
        positive=options.positive,
        size_px=options.pack_size,
        skip_bad=options.skip_bad,
        on_progress=progress(on_progress, "packing images"),
    )


def groups(
    cells: tuple[Cell, ...],
    images: Pack,
    store: Store,
    say: Callable[[str], None],
    on_progress: Callable[[str, int, int], None] | None,
) -> NDArray[np.int64] | None:
    """Return the photographs of the images where a grouped split asks for them, from the store or by an audit now."""
    if all(cell.config.split != "grouped" for cell in cells):
        return None
    say('split = "grouped": which images show one photograph comes from the audit of this dataset.')
    return audits.stored_audit(
        images, store, on_progress=progress(on_progress, "comparing images")
    ).group


def progress(
    on_progress: Callable[[str, int, int], None] | None, what: str
) -> Callable[[int, int], None] | None:
    """Return what tells of one kind of work: (done, total)."""
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None


Needs = tuple[object, ...]
Counts = dict[Needs, tuple[int, int, int]]


def _needs(config: TrialConfig) -> Needs:
    """Return the settings that decide which images a cell trains, validates and tests."""
    return (
        config.in_channels, config.validation_share, config.split_seed, config.train_images, config.test_images,
        config.split, config.n_folds, config.fold,
    )  # fmt: skip


def count(cells: tuple[Cell, ...], images: Pack, groups: NDArray[np.int64] | None) -> Counts:
    """Check that every cell can run on these images, and return their counts by what decides them."""
    wanted = {_needs(cell.config): cell.config for cell in cells}
    return {needs: trial.check(config, images, groups) for needs, config in wanted.items()}


def work(config: TrialConfig, counts: Counts) -> estimate.Work:
    """Return what a cell is to an estimate: its configuration and its counts."""
    n_train, n_validation, n_test = counts[_needs(config)]
    return estimate.Work(config=config, n_train=n_train, n_validation=n_validation, n_test=n_test)


def counter(counts: Counts) -> Callable[[TrialConfig], int]:
    """Return what tells how many images a configuration uses; one that a search will choose, as many as any."""
    sums = {needs: sum(parts) for needs, parts in counts.items()}
    most = max(sums.values())
    return lambda config: sums.get(_needs(config), most)


def notes(
    cells: tuple[Cell, ...], images: Pack, device: Literal["cpu", "cuda"] | None
) -> tuple[str, ...]:
    """Say once, up front, what a reader of the table must know, and who waits for it; `device` None is elsewhere."""
    notes = list(precision.notes((cell.config for cell in cells), device)) if device else []
    if images.images.ndim == 3 and any("hue" in cell.config.toggles for cell in cells):
        notes.append("These images are gray: the toggle hue changes no pixel of them.")
    in_train = set(images.sha256[images.splits == "train"])
    copies = sum(sha in in_train for sha in images.sha256[images.splits == "test"])
    if copies:
        n_test = int((images.splits == "test").sum())
        notes.append(
            f"{copies} of {n_test} test images are byte-for-byte copies of training images: scores flatter."
        )
    if conflict := pack.conflict_note(images):
        notes.append(conflict)
    if images.skipped:
        notes.append(
            f"{len(images.skipped)} files could not be decoded and were skipped (recorded in the pack)."
        )
    if images.split_made:
        notes.append(
            "The folder names no test images: a stratified tenth was set aside and recorded in the pack."
        )
    return tuple(notes)
