"""The images of a run: generated if none are given, packed, counted per cell, and notes about them.

Input: Options, cells. Output: a Pack, the groups of its images, counts, notes. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from casting_tune import files
from casting_tune.config import Allowance, TrialConfig
from casting_tune.data import label_conflicts, pack, synthetic
from casting_tune.data.pack import Pack
from casting_tune.planning import estimate
from casting_tune.planning.cells import Cell
from casting_tune.planning.options import Options
from casting_tune.store import audits
from casting_tune.store.store import Store
from casting_tune.training import inputs, memory, precision
from casting_tune.training.baseline_fit import is_baseline
from casting_tune.training.baselines import MOST_PROBED
from casting_tune.training.image_split import count_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHETIC_IMAGES, SYNTHETIC_PX = 400, 300


@dataclass(frozen=True, slots=True)
class Reporter:
    """Reports to the user before the run.

    Attributes:
        say: called with one line.
        on_progress: called with (what, done, total).
    """

    say: Callable[[str], None]
    on_progress: Callable[[str, int, int], None] | None = None

    def progress(self, what: str) -> Callable[[int, int], None] | None:
        """Return a function that reports (done, total) of one kind of work."""
        on_progress = self.on_progress
        if on_progress is None:
            return None
        return lambda done, total: on_progress(what, done, total)


def packed(options: Options, store: Store, report: Reporter) -> Pack:
    """Return the pack of the user's images, or of generated castings if none are given."""
    folder = options.data
    if folder is None:
        folder = store.root / f"synthetic-{SYNTHETIC_IMAGES}x{SYNTHETIC_PX}"
        report.say(
            f"No dataset given (--data DIR): training on {SYNTHETIC_IMAGES} synthetic castings."
        )
        if not folder.is_dir():
            _draw(folder, report)
    images = pack.pack(
        folder,
        store.root / "packs",
        reading=options.reading,
        pixels=replace(options.pixels, size_px=options.pack_size),
        skip_bad=options.skip_bad,
        on_progress=report.progress("packing images"),
    )
    return images if options.data is not None else replace(images, notes=())


def _draw(folder: Path, report: Reporter) -> None:
    """Generate synthetic castings in a new folder, which appears when it is complete."""
    try:
        with files.new_folder(folder) as draft:
            synthetic.draw(
                draft,
                n_images=SYNTHETIC_IMAGES,
                size_px=SYNTHETIC_PX,
                on_progress=report.progress("drawing castings"),
            )
    except OSError:
        if not folder.is_dir():  # else another sweep of this store has just generated the same
            raise


def groups(
    cells: tuple[Cell, ...], images: Pack, store: Store, report: Reporter
) -> NDArray[np.int64] | None:
    """Return [n] group numbers of the images if a split needs them, from the store or an audit."""
    if all(cell.config.split != "grouped" for cell in cells):
        return None
    given = "" if images.groups is None else " and from the groups given"
    report.say(
        f'split = "grouped": the groups of the images come from the audit of this dataset{given}.'
    )
    return audits.stored_audit(images, store, on_progress=report.progress("comparing images")).group


Needs = tuple[object, ...]
Counts = dict[Needs, tuple[int, int, int]]


def _needs(config: TrialConfig) -> Needs:
    """Return the settings that determine the train, validation and test images of a cell."""
    return (
        config.in_channels, config.validation_share, config.split_seed, config.train_images,
        config.test_images, config.split, config.n_folds, config.fold, config.validation,
    )  # fmt: skip


def count(cells: tuple[Cell, ...], images: Pack, groups: NDArray[np.int64] | None) -> Counts:
    """Check that every cell can run on these images, and return the image counts."""
    wanted = {_needs(cell.config): cell.config for cell in cells}
    return {needs: count_images(config, images, groups) for needs, config in wanted.items()}


def work(config: TrialConfig, counts: Counts) -> estimate.Work:
    """Return the configuration and the counts of a cell, for an estimate."""
    n_train, n_validation, n_test = counts[_needs(config)]
    return estimate.Work(config=config, n_train=n_train, n_validation=n_validation, n_test=n_test)


def counter(counts: Counts) -> Callable[[TrialConfig], int]:
    """Return a function from a configuration to its number of images.

    A configuration that a search has yet to choose counts as the largest one.
    """
    sums = {needs: sum(parts) for needs, parts in counts.items()}
    most = max(sums.values())
    return lambda config: sums.get(_needs(config), most)


def streaming_note(
    configs: Iterable[TrialConfig], counts: Counts, images: Pack, allowance: Allowance
) -> str:
    """Return a line if the images of a trial on the CPU exceed its memory; "" otherwise.

    The trial itself decides (`memory.images_from`), and its row says how: `images_from`.
    """
    limit = allowance.memory_bytes
    needed = max(
        (
            sum(counts[_needs(config)]) * inputs.image_bytes(config, images)
            for config in configs
            if not is_baseline(config)
        ),
        default=0,
    )
    if limit is None or needed <= memory.IMAGES_SHARE * limit:
        return ""
    return (
        f"The images of a trial take {needed / 2**30:.2f} GiB, more than half of its memory "
        f"({limit / 2**30:.2f} GiB): they are read from disk during training, with equal results."
    )


def notes(
    cells: tuple[Cell, ...], images: Pack, device: Literal["cpu", "cuda"] | None
) -> tuple[str, ...]:
    """Return what a reader of the results must know; `device` None: the trials run elsewhere."""
    notes = [*images.notes]
    notes += list(precision.notes((cell.config for cell in cells), device)) if device else []
    if images.images.ndim == 3 and any("hue" in cell.config.toggles for cell in cells):
        notes.append("The images are gray: the toggle hue has no effect on them.")
    in_train = set(images.sha256[images.splits == "train"])
    copies = sum(sha in in_train for sha in images.sha256[images.splits == "test"])
    if copies:
        n_test = int((images.splits == "test").sum())
        notes.append(
            f"{copies} of {n_test} test images are byte-for-byte copies of training images: "
            "scores look too good."
        )
    n_train = int((images.splits == "train").sum())
    if n_train > MOST_PROBED:
        notes.append(
            f"The baseline linear probe learns from {MOST_PROBED:,} of the {n_train:,} training "
            "images, chosen at random within each class."
        )
    if leak := label_conflicts.group_note(images):
        notes.append(leak)
    if conflict := label_conflicts.conflict_note(images):
        notes.append(conflict)
    if images.skipped:
        notes.append(
            f"{len(images.skipped)} files could not be decoded and were skipped (see the pack)."
        )
    return tuple(notes)
