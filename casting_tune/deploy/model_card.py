"""The model card of an export in Markdown, for quality managers and maintainers.

Computes only shares; reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from casting_tune import metrics
from casting_tune.data import pixel_record
from casting_tune.deploy import export_folder
from casting_tune.deploy.checks import Checked
from casting_tune.metrics import Counts
from casting_tune.store.completed import Cell
from casting_tune.text import plain

_SHARES: dict[str, tuple[str, Callable[[Counts], tuple[int, int]]]] = {
    "accuracy": ("correct decisions", lambda c: (c.tp + c.tn, c.tp + c.fp + c.tn + c.fn)),
    "escape_rate": ("defects passed", lambda c: (c.fn, c.tp + c.fn)),
    "overkill_rate": ("good castings rejected", lambda c: (c.fp, c.fp + c.tn)),
    "precision": ("rejected castings that are defective", lambda c: (c.tp, c.tp + c.fp)),
}


def write(
    cell: Cell,
    checked: Checked,
    *,
    licence: str,
    chosen_how: tuple[str, ...],
) -> str:
    """Return the model card of an exported cell.

    Args:
        cell: the exported cell.
        checked: the checks of the export.
        licence: licence of the images, as the user states it.
        chosen_how: sentences about how the cell was selected; empty if the user named it.
    """
    row = cell.row
    parts = [
        f"# {_text(row['label'])}: {row['backbone']} at {row['image_px']} px",
        "The network computes P(defective) of the casting in an image, and the decision at a "
        f"threshold. Cell {row['cell_id']} of sweep {_text(row['sweep'])}, "
        "exported by casting_tune.",
        "## Use",
        "```\ncasting-tune predict DIR IMAGES...\n```",
        _contract(cell),
        "## Threshold",
        "\n".join(f"- {sentence}" for sentence in checked.point.sentences),
        "## Results of the exported network on the test images",
        _table(checked.point.test),
        *_kinds(checked),
        _ranking(cell),
        "\n".join(f"- {sentence}" for sentence in _limits(cell, checked)),
        "## Training data",
        "\n".join(f"- {sentence}" for sentence in _training(cell, licence)),
        "## Reproducibility",
        "\n".join(f"- {sentence}" for sentence in (*chosen_how, *_provenance(cell, checked))),
    ]
    return "\n\n".join(parts) + "\n"


def _contract(cell: Cell) -> str:
    shape = cell.pack.images.shape[1:]
    sides = "height, width" if len(shape) == 2 else "3, height, width"
    pixels = cell.pack.pixels
    is_padded = pixels.resize == "letterbox" and (cell.pack.sizes != np.array(shape[-2:])).any()
    letterbox = ", padded with black to a square" if is_padded else ""
    rules = "".join(f" {sentence}" for sentence in _pixel_sentences(cell))
    return (
        f"`network.onnx` takes `images`, uint8 [n, {sides}], "
        f"{'gray' if len(shape) == 2 else 'colour'}, any n. It was trained and checked at "
        f"{shape[-2]} x {shape[-1]} px{letterbox}. It contains resize, normalisation, sigmoid and "
        "threshold. It returns `score`, float32 [n], P(defective), and `defective`, bool [n]. "
        "`model.safetensors` and `config.json` are the backbone for timm's `local-dir:`; "
        "`head.safetensors` is the head."
        f"{rules}"
    )


def _pixel_sentences(cell: Cell) -> Iterator[str]:
    """Yield what `predict` does before the network, if it is not as usual."""
    pixels = cell.pack.pixels
    yield from pixel_record.rule_sentences(pixels, cell.pack.images.shape[-2:])
    if pixels.colour == "gray":
        yield "Coloured images are converted to gray."
    if export_folder.version(pixels) > 1:
        yield (
            "`predict` does the same; a file with a level outside the range gets no decision. "
            "Other programs must prepare images in this way before the network."
        )


def _table(counts: Counts) -> str:
    lines = ["| share | of | value |", "| --- | --- | --- |"]
    for name, (meaning, count) in _SHARES.items():
        k, n = count(counts)
        value = f"{100 * k / n:.2f} %" if n else "none"
        lines.append(f"| {name}: {meaning} | {k:,} of {n:,} | {value} |")
    lines.append(
        f"\n{counts.tp:,} defects rejected, {counts.fn:,} passed; {counts.tn:,} good castings "
        f"passed, {counts.fp:,} rejected. The bounds for new castings are above, under Threshold."
    )
    return "\n".join(lines)


def _kinds(checked: Checked) -> Iterator[str]:
    """Yield the table of the escapes by kind, if there are several kinds of defects."""
    rates = checked.point.test_kinds
    if len(rates) > 1:
        yield "\n".join(
            (
                "| kind of defect | passed | of | at most (exact one-sided 95 %) |",
                "| --- | --- | --- | --- |",
                *(
                    f"| {_text(one.kind)} | {one.escapes:,} | {one.n:,} | {one.at_most} |"
                    for one in rates
                ),
            )
        )


def _ranking(cell: Cell) -> str:
    test = cell.predictions.split == "test"
    measured = metrics.measure(cell.predictions.y_true[test], cell.predictions.score[test])
    values = [
        f"{name} {value:.4f}"
        for name in ("average_precision", "auroc")
        if (value := measured[name]) is not None
    ]
    return f"Independent of the threshold, from the stored scores: {', '.join(values)}."


def _limits(cell: Cell, checked: Checked) -> Iterator[str]:
    precision = cell.config.precision
    n_test = int((cell.predictions.split == "test").sum())
    leaked = int(cell.predictions.leaked.sum())
    if leaked:
        yield (
            f"{leaked:,} of {n_test:,} test images are byte-for-byte copies of training images, so "
            "the results are too good."
        )
    if cell.config.split == "official":
        yield (
            "The test images are those of the test folder. If both folders show the same castings, "
            "the results are too good; `casting-tune audit` counts such images."
        )
    yield (
        "The network was trained for one camera, light, part and set of defects. It gives a score "
        "for any image, also for an unsuitable one."
    )
    if precision != "fp32":
        yield (
            f"The network was trained in {precision} and is exported in fp32. At this threshold, "
            f"{checked.n_other_decisions:,} of {n_test:,} decisions on test images differ from "
            f"those of the stored {precision} scores (largest difference of a score in "
            f"{precision}: {checked.largest_stored:.2g})."
        )
    elif checked.n_other_decisions:
        yield (
            f"{checked.n_other_decisions:,} of {n_test:,} decisions on test images differ from "
            "those of the stored scores."
        )


def _training(cell: Cell, licence: str) -> Iterator[str]:
    row, pack = cell.row, cell.pack
    yield (
        f"{row['n_train']:,} training, {row['n_validation']:,} validation and "
        f"{row['n_test']:,} test images; defect: {_text(pack.positive)}, good: "
        f"{_text(pack.negative)}; dataset_id {pack.dataset_id}."
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
        f"Trained {row['started_at']:%Y-%m-%d} on {row['device']} with {row['n_threads']} threads: "
        f"casting_tune {row['casting_tune']} ({row['git_commit'] or 'no commit'}), torch "
        f"{row['torch']}, timm {row['timm']}, recipe {row['recipe']}."
    )
    weights = "from the store" if checked.kept else "from a repeated training for this export"
    yield f"Exported {datetime.now(UTC):%Y-%m-%d}; weights {weights}."
    yield (
        f"Checked on {checked.n_images:,} validation and test images. Largest difference of a "
        f"score: {checked.largest_stored:.2g} from the stored score, "
        f"{checked.largest_onnx:.2g} between onnxruntime and torch. All decisions are equal."
    )
    yield f"To train the cell again and compare: `casting-tune reproduce {row['cell_id']}`."


def _text(value: object) -> str:
    """Return a name of a file or user for Markdown: on one line, with markup escaped."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!" else char for char in plain(str(value)))
