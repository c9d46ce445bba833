from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from casting_tune.data.synthetic import DEFECTS, casting, draw
from casting_tune.errors import ImagesError, UsageError


def _content(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, n_images=400, size_px=150, seed=0)
    return folder


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(folder.rglob("*.png"))
    labels = np.array([file.parent.name == "def_front" for file in files])
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(np.float32), labels


def test_the_layout_and_the_counts_are_those_of_the_real_set_in_small(drawn: Path) -> None:
    counts = {
        f"{split}/{name}": len(list((drawn / split / name).iterdir()))
        for split in ("train", "test")
        for name in ("def_front", "ok_front")
    }
    assert counts == {
        "train/def_front": 182,
        "train/ok_front": 138,
        "test/def_front": 46,
        "test/ok_front": 34,
    }


def test_every_defect_is_drawn_about_as_often(drawn: Path) -> None:
    names = [file.name for file in (drawn / "train" / "def_front").iterdir()]
    assert sorted(sum(name.startswith(defect) for name in names) for defect in DEFECTS) == [
        45,
        45,
        46,
        46,
    ]


def test_the_files_are_gray_squares_of_the_requested_size(drawn: Path) -> None:
    with Image.open(next((drawn / "test" / "ok_front").iterdir())) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (150, 150))


def test_no_two_castings_are_alike(drawn: Path) -> None:
    assert len(set(_content(drawn).values())) == 400


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw(tmp_path / name, n_images=12, size_px=64, seed=seed)
    assert _content(tmp_path / "a") == _content(tmp_path / "b")
    assert not set(_content(tmp_path / "a").values()) & set(_content(tmp_path / "c").values())


def test_progress_counts_up_to_all_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    draw(
        tmp_path,
        n_images=11,
        size_px=32,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 11) for done in range(1, 12)]


def test_mean_brightness_tells_nothing_of_the_label(drawn: Path) -> None:
    images, labels = _read(drawn)
    auc = roc_auc_score(labels, images.mean(axis=(1, 2)))
    assert (
        abs(auc - 0.5) < 0.1
    )  # three standard errors at 228 and 172 images are .09; the real set has .88


def test_local_contrast_on_the_flange_tells_something_of_the_label(drawn: Path) -> None:
    images, labels = _read(drawn)
    smooth = [
        Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.BoxBlur(3)) for image in images
    ]
    detail = np.abs(images - np.stack([np.asarray(image) for image in smooth]))
    axis = np.arange(150) - 74.5
    middle = np.hypot(axis[:, None], axis[None, :]) / 150  # the flange goes from about .28 to .41
    contrast = np.percentile(detail[:, (middle > 0.31) & (middle < 0.34)], 99, axis=1)
    assert roc_auc_score(labels, contrast) > 0.65


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size_px", [64, 300])
def test_a_defect_changes_a_small_part_of_the_casting(defect: str, size_px: int) -> None:
    for seed in range(10):
        sound = casting(np.random.default_rng(seed), size_px=size_px, defect=None)
        image = casting(np.random.default_rng(seed), size_px=size_px, defect=defect)
        assert image.shape == (size_px, size_px)
        assert image.dtype == np.uint8
        # What follows the defect is drawn anew, so both are brought to one brightness before they
        # are compared.
        levels = [(i - i.mean()) / i.std() for i in (sound.astype(float), image.astype(float))]
        assert 0.0005 < (np.abs(levels[0] - levels[1]) > 0.5).mean() < 0.1


def test_an_unknown_defect_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown defect 'rust'"):
        casting(np.random.default_rng(0), size_px=64, defect="rust")


@pytest.mark.parametrize(("name", "value"), [("n_images", 9), ("size_px", 31), ("seed", -1)])
def test_a_number_out_of_range_is_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{name} must be at least .* got {value}"):
        draw(tmp_path, **{name: value})


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ImagesError, match="is not empty"):
        draw(tmp_path, n_images=10, size_px=32)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImagesError, match="Cannot write castings"):
        draw(tmp_path / "file", n_images=10, size_px=32)
