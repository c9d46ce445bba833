from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casting_tune.config import TrialConfig, cell_id
from casting_tune.data.image_folder import Reading
from casting_tune.data.pack import Pack, pack
from casting_tune.errors import UsageError
from casting_tune.training.image_split import count_images, split_images, validation_of

CONFIG = TrialConfig(backbone="resnet50", image_px=32, batch_size=16)


def test_one_channel_is_refused_for_colour_images(packed: Pack) -> None:
    colour = replace(packed, images=np.repeat(packed.images[:, None], 3, axis=1))
    with pytest.raises(UsageError, match="in_channels"):
        count_images(replace(CONFIG, in_channels=1), colour)


def _folder(root: Path, **classes: int) -> Path:
    rng = np.random.default_rng(list(root.name.encode()))
    for name, n in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_one_defect_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    images = pack(_folder(tmp_path / "D", ok=30, bad=1), tmp_path / "packs")
    with pytest.raises(UsageError, match=r"requires at least 2 defective image.*; got 1"):
        count_images(CONFIG, images)


@pytest.mark.parametrize(("n", "in_test"), [(2, 0), (3, 1)])
def test_two_defects_are_enough_for_training_and_validation(
    n: int, in_test: int, tmp_path: Path
) -> None:
    images = pack(_folder(tmp_path / "D", ok=30, bad=n), tmp_path / "packs")
    folds = split_images(CONFIG, images)
    assert [int(images.labels[rows].sum()) for rows in (folds.train, folds.validation)] == [1, 1]
    assert int(images.labels[folds.test].sum()) == in_test
    assert any("no defective ones" in note for note in images.notes) == (in_test == 0)


def test_a_validation_folder_is_the_validation_split_and_part_of_the_key(tmp_path: Path) -> None:
    for split, n in (("train", 8), ("valid", 4), ("test", 4)):
        _folder(tmp_path / "D" / split, ok=n, bad=n)
    images = pack(tmp_path / "D", tmp_path / "packs")
    assert validation_of(CONFIG, images) == "official"
    assert validation_of(replace(CONFIG, split="grouped"), images) == "drawn"
    official = replace(CONFIG, validation="official")
    folds = split_images(official, images)
    assert set(images.splits[folds.validation].tolist()) == {"validation"}
    assert count_images(official, images) == (16, 8, 8)
    assert count_images(CONFIG, images) == (20, 4, 8)  # drawn from train and valid together
    assert cell_id(official, "d") != cell_id(CONFIG, "d")


def test_given_groups_are_not_torn_by_a_drawn_validation(tmp_path: Path) -> None:
    source = _folder(tmp_path / "D", ok=40, bad=40)
    images = pack(source, tmp_path / "packs", reading=Reading(group_pattern=r"(\d)\d*\.png"))
    assert images.groups is not None
    folds = split_images(CONFIG, images)
    sides = [set(images.groups[rows].tolist()) for rows in (folds.train, folds.validation)]
    assert not sides[0] & sides[1]
