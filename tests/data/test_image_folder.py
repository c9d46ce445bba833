from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from casting_tune.data.image_folder import survey
from casting_tune.data.synthetic import draw
from casting_tune.errors import ImagesError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty drawn castings of 32 px in the Kaggle layout: 16 train, 4 test."""
    draw(tmp_path / "images", n_images=20, size_px=32)
    return tmp_path / "images"


def _refused(root: Path, match: str) -> None:
    with pytest.raises(ImagesError, match=match):
        survey(root, "def_front")


def test_a_name_that_is_not_utf_8_is_refused(folder: Path) -> None:
    (folder / "train" / "ok_front" / os.fsdecode(b"gu\xdf.png")).write_bytes(b"x")
    _refused(folder, r"file name '.*gu\?\.png' is not valid UTF-8")


def test_other_and_hidden_files_are_passed_over(folder: Path) -> None:
    inside = folder / "train" / "ok_front"
    for name in ("Thumbs.db", "notes.txt", ".hidden.png", "._casting.png"):
        (inside / name).write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / "__MACOSX").mkdir()
    assert len(survey(folder, "def_front").files) == 20


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "Image folder not found")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "has no class folders")


def test_an_unknown_positive_class_is_refused_with_the_classes(folder: Path) -> None:
    with pytest.raises(
        ImagesError, match=r"Unknown positive class 'defect'.*'def_front', 'ok_front'"
    ):
        survey(folder, "defect")


def test_a_single_class_is_refused(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "ok_front")
    _refused(folder, "Exactly two class folders.*'def_front'")


def test_a_third_class_is_refused(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(folder / split / "ok_front", folder / split / "unsure")
    _refused(folder, "Exactly two class folders.*'unsure'")


def test_a_class_that_test_lacks_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "ok_front")
    _refused(folder, "missing in .*: 'ok_front'")


def test_a_class_folder_without_images_is_refused(folder: Path) -> None:
    for file in (folder / "test" / "ok_front").iterdir():
        file.rename(file.with_suffix(".txt"))
    _refused(folder, "has no .* file")


@pytest.mark.parametrize("extra", ["valid", "def_front"])
def test_a_folder_beside_train_and_test_is_refused(folder: Path, extra: str) -> None:
    (folder / extra).mkdir()
    _refused(folder, f"contains .*'{extra}'")


def test_a_folder_inside_a_class_folder_is_refused(folder: Path) -> None:
    (folder / "train" / "ok_front" / "more").mkdir()
    _refused(folder, r"images only.*'more'")


def test_train_without_test_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    _refused(folder, r"contains 'train'\.")
