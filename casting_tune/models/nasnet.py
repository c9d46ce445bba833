"""NASNet-A Mobile, which timm does not have, built from the cells of timm's NASNet-A Large.

Input: the usual arguments of a timm network. Output: a timm network that can be created by name
after `register`. It has no pretrained weights in torch. Architecture: Zoph et al. 2018
(https://arxiv.org/abs/1707.07012), in the mobile setting of Keras (4 @ 1056): with Keras' weights
the outputs are equal. Knows no heads, sweeps or other backbones.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.layers import ConvNormAct, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.nasnet import (
    CellStem0,
    CellStem1,
    FirstCell,
    NormalCell,
    ReductionCell0,
    ReductionCell1,
)
from torch import nn

N_FEATURES = 1056
CELLS_A_STAGE = 4
STEM_CHANNELS = 32
PAD = "same"

default_cfgs = generate_default_cfgs(
    {
        "casting_nasnet_mobile": {
            "input_size": (3, 224, 224),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": 1000,
            "first_conv": "conv0.conv",
            "classifier": "last_linear",
        }
    }
)


def register() -> None:
    """Register `casting_nasnet_mobile` in timm; a second call changes nothing."""
    if not timm.is_model("casting_nasnet_mobile"):
        register_model(casting_nasnet_mobile)


def casting_nasnet_mobile(pretrained: bool = False, **timm_arguments: Any) -> nn.Module:
    """Return NASNet-A (4 @ 1056); timm requires this signature of a registered network."""
    network: nn.Module = build_model_with_cfg(
        NASNetAMobile, "casting_nasnet_mobile", pretrained, **timm_arguments
    )
    return network


class NASNetAMobile(nn.Module):
    """NASNet-A (4 @ 1056): three stages of four cells; inputs of a cell are the two before it."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = N_FEATURES
        c = N_FEATURES // 24  # 44: cells of the first stage have 6 c outputs, of the last 24 c
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)  # as in timm's cells
        self.conv0 = ConvNormAct(
            in_chans,
            STEM_CHANNELS,
            kernel_size=3,
            stride=2,
            padding=0,
            norm_layer=norm,
            apply_act=False,
        )
        self.cell_stem_0 = CellStem0(STEM_CHANNELS, num_channels=c // 4, pad_type=PAD)
        self.cell_stem_1 = CellStem1(STEM_CHANNELS, num_channels=c // 2, pad_type=PAD)
        self.stages = nn.ModuleList(
            [
                _stage(c, previous=c, current=2 * c),
                _stage(2 * c, previous=6 * c, current=8 * c),
                _stage(4 * c, previous=12 * c, current=16 * c),
            ]
        )
        self.reductions = nn.ModuleList(
            [
                ReductionCell0(6 * c, 2 * c, 6 * c, 2 * c, pad_type=PAD),
                ReductionCell1(12 * c, 4 * c, 12 * c, 4 * c, pad_type=PAD),
            ]
        )
        for cell in (self.cell_stem_0, self.cell_stem_1, *self.reductions):
            cell.comb_iter_1_left = KerasMaxPool()
            cell.comb_iter_4_right = KerasMaxPool()
        self.act = nn.ReLU()
        self.global_pool, self.head_drop, self.last_linear = create_classifier(
            N_FEATURES, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return class logits; without a classifier, pooled or unpooled features."""
        return self.forward_head(self.forward_features(inputs))

    def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the last maps after ReLU, [b, 1056, h, w]."""
        stem = self.conv0(inputs)
        previous = self.cell_stem_0(stem)
        current = self.cell_stem_1(stem, previous)
        for stage, reduction in zip(self.stages, [None, *self.reductions], strict=True):
            if reduction is not None:
                # the map before a reduction cell's output is the input of that cell
                previous, current = current, reduction(current, previous)
            for cell in stage:  # type: ignore[attr-defined]
                previous, current = current, cell(current, previous)
        maps: torch.Tensor = self.act(current)
        return maps

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return logits of maps [b, 1056, h, w], or the pooled features [b, 1056] before them."""
        features: torch.Tensor = self.head_drop(self.global_pool(maps))
        return features if pre_logits else self.last_linear(features)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        last: nn.Module = self.last_linear
        return last

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the pooling and the last layer; 0 classes is no last layer."""
        self.num_classes = num_classes
        self.global_pool, self.last_linear = create_classifier(
            N_FEATURES, num_classes, pool_type=global_pool
        )


class KerasMaxPool(nn.Module):
    """Max-pooling 3 x 3, stride 2, of maps padded with zeros, as in Keras' NASNet.

    timm pads with minus infinity. With Keras' weights (388 layers, 224 px) the last maps, of mean
    0.34, then differ by up to 0.33; with zeros they differ by 0.000003.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps [b, c, ceil(h / 2), ceil(w / 2)]; an even side is padded at the end only."""
        height, width = maps.shape[-2:]
        padded = nn.functional.pad(maps, (width % 2, 1, height % 2, 1))
        return nn.functional.max_pool2d(padded, kernel_size=3, stride=2)


def _stage(f: int, *, previous: int, current: int) -> nn.ModuleList:
    """Return one stage: cells of width f, each with 6 f output channels.

    Args:
        f: channels of each branch of a cell.
        previous: channels of the maps two cells before the stage, which are twice as large.
        current: channels of the maps directly before the stage.
    """
    widths = [current] + [6 * f] * (CELLS_A_STAGE - 1)
    first = FirstCell(previous, f // 2, current, f, pad_type=PAD)
    return nn.ModuleList(
        [first, *(NormalCell(before, f, now, f, pad_type=PAD) for before, now in pairwise(widths))]
    )
