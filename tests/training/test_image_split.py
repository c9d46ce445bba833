from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.errors import UsageError
from casting_tune.training.image_split import count_images

CONFIG = TrialConfig(backbone="resnet50", image_px=32, batch_size=16)


def test_one_channel_is_refused_for_colour_images(packed: Pack) -> None:
    colour = replace(packed, images=np.repeat(packed.images[:, None], 3, axis=1))
    with pytest.raises(UsageError, match="in_channels"):
        count_images(replace(CONFIG, in_channels=1), colour)
