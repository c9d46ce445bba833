from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casting_tune.data import decode
from casting_tune.data.image_folder import Reading
from casting_tune.data.label_conflicts import conflicts
from casting_tune.data.pack import Pack, open_pack, pack
from casting_tune.data.pixel_rules import PixelRules
from casting_tune.data.synthetic import draw
from casting_tune.errors import ImagesError, UsageError

CLASSES = ("def_front", "ok_front")
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (24, 32), dtype=np.uint8)  # [h, w]
COLOUR = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty drawn castings of 32 px in the Kaggle layout: 16 train, 4 test."""
    draw(tmp_path / "images", n_images=20, size_px=32)
    return tmp_path / "images"


def _save(image: Image.Image, file: Path, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


def _around(root: Path, image: Image.Image, name: str, **options: object) -> Path:
    """Lay out a folder: `image` as train/def_front/<name>, and three gray images of its size."""
    _save(image, root / "train" / "def_front" / name, **options)
    gray = np.asarray(image.convert("L").resize((GRAY.shape[1], GRAY.shape[0])))
    for i, rest in enumerate(("train/ok_front", "test/def_front", "test/ok_front")):
        _save(Image.fromarray(gray // 2 + np.uint8(i)), root / rest / "other.png")
    return root


def test_every_row_is_its_file(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "packs")
    files = sorted(folder.rglob("*.png"), key=lambda file: file.relative_to(folder).as_posix())
    assert packed.paths.tolist() == [file.relative_to(folder).as_posix() for file in files]
    for row, file in enumerate(files):
        assert np.array_equal(packed.images[row], np.asarray(Image.open(file)))
        assert packed.sha256[row] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert packed.splits[row] == file.parts[-3]
        assert packed.labels[row] == (file.parts[-2] == "def_front")
    assert packed.images.dtype == np.uint8
    assert packed.sizes.tolist() == [[32, 32]] * 20
    assert (packed.positive, packed.negative, packed.split_made, packed.skipped) == (
        *CLASSES,
        False,
        (),
    )


def test_nothing_of_a_pack_can_be_written_to(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "packs")
    for column in (
        packed.images,
        packed.labels,
        packed.splits,
        packed.sha256,
        packed.paths,
        packed.sizes,
    ):
        assert not column.flags.writeable


def test_the_other_class_can_be_the_positive_one(folder: Path, tmp_path: Path) -> None:
    usual, turned = (
        pack(folder, tmp_path / "packs"),
        pack(folder, tmp_path / "packs", reading=Reading(positive="ok_front")),
    )
    assert np.array_equal(turned.labels, 1 - usual.labels)
    assert (turned.positive, turned.negative) == ("ok_front", "def_front")
    assert turned.dataset_id != usual.dataset_id


def test_opening_gives_what_packing_gave(folder: Path, tmp_path: Path) -> None:
    made = pack(folder, tmp_path / "packs")
    opened = open_pack(tmp_path / "packs" / made.dataset_id)
    assert (made.root, opened.root) == (folder, None)
    for name in set(Pack.__slots__) - {"root"}:
        assert np.array_equal(getattr(made, name), getattr(opened, name)), name


def test_the_same_content_in_another_folder_is_the_same_dataset(
    folder: Path, tmp_path: Path
) -> None:
    first = pack(folder, tmp_path / "packs")
    shutil.copytree(folder, tmp_path / "elsewhere")  # new times
    shutil.move(folder, tmp_path / "renamed")
    assert pack(tmp_path / "elsewhere", tmp_path / "packs").dataset_id == first.dataset_id
    assert pack(tmp_path / "renamed", tmp_path / "other_packs").dataset_id == first.dataset_id


def _changes(folder: Path) -> dict[str, object]:
    file = sorted((folder / "train" / "ok_front").iterdir())[0]
    Image.fromarray(255 - np.asarray(Image.open(file))).save(folder / "inverted.png")
    return {
        "content": lambda: (folder / "inverted.png").replace(file),
        "label": lambda: file.replace(folder / "train" / "def_front" / file.name),
        "split": lambda: file.replace(folder / "test" / "ok_front" / file.name),
        "name": lambda: file.replace(file.with_name("renamed.png")),
        "fewer": file.unlink,
    }


@pytest.mark.parametrize("change", ["content", "label", "split", "name", "fewer"])
def test_a_change_of_the_folder_is_another_dataset(
    folder: Path, tmp_path: Path, change: str
) -> None:
    changes = _changes(folder)
    before = pack(folder, tmp_path / "packs")
    changes[change]()  # type: ignore[operator]
    after = pack(folder, tmp_path / "packs")
    assert after.dataset_id != before.dataset_id
    assert len(open_pack(tmp_path / "packs" / before.dataset_id).paths) == 20


def test_a_second_call_decodes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(folder, tmp_path / "packs")
    monkeypatch.setattr("casting_tune.data.decode.read", None)  # a call would be a TypeError
    assert pack(folder, tmp_path / "packs").dataset_id == first.dataset_id


def test_new_times_alone_are_settled_by_hashes_without_decoding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(folder, tmp_path / "packs")
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    monkeypatch.setattr("casting_tune.data.decode._upright", None)
    assert pack(folder, tmp_path / "packs").dataset_id == first.dataset_id
    monkeypatch.setattr("casting_tune.data.decode.read", None)  # the new times have been noted
    assert pack(folder, tmp_path / "packs").dataset_id == first.dataset_id


@pytest.mark.parametrize("note", ["", "{}", "[]", "no json", '{"skipped": 3}'])
def test_a_spoilt_note_only_costs_a_second_decoding(
    folder: Path, tmp_path: Path, note: str
) -> None:
    first = pack(folder, tmp_path / "packs")
    (file,) = (tmp_path / "packs" / "index").iterdir()
    file.write_text(note)
    assert pack(folder, tmp_path / "packs").dataset_id == first.dataset_id


def test_a_removed_pack_is_made_again(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "packs")
    shutil.rmtree(tmp_path / "packs" / first.dataset_id)
    assert pack(folder, tmp_path / "packs").dataset_id == first.dataset_id


def test_no_file_of_the_packs_names_the_folder_that_was_packed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "train" / "ok_front" / "bad.png").write_bytes(b"x")
    pack(folder, tmp_path / "packs", skip_bad=True)
    for file in (tmp_path / "packs").rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes()


def test_an_interrupted_packing_leaves_nothing_that_opens(folder: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "packs", on_progress=interrupt)
    assert list((tmp_path / "packs").iterdir()) == []


def test_progress_ends_at_all_images(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    pack(folder, tmp_path / "packs", on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (20, 20)


@pytest.mark.parametrize(
    "damage", ["short", "empty", "other", "manifest", "shapeless", "missing", "version"]
)
def test_a_damaged_pack_is_refused_with_a_way_out(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    lies = tmp_path / "packs" / pack(folder, tmp_path / "packs").dataset_id
    array, manifest = lies / "castings.npy", lies / "manifest.json"
    if damage == "short":
        array.write_bytes(array.read_bytes()[:-100])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "other":
        np.save(array, np.zeros((20, 16, 16), dtype=np.uint8))
    elif damage == "shapeless":
        manifest.write_text(manifest.read_text().replace('"shape"', '"form"'))
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "missing":
        array.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(ImagesError, match=r"[Rr]emove (this folder|it) and pack the images again"):
        open_pack(lies)


@pytest.mark.parametrize("name", ["manifest.json", "castings.npy"])
def test_a_pack_that_may_not_be_read_is_not_called_damaged(
    folder: Path, tmp_path: Path, name: str, refuse: Callable[[Path], None]
) -> None:
    packed = pack(folder, tmp_path)
    file = tmp_path / packed.dataset_id / name
    refuse(file)
    with pytest.raises(ImagesError, match=f"^Cannot read '{file}': permission denied"):
        open_pack(file.parent)


def test_no_message_says_to_remove_a_folder_that_never_was_a_pack(folder: Path) -> None:
    with pytest.raises(
        ImagesError, match=r"is not a pack: manifest\.json not found\. Give a folder in packs/"
    ):
        open_pack(folder)


def test_a_draft_that_a_killed_process_left_goes_after_a_day_and_not_before(
    folder: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "packs" / ".packing-old", tmp_path / "packs" / ".packing-new"
    for draft in (old, new):
        (draft / "pack").mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    pack(folder, tmp_path / "packs")
    assert (old.exists(), new.exists()) == (False, True)


def test_files_lie_in_the_order_of_their_paths_where_class_names_would_sort_otherwise(
    tmp_path: Path,
) -> None:
    for name in ("bad", "bad not"):
        for i in range(10):
            _save(
                Image.fromarray(GRAY ^ np.uint8(i + 10 * (name == "bad"))),
                tmp_path / "all" / name / f"{i}.png",
            )
    paths = pack(
        tmp_path / "all", tmp_path / "packs", reading=Reading(positive="bad")
    ).paths.tolist()
    assert paths == sorted(paths)
    assert paths[0] == "bad not/0.png"  # a space comes before a slash


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("casting_tune.data.pack.os.fsync", full)
    with pytest.raises(ImagesError, match=r"Cannot pack .*No space left"):
        pack(folder, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_disk_that_fills_while_a_picture_is_written_is_the_same_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, really = [3000], os.pwrite

    def filling(descriptor: int, content: memoryview, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = really(
            descriptor, content[: left[0]], offset
        )  # the last bytes that fit are written, as Linux does
        left[0] -= n
        return n

    monkeypatch.setattr("casting_tune.data.pack.os.pwrite", filling)
    monkeypatch.setattr("casting_tune.machine.cpus", lambda: 1)
    with pytest.raises(ImagesError, match=r"Cannot pack .*No space left"):
        pack(folder, tmp_path / "packs")
    assert list((tmp_path / "packs").iterdir()) == []


def test_packs_that_cannot_be_written_are_one_clear_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("a file")
    with pytest.raises(ImagesError, match="Cannot pack"):
        pack(folder, tmp_path / "packs")


# The split that is made


def test_two_class_folders_alone_get_a_stratified_split_that_is_recorded(tmp_path: Path) -> None:
    for label, n in (("def_front", 60), ("ok_front", 40)):
        for i in range(n):
            _save(
                Image.fromarray(GRAY ^ np.uint8(i + 100 * (label == "ok_front"))),
                tmp_path / "all" / label / f"{i}.png",
            )
    packed = pack(tmp_path / "all", tmp_path / "packs")
    assert packed.split_made
    assert np.bincount(packed.labels[packed.splits == "test"]).tolist() == [4, 6]
    assert np.bincount(packed.labels[packed.splits == "train"]).tolist() == [36, 54]
    assert open_pack(tmp_path / "packs" / packed.dataset_id).split_made


def test_files_of_both_labels_are_paired_and_none_is_left_out(folder: Path, tmp_path: Path) -> None:
    assert conflicts(pack(folder, tmp_path)) == []
    source = next((folder / "train" / "ok_front").iterdir())
    for name in ("x.png", "y.png"):
        shutil.copy(source, folder / "test" / "def_front" / name)
    assert conflicts(pack(folder, tmp_path)) == [
        ("test/def_front/x.png", f"train/ok_front/{source.name}"),
        ("test/def_front/y.png", f"train/ok_front/{source.name}"),
    ]


def test_exact_copies_stay_on_one_side_of_a_made_split(tmp_path: Path) -> None:
    for label in CLASSES:
        for i in range(60):
            _save(
                Image.fromarray(GRAY ^ np.uint8(i // 3 + 50 * (label == "ok_front"))),
                tmp_path / "all" / label / f"{i}.png",
            )
    packed = pack(tmp_path / "all", tmp_path / "packs")
    sides = [set(packed.sha256[packed.splits == side]) for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [36, 4]


def test_a_made_split_does_not_hang_on_file_names(tmp_path: Path) -> None:
    for label in CLASSES:
        for i in range(30):
            image = Image.fromarray(GRAY ^ np.uint8(i + 50 * (label == "ok_front")))
            _save(image, tmp_path / "one" / label / f"{i}.png")
            _save(image, tmp_path / "two" / label / f"{29 - i}.png")
    one, two = (pack(tmp_path / name, tmp_path / "packs") for name in ("one", "two"))
    assert dict(zip(one.sha256, one.splits, strict=True)) == dict(
        zip(two.sha256, two.splits, strict=True)
    )


# Bad files


BAD = {"cut.png": "truncated", "empty.png": "empty file", "text.jpg": "not one of JPEG"}


def _spoil(folder: Path) -> None:
    """Add the files of BAD to the good ones."""
    inside = folder / "train" / "def_front"
    whole = next(inside.iterdir()).read_bytes()
    for name, content in (
        ("cut.png", whole[:-200]),
        ("empty.png", b""),
        ("text.jpg", b"not an image"),
    ):
        (inside / name).write_bytes(content)


def test_bad_files_are_named_at_once_with_their_reasons_in_one_line(
    folder: Path, tmp_path: Path
) -> None:
    _spoil(folder)
    with pytest.raises(ImagesError, match=r"3 of 23 files .*--skip-bad") as caught:
        pack(folder, tmp_path / "packs")
    assert "\n" not in str(caught.value)
    for message, (name, reason) in zip(str(caught.value).split("; "), BAD.items(), strict=True):
        assert f"train/def_front/{name}: " in message
        assert reason in message
    assert list((tmp_path / "packs").iterdir()) == []


def test_bad_files_can_be_left_out_and_are_recorded(folder: Path, tmp_path: Path) -> None:
    without = pack(folder, tmp_path / "packs")
    _spoil(folder)
    packed = pack(folder, tmp_path / "packs", skip_bad=True)
    assert [path for path, _ in packed.skipped] == [f"train/def_front/{name}" for name in BAD]
    assert all(
        part in reason for part, (_, reason) in zip(BAD.values(), packed.skipped, strict=True)
    )
    assert packed.dataset_id == without.dataset_id  # the same images are the same dataset
    assert np.array_equal(packed.images, without.images)
    assert pack(folder, tmp_path / "packs", skip_bad=True).skipped == packed.skipped


def test_what_was_left_out_once_is_an_error_again_without_skip_bad(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "train" / "def_front" / "text.jpg").write_text("not an image")
    pack(folder, tmp_path / "packs", skip_bad=True)
    with pytest.raises(ImagesError, match=r"text\.jpg"):
        pack(folder, tmp_path / "packs")


def test_a_class_of_bad_files_only_is_refused(folder: Path, tmp_path: Path) -> None:
    for split in ("test", "train"):
        for file in (folder / split / "ok_front").iterdir():
            file.write_bytes(b"x")
    with pytest.raises(ImagesError, match="No usable image of class 'ok_front'"):
        pack(folder, tmp_path / "packs", skip_bad=True)


def test_a_test_split_of_one_class_is_packed_and_said(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test" / "ok_front")
    packed = pack(folder, tmp_path / "packs")
    assert set(packed.labels[packed.splits == "test"].tolist()) == {1}
    assert packed.notes[-1] == "The test images have no good ones: they give no overkill rate."


def test_control_characters_of_a_file_name_do_not_reach_the_message(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "train" / "def_front" / "a\x1b[31m\nb.png").write_bytes(b"x")
    with pytest.raises(ImagesError) as caught:
        pack(folder, tmp_path / "packs")
    assert "a?[31m?b.png" in str(caught.value)
    assert "\x1b" not in str(caught.value)


# From files to one array


def test_gray_images_among_colour_ones_have_three_equal_planes(tmp_path: Path) -> None:
    packed = pack(
        _around(tmp_path / "images", Image.fromarray(COLOUR), "z.png"), tmp_path / "packs"
    )
    assert packed.images.shape == (4, 3, 24, 32)
    gray = packed.images[list(packed.paths).index("train/ok_front/other.png")]
    assert np.array_equal(
        gray, np.stack([np.asarray(Image.open(tmp_path / "images/train/ok_front/other.png"))] * 3)
    )


def test_images_of_one_size_keep_it_square_or_not(tmp_path: Path) -> None:
    assert pack(
        _around(tmp_path / "images", Image.fromarray(GRAY), "a.png"), tmp_path / "packs"
    ).images.shape[1:] == (
        24,
        32,
    )


def test_mixed_sizes_are_letterboxed_onto_512(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((20, 40), 200, dtype=np.uint8))
    packed = pack(_around(tmp_path / "images", image, "z.png"), tmp_path / "packs")
    row = list(packed.paths).index("train/def_front/z.png")
    assert packed.images.shape == (4, 512, 512)
    assert packed.sizes[row].tolist() == [20, 40]
    assert (packed.images[row, 128:384] == 200).all()
    assert (packed.images[row, :128] == 0).all()
    assert (packed.images[row, 384:] == 0).all()


def test_an_odd_last_image_is_noticed(tmp_path: Path) -> None:
    root = _around(tmp_path / "images", Image.fromarray(GRAY), "a.png")
    _save(Image.fromarray(COLOUR[:10]), root / "train" / "ok_front" / "z.png")
    assert pack(root, tmp_path / "packs").images.shape == (5, 3, 512, 512)


def test_a_requested_size_is_the_longest_side(tmp_path: Path) -> None:
    root = _around(
        tmp_path / "images", Image.fromarray(np.full((24, 32), 200, dtype=np.uint8)), "a.png"
    )
    packed = pack(root, tmp_path / "packs", pixels=PixelRules(size_px=64))
    row = list(packed.paths).index("train/def_front/a.png")
    assert packed.images.shape == (4, 64, 64)
    assert (packed.images[row, 8:56] == 200).all()
    assert (packed.images[row, :8] == 0).all()
    assert packed.dataset_id != pack(root, tmp_path / "packs").dataset_id


def test_requesting_the_own_size_changes_no_pixel_and_no_id(folder: Path, tmp_path: Path) -> None:
    assert (
        pack(folder, tmp_path / "packs", pixels=PixelRules(size_px=32)).dataset_id
        == pack(folder, tmp_path / "other").dataset_id
    )


@pytest.mark.parametrize("size_px", [0, 15, 4097])
def test_a_pack_size_out_of_range_is_refused(folder: Path, tmp_path: Path, size_px: int) -> None:
    with pytest.raises(UsageError, match=f"got {size_px}"):
        pack(folder, tmp_path / "packs", pixels=PixelRules(size_px=size_px))


# The real images


def test_the_real_set_has_its_published_counts(real: Pack) -> None:
    counts = {
        (s, y): int(((real.splits == s) & (real.labels == y)).sum())
        for s in ("train", "test")
        for y in (1, 0)
    }
    assert counts == {("train", 1): 3758, ("train", 0): 2875, ("test", 1): 453, ("test", 0): 262}


def test_the_real_set_is_exactly_gray_and_equal_to_its_rgb(real_images: Path, real: Pack) -> None:
    assert real.images.shape == (7348, 300, 300)
    for row in range(0, 7348, 50):
        with Image.open(real_images / real.paths[row]) as image:
            rgb = np.asarray(image)
        assert rgb.shape == (300, 300, 3)
        assert (rgb == real.images[row][..., None]).all()


def test_64_real_test_files_are_a_good_train_file(real: Pack) -> None:
    test = real.splits == "test"
    copies = test & np.isin(real.sha256, real.sha256[~test])
    assert copies.sum() == 64
    assert real.labels[copies].sum() == 0


def test_the_real_set_is_opened_again_without_reading_an_image(
    real_images: Path, real_packs: Path, real: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read", "decode"):
        monkeypatch.delattr(decode, name)
    assert pack(real_images, real_packs).dataset_id == real.dataset_id
