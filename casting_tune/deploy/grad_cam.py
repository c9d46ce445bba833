"""Pictures of what speaks for a defect: Grad-CAM's heat over each image, with its score and the decision.

Comes in: an export's folder or a Cell's model, and image files. Goes out: PNGs. Needs torch. The
heat says where the last maps of the network speak for a defect, as coarsely as these maps are; it
does not say why, nor that the network is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from casting_tune.data import decode
from casting_tune.deploy import export, onnx_graph, predict, retrain
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
    """One picture: its file, or the reason why there is none."""

    image: Path
    file: Path | None
    score: float | None
    reason: str = ""


def open_export(folder: Path) -> tuple[onnx_graph.Decider, dict[str, Any]]:
    """Return the torch network of an export, and what its decision.json says.

    Raises:
        UsageError: the folder is no export.
        StoreError: a file is missing, changed, or does not fit the others.
    """
    from safetensors.torch import load_file

    predict.check_sums(folder)
    told = predict.read_decision(folder)
    model = build.model(
        told["backbone"],
        weights="none",
        dense=told["dense"],
        dropout=told["dropout"],
        in_channels=told["in_channels"],
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
            f"The weights in '{folder}' do not fit '{told['backbone']}'. Export the cell again."
        ) from error
    decider = onnx_graph.Decider(
        model,
        px=told["image_px"],
        in_channels=told["in_channels"],
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
    )
    decider.threshold.fill_(told["threshold"])
    return decider, told


def open_cell(cell: Cell, store: Store) -> tuple[onnx_graph.Decider, dict[str, Any]]:
    """Return the torch network of a completed cell at threshold 0.5, trained again where the store kept no weights.

    Raises:
        UsageError: a baseline, which has no network.
    """
    if cell.config.backbone.startswith("baseline:"):
        raise UsageError(
            f"Cell {cell.row['cell_id']} is a baseline, which learns no network. Explain another one."
        )
    model, _ = retrain.trained(cell, store)
    return export.decider_of(cell, model), export.decision(cell, threshold=0.5, rule="0.5")


def explain(
    decider: onnx_graph.Decider, told: dict[str, Any], files: Sequence[Path], folder: Path
) -> Iterator[Explained]:
    """Write a PNG an image into a folder, and yield each as it is there.

    Args:
        decider: the network with its threshold.
        told: as in decision.json: `letterbox_px`, `colour`, `packed_px`.
        files: images; one that cannot be used is yielded with its reason.
        folder: where the PNGs go, numbered in the order of the images.

    Raises:
        UsageError: the network has no maps, or the folder cannot be written.
    """
    for number, file in enumerate(files, start=1):
        picture = decode.decode(file, box=told["letterbox_px"])
        reason = predict.unfit(picture, told)
        if reason or picture.pixels is None:
            yield Explained(image=file, file=None, score=None, reason=reason)
            continue
        pixels = picture.pixels
        if told["colour"] and pixels.ndim == 2:
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
    """Return the score of one image, and its heat [h', w'] in the size of the network's last maps, each 0 or more.

    ReLU of the sum over the maps A_k, each weighted by the mean over its positions of the gradient
    of the logit of "defective" (Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2). Not scaled:
    0 everywhere says that nothing in these maps speaks for a defect.

    Args:
        decider: the network.
        pixels: [h, w] gray or [3, h, w] colour, uint8.

    Raises:
        UsageError: the network gives no maps [1, c, h', w'], such as a transformer.
    """
    import torch

    backbone, head = cast(Any, decider.model.backbone), cast("torch.nn.Module", decider.model.head)
    with torch.no_grad():
        inputs = decider.prepare(torch.from_numpy(np.array(pixels))[None])
        given = backbone(inputs)
        pools_itself = given.ndim == 2  # as networks named timm:NAME do
        features = backbone.forward_features(inputs) if pools_itself else given
    if features.ndim != 4:
        raise UsageError(
            "Grad-CAM takes a network whose last layers are maps, and this one has none. Use predict."
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
    """Draw an image twice: as it is, and under its heat, which is scaled to its own largest value."""
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
        "what speaks for a defect" if largest > 0 else "nothing here speaks for a defect"
    )
    figure.suptitle(f"{decided}: score {score:.4f}, threshold {threshold:.4g}", x=0.01, ha="left")
    return figure
