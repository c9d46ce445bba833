"""Export a trained cell as a folder that a production computer can run, with checks.

    network.onnx        uint8 images to score and decision (see onnx_graph)
    decision.json       settings for predict: image packing, threshold, provenance
    model.safetensors   backbone weights; with config.json the local-dir form of timm
    head.safetensors    head weights
    README.md           model card
    SHA256SUMS          hashes of all other files

The folder appears complete or not at all, and only if two checks pass: the weights reproduce the
stored scores, and onnxruntime gives the scores and decisions of torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from casting_tune import files
from casting_tune.analysis import operating_point, selection
from casting_tune.analysis.operating_point import OperatingPoint, Scored
from casting_tune.config import BASELINE, Epoch
from casting_tune.deploy import export_folder, model_card, onnx_graph, retrain
from casting_tune.deploy.checks import NO_RULE, Checked, Rule
from casting_tune.errors import CastingTuneError, StoreError, UsageError
from casting_tune.models import build
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

ONNX_TOLERANCE = 1e-5
"""Largest difference between a score of onnxruntime and one of torch, both float32."""

STORED_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
"""Largest difference between a score of these weights and the stored one, in training precision.
Another number of threads or another device changes a float32 score by about 1e-6 and a bfloat16
one by about 1e-2. One pixel that rounds to the next level when an image is reduced changes it by up
to about 1e-4 (`onnx_graph`). Another training differs by far more.
"""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardText:
    """Text of the model card that only the user knows.

    Attributes:
        licence: licence of the images, as the user states it.
        selection: sentences about how the cell was selected; empty if the user named it.
    """

    licence: str = "not stated"
    selection: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """A cell's network, and its scores on validation and test in float32."""

    cell: Cell
    model: nn.Module
    decider: onnx_graph.Decider
    score: NDArray[np.float32]


def export(
    cell: Cell,
    store: Store,
    folder: Path,
    *,
    rule: Rule = NO_RULE,
    card: CardText = CardText(),
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
) -> Checked:
    """Export the network of a cell as a folder.

    Args:
        cell: a completed cell with a trained network.
        store: where its weights may be.
        folder: a new or empty folder.
        rule: the rule for the threshold.
        card: text for the model card.
        on_epoch: called after each epoch if the cell is trained again.

    Raises:
        UsageError: a baseline, a folder in use, an invalid rule, missing libraries.
        CastingTuneError: the weights do not reproduce the stored scores, or onnxruntime does not
            reproduce those of torch.
    """
    onnx_graph.check_libraries()
    if cell.config.backbone.startswith(BASELINE):
        raise UsageError(
            f"Cell {cell.row['cell_id']} is a baseline without a network. Export another cell."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out '{folder}' is in use. Use a new folder, or empty it.")
    model, kept = retrain.trained(cell, store, on_epoch=on_epoch)
    decider = decider_of(cell, model)
    images, rows = cell.pack.images, cell.predictions.image
    scored = _Scored(
        cell=cell,
        model=model,
        decider=decider,
        score=onnx_graph.score(decider, images, rows, precision="fp32"),
    )
    largest_stored = _check_stored(scored, kept=kept)
    point = _point(scored, store, rule)
    decider.threshold.fill_(point.threshold)
    checked = Checked(
        point=point,
        n_images=len(rows),
        largest_stored=largest_stored,
        largest_onnx=0.0,
        n_other_decisions=_other_decisions(scored, point.threshold),
        kept=kept,
    )
    try:
        with files.new_folder(folder) as draft:
            checked = _write(scored, checked, draft, card)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{folder}': {error.strerror or error}. Use another folder with --out."
        ) from error
    return checked


def _write(scored: _Scored, checked: Checked, draft: Path, card: CardText) -> Checked:
    """Write all files of an export; return the checks with that of the ONNX file."""
    cell, point = scored.cell, checked.point
    metadata = {"cell_id": cell.row["cell_id"], "rule": point.rule}
    onnx_graph.save_onnx(
        scored.decider,
        draft / "network.onnx",
        shape=cell.pack.images.shape[1:],
        metadata={"casting_tune": json.dumps(metadata)},
    )
    largest_onnx = _check_onnx(draft / "network.onnx", scored, point.threshold)
    checked = replace(checked, largest_onnx=largest_onnx)
    _save_weights(cell, scored.model, draft)
    _save_json(draft / "decision.json", decision(cell, threshold=point.threshold, rule=point.rule))
    text = model_card.write(cell, checked, licence=card.licence, chosen_how=card.selection)
    (draft / "README.md").write_text(text, encoding="utf-8")
    _save_sums(draft)
    return checked


def decider_of(cell: Cell, model: nn.Module) -> onnx_graph.Decider:
    """Return the model of a cell with the preparation of its images, at threshold 0.5."""
    config = cell.config
    mean, std = build.normalisation(config.backbone, config.weights)
    return onnx_graph.Decider(
        model, px=config.image_px, in_channels=config.in_channels, mean=mean, std=std
    )


def _check_stored(scored: _Scored, *, kept: bool) -> float:
    """Return the largest difference to the stored scores, in the precision of the training.

    Raises:
        StoreError: the difference is too large: these are weights of another training.
    """
    cell, score = scored.cell, scored.score
    precision = cast(Precision, cell.config.precision)
    if precision != "fp32":
        score = onnx_graph.score(
            scored.decider, cell.pack.images, cell.predictions.image, precision=precision
        )
    largest = float(np.abs(score - cell.predictions.score).max())
    allowed = STORED_TOLERANCE[precision]
    if not largest <= allowed:  # refuses NaN, too
        source = "the stored weights" if kept else "the weights of the repeated training"
        raise StoreError(
            f"Cell {cell.row['cell_id']}: {source} do not reproduce the stored scores. "
            f"Largest difference: {largest:.2g}, allowed: {allowed:g}. Export on the machine that "
            "trained the cell (with the same number of threads), or train the cell again."
        )
    return largest


def _other_decisions(scored: _Scored, threshold: float) -> int:
    """Return the number of test images whose stored score gives another decision."""
    predictions = scored.cell.predictions
    other = (scored.score >= threshold) != (predictions.score >= np.float32(threshold))
    return int(other[predictions.split == "test"].sum())


def _check_onnx(file: Path, scored: _Scored, threshold: float) -> float:
    """Return the largest difference between onnxruntime and torch.

    Raises:
        CastingTuneError: the difference is too large, or a decision differs.
    """
    cell, score = scored.cell, scored.score
    scores, decisions = onnx_graph.score_onnx(file, cell.pack.images, cell.predictions.image)
    largest = float(np.abs(scores - score).max())
    n_other = int((decisions != (score >= np.float32(threshold))).sum())
    if not largest <= ONNX_TOLERANCE or n_other:
        raise CastingTuneError(
            f"Cell {cell.row['cell_id']}: onnxruntime does not reproduce the scores of torch; "
            f"nothing was exported. Largest difference: {largest:.2g}, allowed: "
            f"{ONNX_TOLERANCE:g}; {n_other} of {len(score)} decisions differ. "
            "Try other versions of torch, onnxscript and onnxruntime."
        )
    return largest


def _point(scored: _Scored, store: Store, rule: Rule) -> OperatingPoint:
    """Choose the threshold on the validation scores of the exported network."""
    cell = scored.cell
    split, y_true = cell.predictions.split, cell.predictions.y_true
    images = {
        name: cell.predictions.image[split == name].tolist() for name in ("validation", "test")
    }
    kinds = cell.pack.kinds[cell.predictions.image]
    validation, test = (
        Scored(
            y_true[split == name],
            scored.score[split == name],
            groups=selection.photographs(store, cell.pack.dataset_id, images[name]),
            kinds=kinds[split == name],
        )
        for name in images
    )
    n_leaked = selection.leaked(
        store, cell.pack.dataset_id, images["validation"], split=cell.config.split
    )
    sides = replace(validation, n_leaked=n_leaked), test
    if rule == NO_RULE:
        return operating_point.fixed(*sides, threshold=0.5)
    return selection.choose(*sides, **asdict(rule))


def decision(cell: Cell, *, threshold: float, rule: str) -> dict[str, Any]:
    """Return the contents of decision.json: the settings for predict and explain."""
    shape, config = cell.pack.images.shape[1:], cell.config
    mean, std = build.normalisation(config.backbone, config.weights)
    same_size = (cell.pack.sizes == np.array(shape[-2:])).all()
    return {
        "version": export_folder.version(cell.pack.pixels),
        "cell_id": cell.row["cell_id"],
        "dataset_id": cell.pack.dataset_id,
        "backbone": config.backbone,
        "dense": config.dense,
        "dropout": config.dropout,
        "in_channels": config.in_channels,
        "image_px": config.image_px,
        "mean": mean,
        "std": std,
        "colour": len(shape) == 3,
        "packed_px": list(shape[-2:]),
        "letterbox_px": None if same_size else shape[-1],
        "pixels": cell.pack.pixels.record(),
        "threshold": threshold,
        "rule": rule,
        "defect": cell.pack.positive,
        "good": cell.pack.negative,
    }


def _save_weights(cell: Cell, model: nn.Module, folder: Path) -> None:
    """Write backbone, head and config.json, with which timm opens the backbone as `local-dir:`."""
    from safetensors.torch import save

    for name, file in (("backbone", "model.safetensors"), ("head", "head.safetensors")):
        part = cast("nn.Module", getattr(model, name))
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()
        }
        # not save_file, which writes with mode 0600
        (folder / file).write_bytes(save(tensors, metadata={"format": "pt"}))
    config = cell.config
    _save_json(
        folder / "config.json",
        build.local_dir_config(
            config.backbone,
            config.weights,
            in_channels=config.in_channels,
            image_px=config.image_px,
        ),
    )


def _save_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _save_sums(folder: Path) -> None:
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
