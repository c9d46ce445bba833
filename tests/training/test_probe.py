from __future__ import annotations

from dataclasses import replace

import pytest

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.training import inputs, memory
from casting_tune.training.image_split import count_images
from casting_tune.training.probe import probe
from casting_tune.training.records import Place

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=1,
    precision="fp32",
    dense=64,
)


def test_a_probe_counts_all_images_of_its_cell_and_says_of_which_device(packed: Pack) -> None:
    config = replace(CONFIG, batch_size=2)
    row, one = probe(config, packed, Place()), inputs.image_bytes(config, packed)
    assert one == 32 * 32
    assert row["n_images"] == len(packed.labels)
    assert row["device_memory_bytes"] > row["peak_memory_bytes"] > 0


def test_images_that_a_probe_leaves_out_are_added_to_its_peak(
    packed: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "peak", lambda _: 1_000_000)
    config = replace(CONFIG, batch_size=2)
    n_probed = sum(
        count_images(replace(config, train_images=8, test_images=inputs.EVALUATION_BATCH), packed)
    )
    added = probe(config, packed, Place())["peak_memory_bytes"] - 1_000_000
    assert added == (len(packed.labels) - n_probed) * 32 * 32 > 0
