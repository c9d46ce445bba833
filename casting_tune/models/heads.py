"""The head: global average pooling -> [dense, ReLU] -> [dropout] -> one logit, after any backbone.

Input: a network from inputs to feature maps [b, c, h, w] or to pooled features [b, c]. Output: a
model with the attributes `backbone` and `head` that returns logits [b]. Knows no names of
backbones, no pretrained weights and no seeds.
"""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """A backbone with its head.

    Attributes:
        backbone: [b, in_channels, px, px] to maps [b, c, h, w], or to pooled features [b, c].
        head: [b, c] to [b, 1].
    """

    def __init__(self, *, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits of P(defective), [b] float32, of normalised inputs [b, c, px, px]."""
        features = self.backbone(inputs)  # [b, c, h, w] or [b, c]
        pooled = features.mean((2, 3)) if features.ndim == 4 else features  # [b, c]
        logits: torch.Tensor = self.head(pooled).squeeze(1).float()  # [b]
        return logits


def make_head(n_features: int, *, dense: int, dropout: float) -> nn.Sequential:
    """Return [dense, ReLU] -> [dropout] -> one logit; a width or rate of 0 omits its layer.

    Initial weights use torch's global generator and the distribution of Keras' Dense layer: Glorot
    uniform (https://proceedings.mlr.press/v9/glorot10a.html, equation 16), biases zero.
    """
    head = nn.Sequential()
    if dense:
        head.add_module("dense", _linear(n_features, dense))
        head.add_module("relu", nn.ReLU())
    if dropout:
        head.add_module("dropout", nn.Dropout(dropout))
    head.add_module("logit", _linear(dense or n_features, 1))
    return head


def _linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
