"""The head room: global average pooling -> [dense, ReLU] -> [dropout] -> one logit, behind any backbone.

In: a network that turns inputs into feature maps [b, c, h, w] or into pooled features [b, c].
Out: a model with the attributes `backbone` and `head`, whose forward gives logits [b].
Knows no names of backbones, no pretrained weights, no seeds.
"""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """A backbone with its head.

    Attributes:
        backbone: [b, in_channels, px, px] to maps [b, c, h, w], or to features [b, c] that it pooled itself.
        head: [b, c] to [b, 1].
    """

    def __init__(self, *, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of P(defective), [b] float32, of normalised inputs [b, in_channels, px, px]."""
        features = self.backbone(inputs)  # [b, c, h, w] or [b, c]
        pooled = features.mean((2, 3)) if features.ndim == 4 else features  # [b, c]
        logits: torch.Tensor = self.head(pooled).squeeze(1).float()  # [b]
        return logits


def make_head(n_features: int, *, dense: int, dropout: float) -> nn.Sequential:
    """Return [dense, ReLU] -> [dropout] -> one logit; a width or a rate of 0 leaves its layer out.

    Weights are drawn from torch's global generator as Keras draws those of its Dense: Glorot's
    uniform range (https://proceedings.mlr.press/v9/glorot10a.html, equation 16), biases zero.
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
