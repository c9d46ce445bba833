from __future__ import annotations

from collections import Counter

import pytest

from casting_tune.data.given_splits import made_split, resolve
from casting_tune.data.image_folder import ImageFile


def _files(
    *parts: tuple[str, int], split: str = "", group: str = "{name}{i}", start: int = 0
) -> list[ImageFile]:
    """`n` files of each kind; "" is good."""
    return [
        ImageFile(
            path=f"{name}/{i}",
            split=split,
            label=int(bool(name)),
            kind=name,
            stamp="",
            group=group.format(name=name, i=i) if group else "",
        )
        for name, n in parts
        for i in range(start, start + n)
    ]


def _contents(files: list[ImageFile]) -> list[str]:
    return [f"{i:04}" for i in range(len(files))]


def _test_kinds(files: list[ImageFile], splits: list[str]) -> Counter[str]:
    return Counter(file.kind for file, s in zip(files, splits, strict=True) if s == "test")


def test_a_tenth_of_each_kind_is_test() -> None:
    files = _files(("crack", 40), ("dent", 20), ("", 100))
    found = _test_kinds(files, made_split(files, _contents(files)))
    assert found == {"crack": 4, "dent": 2, "": 10}


def test_rare_kinds_are_drawn_together() -> None:
    files = _files(("crack", 30), *((f"rare{i}", 1) for i in range(10)), ("", 50))
    found = _test_kinds(files, made_split(files, _contents(files)))
    assert (found["crack"], found[""]) == (3, 5)
    assert sum(found.values()) == 9


@pytest.mark.parametrize(("n", "expected"), [(1, 0), (2, 0), (3, 1), (10, 1), (20, 2)])
def test_two_defects_stay_for_training_and_validation(n: int, expected: int) -> None:
    files = _files(("crack", n), ("", 1000))
    found = _test_kinds(files, made_split(files, _contents(files)))
    assert (found["crack"], found[""]) == (expected, 100)


@pytest.mark.parametrize("size", [2, 7, 25])
def test_a_group_is_on_one_side(size: int) -> None:
    files = [
        file
        for k in range(8)
        for file in _files(("crack", size), ("", size), group=f"part{k}", start=k * size)
    ]
    splits = made_split(files, _contents(files))
    sides = {(file.group, split) for file, split in zip(files, splits, strict=True)}
    assert len(sides) == 8
    assert 1 <= sum(split == "test" for _, split in sides) <= 2


def test_groups_with_images_of_many_kinds_leave_no_class_out_of_the_test_set() -> None:
    counts = (("hole", 20), ("crack", 14), ("fray", 12), ("break", 6), ("uneven", 8), ("", 60))
    files = [
        file
        for name, n in counts
        for i in range(n)
        for file in _files((name, 1), group=f"part{i // 3}", start=i)
    ]
    for order in range(20):
        splits = made_split(files, [f"{order}, {content}" for content in _contents(files)])
        found = _test_kinds(files, splits)
        assert 1 <= found[""] < sum(found.values())
        assert len({(f.group, s) for f, s in zip(files, splits, strict=True)}) == 20


def test_train_without_defects_gives_a_new_split_that_is_said() -> None:
    files = [*_files(("", 40), split="train"), *_files(("crack", 20), ("", 20), split="test")]
    found = resolve(files, _contents(files), keep=False)
    assert _test_kinds(files, found.of) == {"crack": 2, "": 6}
    assert found.made
    assert "train images have no defective ones" in found.notes[0]
    kept = resolve(files, _contents(files), keep=True)
    assert (kept.of, kept.made) == ([file.split for file in files], False)


def test_validation_images_of_one_class_are_used_for_training_and_said() -> None:
    files = [
        *_files(("crack", 5), ("", 5), split="train"),
        *_files(("", 5), split="validation"),
        *_files(("crack", 5), ("", 5), split="test"),
    ]
    found = resolve(files, _contents(files), keep=False)
    assert Counter(found.of) == {"train": 15, "test": 10}
    assert found.notes[0].startswith("The validation images have no defective ones")


def test_a_test_split_of_one_class_is_kept_and_said() -> None:
    files = [*_files(("crack", 5), ("", 5), split="train"), *_files(("", 5), split="test")]
    found = resolve(files, _contents(files), keep=False)
    assert found.of == [file.split for file in files]
    assert found.notes == ("The test images have no defective ones: they give no escape rate.",)


def test_kinds_that_are_only_in_test_are_named() -> None:
    files = [
        *_files(("crack", 5), ("", 5), split="train"),
        *_files(("crack", 2), ("dent", 2), ("", 5), split="test"),
    ]
    assert resolve(files, _contents(files), keep=False).notes == (
        "Kinds of defects without a training image: 'dent'.",
    )
