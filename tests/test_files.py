"""Whole files: the old content or the new one, and no draft left."""

from __future__ import annotations

from pathlib import Path

import pytest

from casting_tune import files


def test_a_file_is_replaced_only_when_all_is_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "note.json"
    with files.replacing(file) as draft:
        draft.write_text("old")
    with files.replacing(file) as draft:
        draft.write_text("half")
        assert file.read_text() == "old"
        assert draft.name.startswith(".")
        draft.write_text("new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_an_error_keeps_the_old_file_and_removes_the_draft(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    file.write_text("old")

    def fail() -> None:
        with files.replacing(file) as draft:
            draft.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_when_it_is_complete_and_not_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "export"

    def fail() -> None:
        with files.new_folder(folder) as draft:
            (draft / "a").write_text("1")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list((tmp_path / "above").iterdir()) == []
    folder.mkdir()  # an empty one is replaced
    with files.new_folder(folder) as draft:
        (draft / "a").write_text("2")
        assert list(folder.iterdir()) == []
    assert (folder / "a").read_text() == "2"
    with pytest.raises(OSError, match="not empty"), files.new_folder(folder):
        pass
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["export"]
