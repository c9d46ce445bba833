from __future__ import annotations

import json
from pathlib import Path

import pytest

from casting_tune.data.image_folder import Reading, survey
from casting_tune.data.image_list import read
from casting_tune.errors import ImagesError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files a/0.png to a/3.png, of which only the names matter here."""
    (tmp_path / "a").mkdir()
    for i in range(4):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"x")
    return tmp_path


def _list(folder: Path, text: str, name: str = "images.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_paths_are_relative_to_the_list_whatever_their_slashes(folder: Path) -> None:
    root, rows = read(_list(folder, f"path,label\na\\0.png,ok\n./a/1.png,ok\n{folder}/a/2.png,x\n"))
    assert root == folder
    assert [row.path for row in rows] == ["a/0.png", "a/1.png", "a/2.png"]


def test_files_outside_the_folder_of_the_list_are_relative_to_their_common_folder(
    folder: Path,
) -> None:
    (folder / "lists").mkdir()
    root, rows = read(_list(folder / "lists", "path,label\n../a/0.png,ok\n../a/1.png,ok\n"))
    assert root == folder / "a"
    assert [row.path for row in rows] == ["0.png", "1.png"]


def test_further_columns_keep_their_types(folder: Path) -> None:
    line = {"path": "a/0.png", "label": 1, "line": 3, "note": None, "ok": True}
    _, (row,) = read(_list(folder, json.dumps(line) + "\n\n", "images.jsonl"))
    assert (row.name, json.loads(row.columns)) == ("1", {"line": 3, "ok": True})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("file,label\na/0.png,ok\n", r"no column 'path'.*'file', 'label'"),
        ("path,label\na/0.png,ok,more\n", "more fields than the heading"),
        ("path,label\n,ok\n", "row 1: path is empty"),
        ("path,label\nimages.csv,ok\n", "row 1: 'images.csv' is not one of"),
        ("path,label\na,ok\n", "row 1: 'a' not found"),
        ("path,label,split\na/0.png,ok,train\na/1.png,ok,\n", "row 2: 'a/1.png' has split ''"),
    ],
)
def test_a_bad_list_is_refused_with_its_rows(text: str, match: str, folder: Path) -> None:
    with pytest.raises(ImagesError, match=match):
        read(_list(folder, text))


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "images.csv").write_bytes(b"path,label\n\xff\xfe\x00")
    with pytest.raises(ImagesError, match="cannot be read as csv"):
        read(folder / "images.csv")


def test_a_good_image_with_a_kind_of_defect_is_refused(folder: Path) -> None:
    text = "path,label,kind\na/0.png,ok,none\na/1.png,ok,crack\na/2.png,bad,crack\na/3.png,bad,\n"
    with pytest.raises(ImagesError, match=r"1 good images have a kind of defect: 'a/1.png' has"):
        survey(_list(folder, text), Reading())


def test_groups_of_a_column_and_of_a_pattern_are_joined(folder: Path) -> None:
    text = "path,label,group\na/0.png,ok,x\na/1.png,bad,x\na/2.png,ok,\na/3.png,bad,\n"
    found = survey(_list(folder, text), Reading(group_pattern="a/([12])"))
    groups = [file.group for file in found.files]
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == ""
    assert found.notes[-1] == "Groups: 2 given; 1 images without one (such as 'a/3.png')."
