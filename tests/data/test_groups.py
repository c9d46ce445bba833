from __future__ import annotations

from casting_tune.data.groups import joined


def test_columns_that_share_an_image_are_joined() -> None:
    parts = ["a", "a", "b", "", "c", ""]
    lots = ["", "1", "1", "2", "", "2"]
    assert joined(parts, lots).tolist() == [0, 0, 0, 1, 2, 1]


def test_an_empty_name_is_no_group() -> None:
    assert joined(["", "", ""]).tolist() == [0, 1, 2]


def test_numbers_follow_the_first_image_of_each_group() -> None:
    assert joined([7, 3, 7, 3, 1]).tolist() == [0, 1, 0, 1, 2]
