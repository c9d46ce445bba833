from __future__ import annotations

import pytest

from casting_tune import errors


def test_a_file_that_may_not_be_read_is_not_called_missing() -> None:
    assert errors.unreadable("a.csv", PermissionError(13, "Permission denied")) == (
        "Cannot read 'a.csv': permission denied. Give this account read permission."
    )
    assert errors.unreadable("a.csv", OSError(5, "Input/output error")) == (
        "Cannot read 'a.csv': Input/output error. Check the path and the disk."
    )


def test_a_near_miss_is_answered_with_the_right_spelling() -> None:
    assert errors.unknown("backbone", "resnet5", ["resnet50", "vgg16"]) == (
        "Unknown backbone 'resnet5'. Did you mean 'resnet50'?"
    )


def test_a_far_miss_is_answered_with_all_that_is_known() -> None:
    assert (
        errors.unknown("format", "xyz", ["json", "csv"])
        == "Unknown format 'xyz'. Known: csv, json."
    )


@pytest.mark.parametrize(
    ("branch", "code"),
    [
        (errors.CastingTuneError, 1),
        (errors.UsageError, 2),
        (errors.ImagesError, 4),
        (errors.WeightsError, 5),
        (errors.StoreError, 6),
        (errors.ResourcesError, 7),
    ],
)
def test_every_branch_of_the_tree_has_its_documented_exit_code(
    branch: type[errors.CastingTuneError], code: int
) -> None:
    assert branch.exit_code == code
    assert f"{branch.__name__}" in (errors.__doc__ or "")
