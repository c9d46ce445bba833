from __future__ import annotations

from pathlib import Path

import pytest

from casting_tune.data.walk import MASK, Walked, sentence, walk


def _tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def _paths(walked: Walked) -> list[str]:
    return [file.path for file in walked.files]


@pytest.mark.parametrize(
    ("paths", "masks"),
    [
        (("a/1.jpg", "a/1.png", "a/2.jpg", "a/2.png"), ["a/1.png", "a/2.png"]),
        (("a/1.jpg", "a/1.png", "a/2.png"), []),  # 2.png has no image: the PNG files are images
        (("a/1.png", "a/2.png"), []),
        (("a/1.jpg", "b/1.png"), []),  # in another folder
        (("a/1.png", "a/1_GT.png", "a/2.png"), ["a/1_GT.png"]),
        (("a/Part0.jpg", "a/Part0_label.bmp"), ["a/Part0_label.bmp"]),
        (("a/1_mask.png", "a/2.png"), []),  # no image 1
        (("masks/1.png", "a/1.png"), ["masks/1.png"]),
    ],
)
def test_masks_are_told_from_images(
    paths: tuple[str, ...], masks: list[str], tmp_path: Path
) -> None:
    found = walk(_tree(tmp_path, *paths))
    assert _paths(found) == sorted({*paths} - {*masks})
    assert [(one.reason, one.n) for one in found.skipped] == [(MASK, len(masks))] * bool(masks)


def test_a_folder_that_the_user_names_is_no_mask(tmp_path: Path) -> None:
    _tree(tmp_path, "mask/1.png", "no_mask/1.png")
    assert _paths(walk(tmp_path)) == ["no_mask/1.png"]
    assert _paths(walk(tmp_path, named=["mask"])) == ["mask/1.png", "no_mask/1.png"]


def test_masks_among_files_can_be_kept(tmp_path: Path) -> None:
    _tree(tmp_path, "1.jpg", "1.png")
    assert _paths(walk(tmp_path, with_masks=True)) == ["1.jpg", "1.png"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _tree(tmp_path, "a/1.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    found = walk(tmp_path)
    assert _paths(found) == ["a/1.png"]
    assert sentence(found.skipped) == (
        "Skipped files: 1 linked folder already read (such as 'a/b')."
    )


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    _tree(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    assert sentence(walk(tmp_path).skipped) == "Skipped files: 1 empty folder (such as 'b')."


def test_a_folder_that_cannot_be_read_is_an_error_or_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(PermissionError):
        walk(tmp_path)
    errors: list[OSError] = []
    assert _paths(walk(tmp_path, on_error=errors.append)) == []
    assert len(errors) == 1


def test_control_characters_of_a_name_do_not_reach_the_sentence(tmp_path: Path) -> None:
    assert "such as 'a?[31m.txt'" in sentence(walk(_tree(tmp_path, "a\x1b[31m.txt")).skipped)
