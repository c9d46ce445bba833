"""The layer table of a network, as in Keras: layer, output shape, parameters, totals.

Input: a backbone's name, a head, an image size. Output: rows of plain values. Trains nothing and
loads no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from casting_tune.errors import UsageError
from casting_tune.models import build, input_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of the table.

    Attributes:
        name: of the layer.
        shape: of its output without the batch; maps as (height, width, channels).
        n_parameters: as Keras counts them, with batch-norm statistics.
    """

    name: str
    shape: tuple[int, ...]
    n_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The layers from input to logit, and the numbers of trainable parameters and statistics."""

    layers: tuple[Layer, ...]
    n_trainable: int
    n_statistics: int


def parse_head(text: str) -> tuple[int, bool]:
    """Return (dense, dropout) of a head such as "dense1024,dropout", "dense1024", "dropout" or "".

    Raises:
        UsageError: anything else.
    """
    dense, dropout = 0, False
    for part in filter(None, text.split(",")):
        if (match := re.fullmatch(r"dense([1-9]\d{0,4})", part)) and not dense:
            dense = int(match.group(1))
        elif part == "dropout" and not dropout:
            dropout = True
        else:
            raise UsageError(
                f"Invalid head '{text}'. Use dense1024,dropout, or one of the two parts."
            )
    return dense, dropout


def summarise(name: str, *, head: str, image_px: int, in_channels: int = 3) -> Summary:
    """List the layers of a network.

    Raises:
        UsageError: an unknown backbone, an invalid head, or too small an image.
    """
    import torch

    dense, dropout = parse_head(head)
    input_size.check_size(name, image_px)
    model = build.model(
        name, weights="none", dense=dense, dropout=0.5 * dropout, in_channels=in_channels, seed=0
    )
    trainable, statistics = build.n_parameters(model)
    backbone = cast("torch.nn.Module", model.backbone).to("meta").eval()
    maps = backbone(torch.empty(1, in_channels, image_px, image_px, device="meta"))
    n_weights, n_running = build.n_parameters(backbone)
    features = int(maps.shape[1])
    layers = [
        Layer(name="input", shape=(image_px, image_px, in_channels), n_parameters=0),
        Layer(name=name, shape=(*maps.shape[2:], features), n_parameters=n_weights + n_running),
    ]
    if maps.ndim == 4:
        layers.append(Layer(name="global_average_pooling", shape=(features,), n_parameters=0))
    if dense:
        layers.append(Layer(name="dense", shape=(dense,), n_parameters=features * dense + dense))
    if dropout:
        layers.append(Layer(name="dropout", shape=(dense or features,), n_parameters=0))
    layers.append(Layer(name="logit", shape=(1,), n_parameters=(dense or features) + 1))
    return Summary(layers=tuple(layers), n_trainable=trainable, n_statistics=statistics)
