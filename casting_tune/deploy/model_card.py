"""The model card: what a quality manager and a maintainer must know of an exported network, as Markdown.

Comes in: a Cell and what its export found. Goes out: text. Computes nothing but intervals of
shares; knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np

from casting_tune import metrics
from casting_tune.analysis import statistics
from casting_tune.metrics import Counts
from casting_tune.store.completed import Cell
from casting_tune.text import plain

if TYPE_CHECKING:
    from casting_tune.deploy.export import Checked

_SHARES: dict[str, tuple[str, Callable[[Counts], tuple[int, int]]]] = {
    "accuracy": ("right decisions", lambda c: (c.tp + c.tn, c.tp + c.fp + c.tn + c.fn)),
    "escape_rate": ("defects passed", lambda c: (c.fn, c.tp + c.fn)),
    "overkill_rate": ("good castings rejected", lambda c: (c.fp, c.fp + c.tn)),
    "precision": ("rejected castings that are defective", lambda c: (c.tp, c.tp + c.fp)),
}


def write(
    cell: Cell,
    checked: Checked,
    *,
    precision: Literal["fp32", "bf16"],
    licence: str,
    chosen_how: tuple[str, ...],
) -> str:
    """Return the card of an exported cell.

    Args:
        cell: what was exported.
        checked: what the export found.
        precision: of the training.
        licence: of the images, as the user states it.
        chosen_how: sentences about how the cell was chosen; none where it was named.
    """
    row = cell.row
    parts = [
        f"# {_text(row['label'])}: {row['backbone']} at {row['image_px']} px",
        f"P(defective) of one casting in one image, and the decision at a threshold. Cell {row['cell_id']} of sweep "
        f"{_text(row['sweep'])}, exported by casting_tune.",
        "## Use",
        "```\ncasting-tune predict DIR IMAGES...\n```",
        _contract(cell),
        "## Threshold",
        "\n".join(f"- {sentence}" for sentence in checked.point.sentences),
        "## Results on the test images, of the exported network",
        _table(checked.point.test),
        _ranking(cell),
        "\n".join(f"- {sentence}" for sentence in _limits(cell, checked, precision)),
        "## Trained on",
        "\n".join(f"- {sentence}" for sentence in _training(cell, licence)),
        "## Where it comes from",
        "\n".join(f"- {sentence}" for sentence in (*chosen_how, *_provenance(cell, checked))),
    ]
    return "\n\n".join(parts) + "\n"


def _contract(cell: Cell) -> str:
    shape = cell.pack.images.shape[1:]
    sides = "height, width" if len(shape) == 2 else "3, height, width"
    letterbox = (
        ""
        if (cell.pack.sizes == np.array(shape[-2:])).all()
        else ", letterboxed on black into a square"
    )
    return (
        f"`network.onnx` takes `images`, uint8 [n, {sides}], {'gray' if len(shape) == 2 else 'colour'}, any n; it was "
        f"trained and checked at {shape[-2]} x {shape[-1]} px{letterbox}. Resize, normalisation, sigmoid and threshold "
        "are inside. It gives `score`, float32 [n], P(defective), and `defective`, bool [n]. `model.safetensors` and "
        "`config.json` are the backbone as timm's `local-dir:` has it, `head.safetensors` is the head."
    )


def _table(found: Counts) -> str:
    lines = ["| share | of | value | 95 % interval |", "| --- | --- | --- | --- |"]
    for name, (meaning, count) in _SHARES.items():
        k, n = count(found)
        low, high = statistics.wilson(k, n)
        value = (
            f"{100 * k / n:.2f} % | {100 * low:.2f} to {100 * high:.2f} %" if n else "none | none"
        )
        lines.append(f"| {name}: {meaning} | {k:,} of {n:,} | {value} |")
    lines.append(
        f"\n{found.tp:,} defects rejected, {found.fn:,} passed; {found.tn:,} good castings passed, {found.fp:,} "
        "rejected. Intervals are Wilson's and take every image for a casting of its own; the bounds above are exact."
    )
    return "\n".join(lines)


def _ranking(cell: Cell) -> str:
    test = cell.predictions.split == "test"
    measured = metrics.measure(cell.predictions.y_true[test], cell.predictions.score[test])
    said = [
        f"{name} {value:.4f}"
        for name in ("average_precision", "auroc")
        if (value := measured[name]) is not None
    ]
    return f"Whatever the threshold, by the stored scores: {', '.join(said)}."


def _limits(cell: Cell, checked: Checked, precision: str) -> Iterator[str]:
    n_test = int((cell.predictions.split == "test").sum())
    leaked = int(cell.predictions.leaked.sum())
    if leaked:
        yield f"{leaked:,} of {n_test:,} test images are byte-for-byte copies of training images: the figures flatter."
    if cell.config.split == "official":
        yield (
            "The test images are those that the folder names test. Where photographs of one casting stand in both "
            "folders, the figures measure memory; `casting-tune audit` counts them."
        )
    yield "It knows no other camera, light, part or defect than those of its images, and scores any image."
    if precision != "fp32":
        yield (
            f"It was trained in {precision} and is exported in fp32: at this threshold {checked.n_other_decisions:,} "
            f"of {n_test:,} decisions on test images differ from those of the stored {precision} scores "
            f"(largest difference of a score {checked.largest_stored:.2g} in {precision})."
        )
    elif checked.n_other_decisions:
        yield f"{checked.n_other_decisions:,} of {n_test:,} decisions on test images differ from the stored scores'."


def _training(cell: Cell, licence: str) -> Iterator[str]:
    row, pack = cell.row, cell.pack
    yield (
        f"{row['n_train']:,} training, {row['n_validation']:,} validation and {row['n_test']:,} test images; defect: "
        f"{_text(pack.positive)}, good: {_text(pack.negative)}; dataset_id {pack.dataset_id}."
    )
    yield f"Licence of the images: {_text(licence)}."
    settings = asdict(cell.config) | {"weights": row["weights"], "toggles": row["augmentation"]}
    yield f"Settings: {', '.join(f'{name} {_text(value)}' for name, value in settings.items())}."
    fold = (
        f", fold {row['fold']} of {row['n_folds']} (split_id {row['split_id']})"
        if row["split"] == "grouped"
        else ""
    )
    yield f"Split: {row['split']}{fold}."


def _provenance(cell: Cell, checked: Checked) -> Iterator[str]:
    row = cell.row
    yield (
        f"Trained {row['started_at']:%Y-%m-%d} on {row['device']} with {row['n_threads']} threads: casting_tune "
        f"{row['casting_tune']} ({row['git_commit'] or 'no commit'}), torch {row['torch']}, timm {row['timm']}, recipe "
        f"{row['recipe']}."
    )
    whence = "kept by the store" if checked.kept else "of the cell trained again for this export"
    yield f"Exported {datetime.now(UTC):%Y-%m-%d}; weights {whence}."
    yield (
        f"Checked on {checked.n_images:,} validation and test images: these weights score them as the store says, "
        f"within {checked.largest_stored:.2g}; onnxruntime scores them as torch, within {checked.largest_onnx:.2g}, "
        "and decides all of them the same."
    )
    yield f"Once more from the store alone: `casting-tune reproduce {row['cell_id']}`."


def _text(value: object) -> str:
    """Return a name from a file or a person as Markdown shows it: on one line, without markup."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!" else char for char in plain(str(value)))
