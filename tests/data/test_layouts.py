from __future__ import annotations

import pytest

from casting_tune.data.layouts import Layout, read
from casting_tune.errors import ImagesError


def _read(*folders: str) -> Layout:
    return read([f"{folder}/{i}.png" for folder in folders for i in range(2)], "D")


def _found(layout: Layout) -> set[tuple[str, str]]:
    return {(place.split, place.name) for place in layout.places}


BOTH = {("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")}
THREE = BOTH | {("validation", "a"), ("validation", "b")}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test"), BOTH),
        (("Train", "Test"), BOTH),
        (("TRAINING", "Testing"), BOTH),
        (("train", "val", "test"), THREE),
        (("train", "valid", "test"), THREE),
        (("training", "Validation", "testing"), THREE),
        (("train", "dev", "test"), THREE),
    ],
)
@pytest.mark.parametrize("base", ["", "images/", "archive/images/"])
def test_split_folders_are_understood_in_any_case_and_depth(
    splits: tuple[str, ...], expected: set[tuple[str, str]], base: str
) -> None:
    layout = _read(*(f"{base}{split}/{name}" for split in splits for name in "ab"))
    assert _found(layout) == expected
    assert layout.folders == splits
    assert layout.base == base.removesuffix("/")
    assert {place.path.split("/")[0] for place in layout.places} == set(splits)


def test_classes_without_splits_are_understood() -> None:
    layout = _read("a", "b/deep/er", "c")
    assert _found(layout) == {("", "a"), ("", "b"), ("", "c")}
    assert layout.folders == ()


def test_splits_inside_class_folders_are_understood() -> None:
    assert _found(_read("a/train", "a/test", "b/train", "b/test")) == BOTH


def test_images_in_no_class_folder_are_outside() -> None:
    layout = read(["x/train/a/1.png", "x/train/2.png", "x/other/3.png", "x/train/b/4.png"], "D")
    assert layout.outside == ["x/other/3.png", "x/train/2.png"]
    assert [place.path for place in layout.places] == ["train/a/1.png", "train/b/4.png"]


@pytest.mark.parametrize(
    ("folders", "match"),
    [
        (("a/b/train/x", "c/train/x"), "train/ and test/ lie in 'D/a/b' and 'D/c': give one"),
        (("a/train/x", "b/good"), "lie in 'D/a', other images in 'D/b': give one"),
        (("test/a", "test/b"), "'D' has no train/ next to 'test'"),
        (("val/a", "test/b"), "'D' has no train/ next to 'test' and 'val'"),
    ],
)
def test_ambiguous_folders_are_refused_with_the_candidates(
    folders: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ImagesError, match=match):
        _read(*folders)


def test_images_without_any_class_folder_are_refused() -> None:
    with pytest.raises(ImagesError, match="'D' has no class folders"):
        read(["1.png", "2.png"], "D")
