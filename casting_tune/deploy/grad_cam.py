"""Grad-CAM heat maps: the regions of an image that point to a defect, with score and decision.

Requires torch. A heat map has the coarse resolution of the last feature maps of the network. It
shows where evidence for a defect is, not why, and not that the network is correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from casting_tune.config import BASELINE
from casting_tune.deploy import export, export_folder, onnx_graph, predict, retrain
from casting_tune.errors import StoreError, UsageError, unreadable
from casting_tune.models import build
from casting_tune.report import mpl_style
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One picture: its file, or the reason why it is missing."""

    image: Path
    file: Path | None
    score: float | None
    reason: str = ""


def open_export(folder: Path) -> tuple[onnx_graph.Decider, dict[str, Any]]:
    """Return the torch network of an export, and the contents of its decision.json.

    Raises:
        UsageError: the folder is not an export.
        StoreError: a file is missing or changed, or does not fit the others.
    """
    from safetensors.torch import load_file

    export_folder.check_sums(folder)
    settings = export_folder.read_decision(folder)
    model = build.model(
        settings["backbone"],
        weights="none",
        dense=settings["dense"],
        dropout=settings["dropout"],
        in_channels=settings["in_channels"],
        seed=0,
    )
    parts = {"backbone": "model.safetensors", "head": "head.safetensors"}
    try:
        for name, file in parts.items():
            cast("torch.nn.Module", getattr(model, name)).load_state_dict(load_file(folder / file))
    except OSError as error:
        raise StoreError(unreadable(folder, error)) from error
    except RuntimeError as error:
        raise StoreError(
            f"The weights in '{folder}' do not fit '{settings['backbone']}'. Export the cell again."
        ) from error
    decider = onnx_graph.Decider(
        model,
        px=settings["image_px"],
        in_channels=settings["in_channels"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    decider.threshold.fill_(settings["threshold"])
    return decider, settings


def open_cell(cell: Cell, store: Store) -> tuple[onnx_graph.Decider, dict[str, Any]]:
    """Return the torch network of a completed cell at threshold 0.5, with its settings.

    The cell is trained again if the store has no weights.

    Raises:
        UsageError: the cell is a baseline without a network.
    """
    if cell.config.backbone.startswith(BASELINE):
        raise UsageError(
            f"Cell {cell.row['cell_id']} is a baseline without a network. Explain another cell."
        )
    model, _ = retrain.trained(cell, store)
    return export.decider_of(cell, model), export.decision(cell, threshold=0.5, rule="0.5")


def explain(
    decider: onnx_graph.Decider, settings: dict[str, Any], files: Sequence[Path], folder: Path
) -> Iterator[Explained]:
    """Write one PNG per image into a folder, and yield each when it is written.

    Args:
        decider: the network with its threshold.
        settings: as in decision.json: `letterbox_px`, `pixels`, `colour`, `packed_px`.
        files: images; one that cannot be used is yielded with a reason.
        folder: folder for the PNGs, numbered in the order of the images.

    Raises:
        UsageError: the network has no feature maps, or the folder cannot be written.
    """
    for number, file in enumerate(files, start=1):
        picture = predict.opened(file, settings)
        reason = predict.unfit(picture, settings)
        if reason or picture.pixels is None:
            yield Explained(image=file, file=None, score=None, reason=reason)
            continue
        pixels = picture.pixels
        if settings["colour"] and pixels.ndim == 2:
            pixels = np.stack([pixels] * 3)
        score, heat = grad_cam(decider, pixels)
        with mpl_style.style():
            figure = _draw(
                pixels, heat, score=score, threshold=float(decider.threshold), name=file.name
            )
            out = mpl_style.save(figure, folder / f"{number:04d}-{file.stem[:100]}.png")
        yield Explained(image=file, file=out, score=score)


def grad_cam(
    decider: onnx_graph.Decider, pixels: NDArray[np.uint8]
) -> tuple[float, NDArray[np.float32]]:
    """Return the score of one image, and its heat map.

    The heat is the ReLU of the sum over the feature maps A_k, each weighted by the mean over its
    positions of the gradient of the logit of "defective" (Selvaraju et al., "Grad-CAM", 2017,
    equations 1 and 2). It is not scaled: 0 everywhere means no evidence for a defect.

    Args:
        decider: the network.
        pixels: [h, w] gray or [3, h, w] colour, uint8.

    Returns:
        The score in 0..1, and the heat [h', w'], 0 or more, in the size of the last feature maps.

    Raises:
        UsageError: the network has no feature maps [1, c, h', w'], for example a transformer.
    """
    import torch

    backbone, head = cast(Any, decider.model.backbone), cast("torch.nn.Module", decider.model.head)
    with torch.no_grad():
        inputs = decider.prepare(torch.from_numpy(np.array(pixels))[None])
        output = backbone(inputs)
        pools_itself = output.ndim == 2  # as networks named timm:NAME do
        features = backbone.forward_features(inputs) if pools_itself else output
    if features.ndim != 4:
        raise UsageError(
            "Grad-CAM requires a network with feature maps; this one has none. Use predict."
        )
    maps = features.detach().requires_grad_()
    pooled = backbone.forward_head(maps.clone()) if pools_itself else maps.mean((2, 3))
    logit = head(pooled).squeeze(1).float()
    (gradient,) = torch.autograd.grad(logit.sum(), maps)
    heat = torch.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1))[0]
    return float(logit.detach().sigmoid()), heat.detach().numpy()


def _draw(
    pixels: NDArray[np.uint8],
    heat: NDArray[np.float32],
    *,
    score: float,
    threshold: float,
    name: str,
) -> Figure:
    """Draw an image unchanged and under its heat map, scaled to the largest value of the map."""
    from matplotlib.figure import Figure

    shown = pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)
    figure = Figure(figsize=(8, 4.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    box = (-0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5, -0.5)
    for axes in (left, right):
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    largest = float(heat.max())
    if largest > 0:
        scaled = heat / largest
        right.imshow(
            scaled, cmap="inferno", alpha=0.55, extent=box, interpolation="bilinear", vmin=0, vmax=1
        )
    decided = "defective" if np.float32(score) >= np.float32(threshold) else "ok"
    left.set_title(mpl_style.name(name))
    right.set_title(
        "regions that point to a defect" if largest > 0 else "no region points to a defect"
    )
    figure.suptitle(f"{decided}: score {score:.4f}, threshold {threshold:.4g}", x=0.01, ha="left")
    return figure
