"""The network as it leaves the lab: uint8 images go in, P(defective) and the decision come out, in one graph.

Comes in: a trained model and how its images are prepared. Goes out: a Decider (a torch module), its
scores, and its ONNX file. Resize, normalisation, sigmoid and threshold are inside, so that nobody
has to write them a second time. Knows no stores, cells or folders.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from casting_tune.deploy import predict
from casting_tune.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_PX, LARGEST_PX = 16, 8192
"""Sides of the images that the graph takes."""

_BATCH = 32
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Decider(nn.Module):
    """A model with everything before and behind it.

    Attributes:
        model: normalised inputs [b, in_channels, px, px] to logits [b].
        px: side of the model's input.
        scale, offset: [1, in_channels, 1, 1]; inputs = images in 0..1 * scale + offset.
        threshold: float32; a score that reaches it is a defect.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    threshold: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        px: int,
        in_channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.px = px
        means, stds = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
        if in_channels == 1:
            means, stds = means.mean(1, keepdim=True), stds.mean(1, keepdim=True)
        self.register_buffer("scale", 1 / stds)
        self.register_buffer("offset", -means / stds)
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (score [n] float32, defective [n] bool) of uint8 images, [n, h, w] gray or [n, 3, h, w] colour."""
        score: torch.Tensor = self.model(self.prepare(images)).sigmoid()
        return score, score >= self.threshold

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's inputs, [n, in_channels, px, px] float32, of uint8 images as `forward` takes them."""
        pixels = images if images.ndim == 4 else images[:, None]
        return torch.addcmul(self.offset, _resize(pixels, self.px), self.scale)


def _resize(pixels: torch.Tensor, px: int) -> torch.Tensor:
    """Return [n, c, px, px] float32 in 0..1, as evaluation in a trial has it.

    What is larger is first reduced to whole levels (`loader.put`), what is smaller is then enlarged
    (`augment.resize`). Written out again, since rounding to whole levels turns the last bit of a
    float32 sum into a whole level: torch's and onnxruntime's own antialiased resizes differ so in
    one pixel of 70,000, which moved a score by 1e-4. The weights here are torch's, float32, and the
    sums float64: the order in which a library adds no longer shows.
    """
    height, width = (_reduction(pixels.shape[axis], px) for axis in (-2, -1))
    reduced = (height @ pixels.double() @ width.T).round().float()
    return interpolate(reduced / 255, (px, px), mode="bilinear", align_corners=False).clamp(max=1)


def _reduction(n: int, px: int) -> torch.Tensor:
    """Return the weights of n pixels in each of min(n, px), [min(n, px), n] float64, each row with sum 1.

    The triangle filter of torch's interpolate(mode="bilinear", antialias=True), operation by
    operation; the identity where nothing is reduced.
    """
    n_out = torch.sym_min(n, px)
    scale = torch.scalar_tensor(n, dtype=torch.float32) / torch.scalar_tensor(
        n_out, dtype=torch.float32
    )
    centres = scale * (torch.arange(n_out, dtype=torch.float32) + 0.5)
    away = (torch.arange(n, dtype=torch.float32) - centres[:, None] + 0.5) * (1 / scale)
    weights = (1 - away.abs()).clamp(min=0)
    return (weights / weights.double().sum(1, keepdim=True).float()).double()


def score(
    decider: Decider,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    precision: Literal["fp32", "bf16"],
) -> NDArray[np.float32]:
    """Return P(defective) of some packed images, [m] float32, computed by torch on the CPU."""
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for start in range(0, len(rows), _BATCH):
            part = torch.from_numpy(images[rows[start : start + _BATCH]])
            found.append(decider(part)[0])
    return torch.cat(found).numpy()


def check_libraries() -> None:
    """Raise UsageError where the libraries of an export are not installed, or are too old."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f'An export needs {", ".join(missing)}: pip install "casting-tune[export]"'
        )
    predict.check_onnxruntime()


def save_onnx(
    decider: Decider, file: Path, *, shape: tuple[int, ...], told: dict[str, str]
) -> None:
    """Write the graph as ONNX: one file, images [n, h, w] or [n, 3, h, w] uint8 with n, h and w free.

    Args:
        decider: with its threshold set.
        file: where it goes.
        shape: of one packed image, (h, w) or (3, h, w).
        told: what stands in the file's metadata.
    """
    check_libraries()
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    sides = {images.ndim - 2: "height", images.ndim - 1: "width"}
    free = {
        axis: torch.export.Dim(name, min=SMALLEST_PX, max=LARGEST_PX)
        for axis, name in sides.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            decider.eval(),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=4096), **free},),
            input_names=["images"],
            output_names=["score", "defective"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(told)
    program.save(file)


def score_onnx(
    file: Path, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (score [m] float32, defective [m] bool) of some packed images, computed by onnxruntime on the CPU."""
    session = predict.open_session(file)
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    found = [session.run(["score", "defective"], {"images": images[part]}) for part in parts]
    scores, decisions = (np.concatenate(column) for column in zip(*found, strict=True))
    return cast("NDArray[np.float32]", scores), cast("NDArray[np.bool_]", decisions)
