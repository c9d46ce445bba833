from __future__ import annotations

from typing import Literal

import pytest
import torch

from casting_tune.config import TrialConfig
from casting_tune.training import inputs


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize(("channels", "in_channels"), [(1, 3), (3, 3), (1, 1)])
def test_inputs_are_normalised_with_the_backbones_own_mean_and_spread(
    layout: Literal["channels_last", "contiguous"], channels: int, in_channels: Literal[1, 3]
) -> None:
    config = TrialConfig(backbone="resnet50", in_channels=in_channels, layout=layout)
    images = torch.rand(2, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    normalised = inputs.normaliser(config, torch.device("cpu"))(images)
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    if in_channels == 1:
        mean, std = mean.mean(), std.mean()
    torch.testing.assert_close(
        normalised, ((images - mean) / std).expand(-1, in_channels, -1, -1), rtol=0, atol=1e-5
    )
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert normalised.is_contiguous(memory_format=order)
