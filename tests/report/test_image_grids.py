"""Image grids: the pixels, known by hand or from the training code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from casting_tune.data import augmentation
from casting_tune.data.pack import Pack
from casting_tune.errors import ImagesError, UsageError
from casting_tune.report import image_grids
from casting_tune.toggles import TOGGLES, parse_augmentation


@pytest.fixture(scope="module")
def image(packed: Pack) -> np.ndarray:
    """One gray casting of 64 px."""
    return np.array(packed.images[0])


def test_the_augmentation_grid_has_the_11_settings_of_the_study_each_once(image):
    drawn = image_grids.augmented(image, n=4, seed=0, px=64)
    assert drawn.shape == (11, 4, 64, 64, 3)
    toggles = [parse_augmentation(setting) for setting in image_grids.SETTINGS]
    assert len(set(toggles)) == 11
    assert toggles[0] == ()
    assert toggles[2] == tuple(TOGGLES)
    left_out = [set(TOGGLES) - set(on) for on in toggles[3:]]
    assert left_out[0] == {"hue", "contrast"}
    assert [off for (off,) in left_out[1:]] == [
        "shift",
        "rotation",
        "brightness",
        "shear",
        "zoom",
        "fill_mode",
        "flip",
    ]


def test_the_default_row_is_the_image_itself_in_every_column(image):
    drawn = image_grids.augmented(image, n=3, seed=5, px=64)
    assert (drawn[0] == image[None, :, :, None]).all()


def test_a_row_holds_what_the_training_pipeline_gives_for_its_setting(image):
    drawn = image_grids.augmented(image, n=3, seed=7, px=48)
    images = torch.from_numpy(np.stack([image] * 3))[:, None]
    for row, setting in enumerate(image_grids.SETTINGS):
        draws = augmentation.draw(
            parse_augmentation(setting), 3, seed=7, epoch=1, device=torch.device("cpu")
        )
        inputs = augmentation.apply(images, draws, px=48)[:, 0].numpy()
        assert np.abs(drawn[row, ..., 0] - 255 * inputs).max() <= 0.5 + 1e-4


def test_without_fill_mode_no_black_pixels_appear():
    drawn = image_grids.augmented(np.full((40, 40), 100, np.uint8), n=6, seed=0, px=40)
    black = (drawn == 0).any(axis=(1, 2, 3, 4))
    moved = [image_grids.SETTINGS[row] for row in np.flatnonzero(black)]
    assert moved == [
        name
        for name in image_grids.SETTINGS
        if name not in ("default", "only hue contrast", "no fill_mode")
    ]


def test_brightness_1_is_the_image_and_125_is_a_quarter_more(image):
    drawn = image_grids.brightened(image, px=64)[0, ..., 0]
    assert image_grids.BRIGHTNESS[2] == 1
    assert (drawn[2] == image).all()
    assert image_grids.BRIGHTNESS[-1] == 1.25
    assert np.abs(drawn[-1] - np.minimum(1.25 * image, 255)).max() <= 0.5 + 1e-4
    assert (np.diff(drawn.mean(axis=(1, 2))) > 0).all()


def test_no_hue_shift_changes_a_pixel_of_a_gray_casting(image):
    drawn = image_grids.hued(image, px=64)[1]
    assert drawn.shape == (6, 64, 64, 3)
    assert (drawn == image[None, :, :, None]).all()


def test_half_a_turn_of_the_hue_makes_red_cyan():
    patch = image_grids.hued(np.zeros((20, 20), np.uint8), px=20)[0]
    assert (patch[0] == (200, 40, 40)).all()
    assert (patch[-1] == (40, 200, 200)).all()


def test_hue_turns_a_coloured_casting():
    colour = np.zeros((3, 20, 20), np.uint8)
    colour[2] = 90
    drawn = image_grids.hued(colour, px=20)[1]
    assert (drawn[0] == (0, 0, 90)).all()
    assert (drawn[-1] == (90, 90, 0)).all()


def test_samples_are_defective_above_and_ok_below_and_none_twice(packed):
    drawn = image_grids.samples(packed, n=5, seed=0, px=64)
    assert drawn.shape == (2, 5, 64, 64, 3)
    for row, label in ((0, 1), (1, 0)):
        found = [
            np.flatnonzero(
                (packed.images == tile[..., 0]).all(axis=(1, 2)) & (packed.labels == label)
            )
            for tile in drawn[row]
        ]
        assert len({int(rows[0]) for rows in found}) == 5
    assert not np.array_equal(drawn, image_grids.samples(packed, n=5, seed=1, px=64))


def test_a_class_with_fewer_images_than_columns_gives_fewer_columns(packed):
    smaller = min(int(packed.labels.sum()), int((1 - packed.labels).sum()))
    assert image_grids.samples(packed, n=1000, seed=0, px=16).shape == (2, smaller, 16, 16, 3)


def test_a_preview_is_four_files_and_the_same_seed_gives_the_same_bytes(packed, tmp_path):
    first = image_grids.preview(packed, tmp_path / "new" / "folder", px=32)
    assert [file.name for file in first] == [
        "samples.png",
        "brightness.png",
        "hue.png",
        "augmentation.png",
    ]
    again = image_grids.preview(packed, tmp_path / "again", px=32)
    other = image_grids.preview(packed, tmp_path / "other", px=32, seed=1)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(first, other, strict=True))


def test_the_pixels_in_the_file_are_those_of_the_pipeline_one_for_one(packed, tmp_path):
    files = image_grids.preview(packed, tmp_path, px=64)
    page = np.round(255 * imread(files[0])[..., :3]).astype(np.uint8)
    for tile in image_grids.samples(packed, n=6, seed=0, px=64).reshape(-1, 64, 64, 3):
        corners = np.argwhere((page[:-63, :-63] == tile[0, 0]).all(axis=-1))
        assert any((page[y : y + 64, x : x + 64] == tile).all() for y, x in corners)


def test_the_title_says_gray_only_for_a_gray_pack(packed, tmp_path, monkeypatch):
    texts = {}

    def keep(tiles, file, *, rows, columns, title):
        texts[file.name] = title
        assert len(rows) == len(tiles)
        assert len(columns) in (0, tiles.shape[1])
        return file

    monkeypatch.setattr(image_grids, "_grid", keep)
    image_grids.preview(packed, tmp_path, px=16)
    assert "is gray and does not change" in texts["hue.png"]
    assert "0.9 to 1.1" in texts["brightness.png"]
    assert f"{len(packed.labels)} images" in texts["samples.png"]


def test_a_pack_without_a_defective_training_image_is_refused(packed, tmp_path):
    with pytest.raises(ImagesError, match="none of 'def_front'"):
        image_grids.preview(
            replace(packed, splits=np.where(packed.labels == 1, "test", "train")), tmp_path
        )


@pytest.mark.parametrize("px", [15, 601, 0, -1])
def test_a_preview_of_images_too_small_or_too_large_is_refused(packed, tmp_path, px):
    with pytest.raises(UsageError, match=f"16 to 600 for a preview; got {px}"):
        image_grids.preview(packed, tmp_path, px=px)


@pytest.mark.parametrize("name", ["$\\frac{1}{", "\x1b[31m铸件\n", "x" * 300, "", "%s {0} <b>"])
def test_class_folders_with_any_name_are_previewed(packed, tmp_path, name):
    renamed = replace(packed, positive=name, negative=f"_{name}")
    page = imread(image_grids.preview(renamed, tmp_path, px=16)[0])
    assert page.shape[1] < 1000
