from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from casting_tune.data.image_folder import Reading, survey
from casting_tune.data.synthetic import draw
from casting_tune.errors import ImagesError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty drawn castings of 32 px in the Kaggle layout: 16 train, 4 test."""
    draw(tmp_path / "images", n_images=20, size_px=32)
    return tmp_path / "images"


def _refused(root: Path, match: str, reading: Reading | None = None) -> None:
    with pytest.raises(ImagesError, match=match):
        survey(root, reading or Reading())


def test_a_name_that_is_not_utf_8_is_refused(folder: Path) -> None:
    (folder / "train" / "ok_front" / os.fsdecode(b"gu\xdf.png")).write_bytes(b"x")
    _refused(folder, r"file name '.*gu\?\.png' is not valid UTF-8")


def test_skipped_files_are_counted_by_reason_with_an_example(folder: Path) -> None:
    inside = folder / "train" / "ok_front"
    for name in ("Thumbs.db", "notes.txt", "more.txt", ".hidden.png", "._casting.png"):
        (inside / name).write_bytes(b"x")
    for name in ("@eaDir", ".cache", "__MACOSX", "ground_truth"):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(b"x")
    found = survey(folder, Reading())
    assert len(found.files) == 20
    assert found.notes[1] == (
        "Skipped files: 3 hidden (such as '.cache/a.png'); 2 not an image file (.txt) (such as "
        "'train/ok_front/more.txt'); 2 thumbnail or resource folder (such as '@eaDir/a.png'); 1 "
        "mask (such as 'ground_truth/a.png'); 1 system file (such as 'train/ok_front/Thumbs.db')."
    )


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "Image folder not found")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "has no images")


def test_an_unknown_positive_class_is_refused_with_the_classes(folder: Path) -> None:
    _refused(
        folder,
        r"Unknown class 'scratch'. The classes are 'def_front', 'ok_front'",
        Reading(positive="scratch"),
    )


def test_a_single_class_is_refused(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "ok_front")
    _refused(folder, r"Two classes are required.*found 'def_front' \(")


def test_a_third_class_of_no_clear_side_is_asked_for(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(folder / split / "ok_front", folder / split / "unsure")
    _refused(folder, r"Which of these 3 classes are good\?.*'unsure'")


def test_images_outside_the_class_folders_are_said(folder: Path) -> None:
    (folder / "extra").mkdir()
    shutil.copy(next((folder / "test" / "ok_front").iterdir()), folder / "extra" / "a.png")
    assert (
        "1 image outside the class folders (such as 'extra/a.png')"
        in (survey(folder, Reading()).notes[1])
    )


def test_a_folder_inside_a_class_folder_belongs_to_the_class(folder: Path) -> None:
    inside = folder / "train" / "ok_front" / "more"
    inside.mkdir()
    shutil.copy(next((folder / "test" / "ok_front").iterdir()), inside / "a.png")
    (file,) = (f for f in survey(folder, Reading()).files if "more" in f.path)
    assert (file.path, file.split, file.label) == ("train/ok_front/more/a.png", "train", 0)


def test_test_without_train_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    _refused(folder, r"no train/ next to 'test'")


def test_a_linked_folder_is_read_once(folder: Path) -> None:
    (folder / "train" / "ok_front" / "loop").symlink_to(folder / "train")
    (folder / "train" / "again").symlink_to(folder / "train" / "def_front")
    found = survey(folder, Reading())
    assert len(found.files) == 20
    assert "2 linked folder already read" in found.notes[1]


def test_a_link_to_another_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "test", tmp_path / "elsewhere")
    (folder / "test").symlink_to(tmp_path / "elsewhere")
    assert len(survey(folder, Reading()).files) == 20


def test_class_names_that_differ_in_capital_letters_are_one_class(folder: Path) -> None:
    (folder / "test" / "ok_front").rename(folder / "test" / "OK_Front")
    found = survey(folder, Reading())
    assert (found.positive, found.negative) == ("def_front", "ok_front")
    assert found.notes[1] == (
        "Class names that differ in capital letters only are one class: 'OK_Front' = 'ok_front'."
    )


def test_a_missing_class_is_explained_by_what_was_skipped(folder: Path) -> None:
    for file in (folder / "train" / "ok_front").parent.parent.rglob("ok_front/*.png"):
        file.rename(file.with_suffix(".heic"))
    _refused(folder, r"Two classes are required.*Skipped files: \d+ not an image file \(\.heic\)")
