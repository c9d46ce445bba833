"""A finished cell as a folder that a factory's computer can run, checked before anybody sees it.

    network.onnx        uint8 images in, score and decision out (see graph)
    decision.json       what predict must know: how images are packed, the threshold, where all this comes from
    model.safetensors   the backbone's weights, and config.json beside: timm's local-dir form
    head.safetensors    the head's weights
    README.md           the model card
    SHA256SUMS          of all the others

Comes in: a Cell, a rule for its threshold. Goes out: the folder, put in place whole, and what was
checked on the way: the weights score the stored images as the store says, and onnxruntime scores
and decides as torch does.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from casting_tune.analysis import operating_point, selection
from casting_tune.analysis.operating_point import OperatingPoint
from casting_tune.config import Epoch
from casting_tune.deploy import model_card, onnx_graph, retrain
from casting_tune.errors import CastingTuneError, StoreError, UsageError
from casting_tune.models import build
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

VERSION = 1
"""Of the form of the folder: raise it when an older predict could not run it."""

ONNX_TOLERANCE = 1e-5
"""Largest difference between a score of onnxruntime and one of torch, both float32."""

STORED_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
"""Largest difference between a score of the weights at hand and the stored one, in the training's
own precision. Other threads or another device move a float32 score by some 1e-6 and a bfloat16 one
by some 1e-2; one pixel that rounds to the other level when an image is reduced, by up to some 1e-4
(`graph`). Another training is off by far more.
"""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found true before a folder was put in place.

    Attributes:
        point: the threshold and what it does to validation and test, by the exported float32 scores.
        n_images: validation and test images that were scored.
        largest_stored: difference to a stored score, in the training's own precision.
        largest_onnx: difference between onnxruntime and torch in float32.
        n_other_decisions: stored test scores that the threshold decides otherwise than the exported ones.
        kept: whether the weights were those that the store kept; else the cell was trained again for them.
    """

    point: OperatingPoint
    n_images: int
    largest_stored: float
    largest_onnx: float
    n_other_decisions: int
    kept: bool


def export(
    cell: Cell,
    store: Store,
    folder: Path,
    *,
    max_escape: str | None = None,
    cost_escape: float | None = None,
    cost_overkill: float | None = None,
    prevalence: float | None = None,
    licence: str = "not stated",
    chosen_how: tuple[str, ...] = (),
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
) -> Checked:
    """Write a cell's network as a folder.

    Args:
        cell: a completed one that learned something.
        store: where its weights may be kept.
        folder: a new one, or an empty one.
        max_escape, cost_escape, cost_overkill, prevalence: the rule, as in `chosen.threshold`; none is threshold 0.5.
        licence: of the images, as the user states it, for the card.
        chosen_how: sentences about how the cell was chosen, for the card.
        on_epoch: told of each epoch, where the cell has to be trained again.

    Raises:
        UsageError: a baseline, a folder that is in use, a rule that cannot be meant, missing libraries.
        CastingTuneError: the scores of the weights are not the stored ones, or onnxruntime's are not torch's.
    """
    onnx_graph.check_libraries()
    if cell.config.backbone.startswith("baseline:"):
        raise UsageError(
            f"Cell {cell.row['cell_id']} is a baseline, which learns no network. Export another one."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out '{folder}' is in use. Name a new folder, or empty it.")
    rule = {
        "max_escape": max_escape,
        "cost_escape": cost_escape,
        "cost_overkill": cost_overkill,
        "prevalence": prevalence,
    }
    model, kept = retrain.trained(cell, store, on_epoch=on_epoch)
    decider = decider_of(cell, model)
    images, rows, stored = cell.pack.images, cell.predictions.image, cell.predictions.score
    score = onnx_graph.score(decider, images, rows, precision="fp32")
    precision = cast(Precision, cell.config.precision)
    same = (
        score
        if precision == "fp32"
        else onnx_graph.score(decider, images, rows, precision=precision)
    )
    largest_stored = _check_stored(cell, same, kept=kept)
    point = _point(cell, store, score, rule)
    decider.threshold.fill_(point.threshold)
    test = cell.predictions.split == "test"
    other = (score >= point.threshold) != (stored >= np.float32(point.threshold))
    checked = Checked(
        point=point,
        n_images=len(rows),
        largest_stored=largest_stored,
        largest_onnx=0.0,
        n_other_decisions=int(other[test].sum()),
        kept=kept,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            draft = Path(beside) / "export"
            draft.mkdir()
            told = {
                "casting_tune": json.dumps({"cell_id": cell.row["cell_id"], "rule": point.rule})
            }
            onnx_graph.save_onnx(decider, draft / "network.onnx", shape=images.shape[1:], told=told)
            checked = replace(
                checked,
                largest_onnx=_check_onnx(draft / "network.onnx", cell, score, point.threshold),
            )
            _save_weights(cell, model, draft)
            _save_json(
                draft / "decision.json", decision(cell, threshold=point.threshold, rule=point.rule)
            )
            text = model_card.write(
                cell, checked, precision=precision, licence=licence, chosen_how=chosen_how
            )
            (draft / "README.md").write_text(text, encoding="utf-8")
            _save_sums(draft)
            draft.replace(folder)  # an empty folder gives way
    except OSError as error:
        raise UsageError(
            f"Cannot write '{folder}': {error.strerror or error}. Name another folder."
        ) from error
    return checked


def decider_of(cell: Cell, model: nn.Module) -> onnx_graph.Decider:
    """Return a cell's model with what prepares its images, at threshold 0.5."""
    config = cell.config
    mean, std = build.normalisation(config.backbone, config.weights)
    return onnx_graph.Decider(
        model, px=config.image_px, in_channels=config.in_channels, mean=mean, std=std
    )


def _check_stored(cell: Cell, score: NDArray[np.float32], *, kept: bool) -> float:
    """Return the largest difference to the stored scores; refuse weights of another training."""
    largest = float(np.abs(score - cell.predictions.score).max())
    allowed = STORED_TOLERANCE[cell.config.precision]
    if not largest <= allowed:  # a NaN is refused too
        whence = (
            "the weights that the store keeps score"
            if kept
            else "the cell, trained again here, scores"
        )
        raise StoreError(
            f"Cell {cell.row['cell_id']}: {whence} an image by {largest:.2g} otherwise than the stored training, and "
            f"at most {allowed:g} is allowed. Export where it was trained (with as many threads), or train it anew."
        )
    return largest


def _check_onnx(file: Path, cell: Cell, score: NDArray[np.float32], threshold: float) -> float:
    """Return the largest difference between onnxruntime and torch; refuse one that matters, or another decision."""
    found, decisions = onnx_graph.score_onnx(file, cell.pack.images, cell.predictions.image)
    largest = float(np.abs(found - score).max())
    n_other = int((decisions != (score >= np.float32(threshold))).sum())
    if not largest <= ONNX_TOLERANCE or n_other:
        raise CastingTuneError(
            f"onnxruntime scores an image of cell {cell.row['cell_id']} by {largest:.2g} otherwise than torch (at most "
            f"{ONNX_TOLERANCE:g} is allowed) and decides {n_other} of {len(score)} otherwise: nothing was exported. "
            "Try other versions of torch, onnxscript and onnxruntime."
        )
    return largest


def _point(
    cell: Cell, store: Store, score: NDArray[np.float32], rule: dict[str, Any]
) -> OperatingPoint:
    """Choose the threshold on the exported network's own validation scores."""
    split, y_true = cell.predictions.split, cell.predictions.y_true
    given = [column[split == name] for name in ("validation", "test") for column in (y_true, score)]
    defects = cell.predictions.image[(split == "test") & (y_true == 1)]
    groups = selection.photographs(store, cell.pack.dataset_id, set(defects.tolist()))
    if all(value is None for value in rule.values()):
        return operating_point.fixed(*given, threshold=0.5, n_groups_defective=groups)
    return selection.choose(*given, **rule, n_groups_defective=groups)


def decision(cell: Cell, *, threshold: float, rule: str) -> dict[str, Any]:
    """Return what predict and explain must know of a network: decision.json."""
    shape, config = cell.pack.images.shape[1:], cell.config
    mean, std = build.normalisation(config.backbone, config.weights)
    alike = (cell.pack.sizes == np.array(shape[-2:])).all()
    return {
        "version": VERSION,
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
        "letterbox_px": None if alike else shape[-1],
        "threshold": threshold,
        "rule": rule,
        "defect": cell.pack.positive,
        "good": cell.pack.negative,
    }


def _save_weights(cell: Cell, model: nn.Module, folder: Path) -> None:
    """Write backbone and head, and what timm needs to open the backbone as `local-dir:`."""
    from safetensors.torch import save

    for name, file in (("backbone", "model.safetensors"), ("head", "head.safetensors")):
        part = cast("nn.Module", getattr(model, name))
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()
        }
        (folder / file).write_bytes(
            save(tensors, metadata={"format": "pt"})
        )  # save_file writes with mode 0600
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
    files = sorted(folder.iterdir())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
