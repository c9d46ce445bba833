"""The exported graph: from uint8 images to P(defective) and the decision.

`Decider` is the torch module, `save_onnx` writes it. Resize, normalisation, sigmoid and threshold
are in the graph, so that a user need not write them again. Knows no stores, cells or folders.
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
from casting_tune.models import build

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_PX, LARGEST_PX = 16, 65_536
"""Smallest and largest side of an image for the graph."""

_BATCH = 32
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Decider(nn.Module):
    """A model with the preparation of its images and the decision.

    Attributes:
        model: normalised inputs [b, in_channels, px, px] to logits [b].
        px: side of the input of the model.
        scale, offset: [1, in_channels, 1, 1]; inputs = images in 0..1 * scale + offset.
        threshold: float32; a score at or above it is a defect.
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
        scale, offset = build.scale_and_offset(mean, std, in_channels=in_channels)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores and decisions of images.

        Args:
            images: uint8, [n, h, w] gray or [n, 3, h, w] colour.

        Returns:
            score [n] float32, defective [n] bool.
        """
        score: torch.Tensor = self.model(self.prepare(images)).sigmoid()
        return score, score >= self.threshold

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return the inputs of the model, [n, in_channels, px, px] float32, for uint8 images."""
        pixels = images if images.ndim == 4 else images[:, None]
        return torch.addcmul(self.offset, _resize(pixels, self.px), self.scale)


def _resize(pixels: torch.Tensor, px: int) -> torch.Tensor:
    """Return [n, c, px, px] float32 in 0..1, as the evaluation of a trial does.

    A larger image is first reduced to whole levels (`batches.put`), a smaller one is enlarged
    (`augmentation.resize`). The code is repeated here because rounding turns the last bit of a
    float32 sum into a whole level: the antialiased resizes of torch and onnxruntime differ in one
    pixel of 70,000, which changed a score by 1e-4. Here the weights are those of torch in float32
    and the sums are float64, so the order of the additions has no effect.
    """
    height, width = (_reduction(pixels.shape[axis], px) for axis in (-2, -1))
    reduced = (height @ pixels.double() @ width.T).round().float()
    return interpolate(reduced / 255, (px, px), mode="bilinear", align_corners=False).clamp(max=1)


def _reduction(n: int, px: int) -> torch.Tensor:
    """Return the weights of n pixels for min(n, px) pixels; every row has sum 1.

    The triangle filter of torch's interpolate(mode="bilinear", antialias=True), operation by
    operation; the identity if nothing is reduced.

    Returns:
        [min(n, px), n] float64.
    """
    n_out = torch.sym_min(n, px)
    scale = torch.scalar_tensor(n, dtype=torch.float32) / torch.scalar_tensor(
        n_out, dtype=torch.float32
    )
    centres = scale * (torch.arange(n_out, dtype=torch.float32) + 0.5)
    distance = (torch.arange(n, dtype=torch.float32) - centres[:, None] + 0.5) * (1 / scale)
    weights = (1 - distance.abs()).clamp(min=0)
    return (weights / weights.double().sum(1, keepdim=True).float()).double()


def score(
    decider: Decider,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    precision: Literal["fp32", "bf16"],
) -> NDArray[np.float32]:
    """Return P(defective) of the packed images `rows`, [m] float32, by torch on the CPU."""
    scores = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for start in range(0, len(rows), _BATCH):
            part = torch.from_numpy(images[rows[start : start + _BATCH]])
            scores.append(decider(part)[0])
    return torch.cat(scores).numpy()


def check_libraries() -> None:
    """Raise UsageError if the libraries for an export are missing or too old."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f'An export requires {", ".join(missing)}: pip install "casting-tune[export]"'
        )
    predict.check_onnxruntime()


def save_onnx(
    decider: Decider, file: Path, *, shape: tuple[int, ...], metadata: dict[str, str]
) -> None:
    """Write the graph as one ONNX file for uint8 images [n, h, w] or [n, 3, h, w] of any n, h, w.

    Args:
        decider: the network with its threshold.
        file: path of the ONNX file.
        shape: shape of one packed image, (h, w) or (3, h, w).
        metadata: metadata of the file.
    """
    check_libraries()
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    sides = {images.ndim - 2: "height", images.ndim - 1: "width"}
    free = {
        axis: torch.export.Dim(name, min=SMALLEST_PX, max=LARGEST_PX)
        for axis, name in sides.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter of torch about itself
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
    program.model.metadata_props.update(metadata)
    program.save(file)


def score_onnx(
    file: Path, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the scores and decisions of the packed images `rows`, by onnxruntime on the CPU.

    Returns:
        score [m] float32, defective [m] bool.
    """
    session = predict.open_session(file)
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    outputs = [session.run(["score", "defective"], {"images": images[part]}) for part in parts]
    scores, decisions = (np.concatenate(column) for column in zip(*outputs, strict=True))
    return cast("NDArray[np.float32]", scores), cast("NDArray[np.bool_]", decisions)
