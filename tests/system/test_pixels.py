"""Formats, depths, gray and sizes of images: what `casting-tune pack` makes of drawn files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from casting_tune.data import decode
from casting_tune.data.pack import Pack, open_pack
from tests.cli.test_main import call
from tests.data.odd_files import png16, pnm, tiff

Say = pytest.CaptureFixture[str]
PLACES = ("test/def_front", "test/ok_front", "train/def_front", "train/ok_front")  # by path
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (16, 24), dtype=np.uint8)  # [h, w]
DEEP = RNG.integers(0, 4096, (16, 24)).astype("<u2")
DEEP[0, 0] = 4095
COLOUR = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)


def saved(pixels: np.ndarray, form: str = "PNG", **how: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **how)
    return out.getvalue()


def folder(root: Path, files: list[bytes], suffix: str = "png") -> Path:
    """Lay out files: the first four in one class folder each, the others in the last one."""
    for i, content in enumerate(files):
        file = root / "images" / PLACES[min(i, 3)] / f"{i:03d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root / "images"


def packed(capsys: Say, root: Path, *words: object) -> tuple[Pack, dict[str, object]]:
    """Pack a folder with `casting-tune pack --json`; return the pack and its manifest."""
    results = root.parent / "results"
    code, out, err = call(capsys, "pack", root, "--results", results, *words, "--json")
    assert code == 0, err
    place = results / "packs" / json.loads(out)["dataset_id"]
    return open_pack(place), json.loads((place / "manifest.json").read_text())


def refused(capsys: Say, root: Path, *words: object, code: int = 4) -> str:
    """Return the one line with which `casting-tune pack` refuses a folder."""
    ended, _, err = call(capsys, "pack", root, "--results", root.parent / "results", *words)
    assert (ended, err.count("\n")) == (code, 1), err
    return err


def eight(levels: np.ndarray, top: int) -> np.ndarray:
    """Return levels of 0..top as the nearest of 0..255."""
    return np.rint(levels * (255 / top)).astype(np.uint8)


# Formats

FORMATS: dict[str, tuple[bytes, int]] = {
    "pgm": (pnm(GRAY, 255), 0),
    "pnm": (pnm(GRAY, 255), 0),
    "ppm": (pnm(np.dstack([GRAY] * 3), 255), 0),
    "gif": (saved(GRAY, "GIF"), 0),
    "jp2": (saved(GRAY, "JPEG2000"), 0),
    "avif": (saved(GRAY, "AVIF", quality=100), 3),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_format_is_packed_as_its_pixels(suffix: str, tmp_path: Path, capsys: Say) -> None:
    content, tolerance = FORMATS[suffix]
    found, manifest = packed(capsys, folder(tmp_path, [content] * 4, suffix))
    assert found.images.shape == (4, 16, 24)
    assert np.abs(found.images[0].astype(int) - GRAY).max() <= tolerance
    assert "pixels" not in manifest


def test_a_pgm_of_100_levels_uses_the_whole_range(tmp_path: Path, capsys: Say) -> None:
    levels = np.arange(101, dtype=np.uint8)[None].repeat(16, 0)
    found, _ = packed(capsys, folder(tmp_path, [pnm(levels, 100)] * 4, "pgm"))
    assert np.abs(found.images[0] - levels * 2.55).max() <= 0.51


def test_a_gif_of_two_frames_is_refused(tmp_path: Path, capsys: Say) -> None:
    frames = saved(
        GRAY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GRAY)], duration=40
    )
    err = refused(capsys, folder(tmp_path, [saved(GRAY, "GIF")] * 4 + [frames], "gif"))
    assert "train/ok_front/004.gif: 2 pictures in one file" in err


@pytest.mark.parametrize(("suffix", "name"), [("avif", "AVIF"), ("jp2", "JPEG2000")])
def test_a_format_that_this_pillow_lacks_is_named_in_one_line(
    suffix: str, name: str, tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "check_module", lambda _name: False)
    monkeypatch.setattr(features, "check_codec", lambda _name: False)
    decode.formats.cache_clear()
    try:
        err = refused(capsys, folder(tmp_path, [FORMATS[suffix][0]] * 4, suffix))
    finally:
        decode.formats.cache_clear()
    assert f"cannot read {name}: update it, or save as PNG" in err


# Depths


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16383)])
@pytest.mark.parametrize("form", [tiff, png16, lambda levels: saved(levels, "JPEG2000")])
def test_the_range_of_16_bit_files_is_found_said_and_recorded(
    bits: int, top: int, form: Callable[[np.ndarray], bytes], tmp_path: Path, capsys: Say
) -> None:
    levels = np.linspace(0, top, 16 * 24).round().astype("<u2").reshape(16, 24)
    root = folder(tmp_path, [form(levels)] * 4, "tif")
    found, manifest = packed(capsys, root)
    assert np.array_equal(found.images[0], eight(levels, top))
    assert manifest["pixels"] == {"bits": bits}
    _, out, _ = call(capsys, "pack", root, "--results", tmp_path / "results")
    assert f"16-bit files hold {bits} bits: read as 0..{top} (--bits)." in out


@pytest.mark.parametrize("first", ["dark", "8 bits", "bright"])
def test_the_range_is_that_of_the_set_and_not_of_its_first_file(
    first: str, tmp_path: Path, capsys: Say
) -> None:
    """Dark images alone would have 10 bits; an image of 8 bits has no part in it."""
    files = {"dark": png16(DEEP // 5), "8 bits": saved(GRAY), "bright": png16(DEEP)}
    order = [first, *(name for name in files if name != first), first]
    found, manifest = packed(capsys, folder(tmp_path, [files[name] for name in order]))
    expected = {"dark": eight(DEEP // 5, 4095), "8 bits": GRAY, "bright": eight(DEEP, 4095)}
    for image, name in zip(found.images, order, strict=True):
        assert np.array_equal(image, expected[name]), name
    assert manifest["pixels"] == {"bits": 12}


def test_16_bits_in_use_leave_the_dataset_id_of_version_0_1(tmp_path: Path, capsys: Say) -> None:
    levels = np.linspace(0, 65535, 16 * 24).round().astype("<u2").reshape(16, 24)
    found, manifest = packed(capsys, folder(tmp_path, [tiff(levels)] * 4, "tif"))
    assert np.array_equal(found.images[0], eight(levels, 65535))
    content = sha256(tiff(levels)).hexdigest()
    then = {
        "positive": "def_front", "paths": found.paths.tolist(), "labels": [1, 0, 1, 0],
        "splits": ["test", "test", "train", "train"], "sha256": [content] * 4,
        "sizes": [[16, 24]] * 4, "shape": [4, 16, 24], "version": 1,
    }  # fmt: skip
    assert found.dataset_id == sha256(json.dumps(then, sort_keys=True).encode()).hexdigest()[:16]
    assert "pixels" not in manifest


def test_bits_given_hold_for_dark_images_and_refuse_what_exceeds_them(
    tmp_path: Path, capsys: Say
) -> None:
    root = folder(tmp_path, [png16(DEEP // 5)] * 4)
    found, manifest = packed(capsys, root, "--bits", "12")
    assert np.array_equal(found.images[0], eight(DEEP // 5, 4095))
    assert manifest["pixels"] == {"bits": 12}
    (root / "train/ok_front/odd.png").write_bytes(png16(np.full((16, 24), 5000)))
    err = refused(capsys, root, "--bits", "12")
    assert "train/ok_front/odd.png: gray level 5,000 does not fit into 12 bits (0..4,095)" in err
    again, _ = packed(capsys, root, "--bits", "12", "--skip-bad")
    assert again.dataset_id == found.dataset_id


def test_bits_without_a_16_bit_file_are_said_to_have_no_effect(tmp_path: Path, capsys: Say) -> None:
    root = folder(tmp_path, [saved(GRAY)] * 4)
    plain, _ = packed(capsys, root)
    given, _ = packed(capsys, root, "--bits", "12")
    assert given.dataset_id == plain.dataset_id
    _, out, _ = call(capsys, "pack", root, "--results", tmp_path / "results", "--bits", "12")
    assert "--bits 12 has no effect" in out


@pytest.mark.parametrize("largest", [1023, 4095])
def test_the_largest_level_of_a_pgm_is_its_range_and_does_not_count_for_others(
    largest: int, tmp_path: Path, capsys: Say
) -> None:
    levels = DEEP % (largest + 1)
    files = [pnm(levels, largest)] * 3 + [tiff(DEEP)]
    found, manifest = packed(capsys, folder(tmp_path, files, "pgm"))
    assert np.abs(found.images[0].astype(int) - eight(levels, largest)).max() <= 1  # rounded twice
    assert np.array_equal(found.images[3], eight(DEEP, 4095))
    assert manifest["pixels"] == {"bits": 12}


def test_a_pgm_of_16_bits_that_holds_12_is_read_as_12(tmp_path: Path, capsys: Say) -> None:
    found, manifest = packed(capsys, folder(tmp_path, [pnm(DEEP, 65535)] * 4, "pgm"))
    assert np.array_equal(found.images[0], eight(DEEP, 4095))
    assert manifest["pixels"] == {"bits": 12}


def test_a_tiff_of_packed_12_bits_has_its_own_range(tmp_path: Path, capsys: Say) -> None:
    high, low = DEEP[:, ::2].astype(int) // 5, DEEP[:, 1::2].astype(int) // 5  # dark, two a triple
    triples = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=2)
    files = [tiff(triples.reshape(16, 36).astype(np.uint8), bits=12)] * 4
    found, manifest = packed(capsys, folder(tmp_path, files, "tif"))
    assert np.array_equal(found.images[0], eight(DEEP // 5, 4095))
    assert manifest["pixels"] == {"read_as": ["12 bits packed"]}


BITMAP = np.packbits(GRAY > 127, axis=1)  # [16, 3] uint8
WHITE: dict[str, tuple[bytes, np.ndarray, dict[str, object] | None]] = {
    "1 bit": (tiff(BITMAP, photometric=0, bits=1), np.where(GRAY > 127, 0, 255), None),
    "8 bits": (tiff(GRAY, photometric=0), 255 - GRAY, None),
    "12 of 16 bits": (tiff(DEEP, photometric=0), 255 - eight(DEEP, 4095), {"bits": 12}),
    "12 of 16 bits, deflate": (
        tiff(DEEP, photometric=0, deflate=True),
        255 - eight(DEEP, 4095),
        {"bits": 12},
    ),
    "16 bits": (
        tiff(DEEP * np.uint16(16), photometric=0),
        255 - eight(DEEP.astype(int) * 16, 65535),
        {},
    ),
    "16 bits, big-endian": (
        tiff((DEEP * np.uint16(16)).astype(">u2"), photometric=0),
        255 - eight(DEEP.astype(int) * 16, 65535),
        {},
    ),
}


@pytest.mark.parametrize("case", WHITE)
def test_white_is_zero_is_inverted_at_every_depth(case: str, tmp_path: Path, capsys: Say) -> None:
    content, expected, record = WHITE[case]
    found, manifest = packed(capsys, folder(tmp_path, [content] * 4, "tif"))
    assert np.array_equal(found.images[0], expected)
    recorded = None if record is None else record | {"read_as": ["WhiteIsZero, inverted"]}
    assert manifest.get("pixels") == recorded


OPAQUE = np.full_like(DEEP, 65535)
RGB16 = np.dstack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
ALPHA: dict[str, tuple[bytes, np.ndarray]] = {
    "gray PNG": (png16(np.dstack([DEEP, OPAQUE])), eight(DEEP, 4095)),
    "transparent gray PNG": (png16(np.dstack([DEEP, OPAQUE * 0])), np.zeros_like(GRAY)),
    "RGB PNG": (png16(RGB16), eight(RGB16, 4095)),
    "RGBA PNG": (png16(np.dstack([RGB16, OPAQUE])), eight(RGB16, 4095)),
    "RGB TIFF": (tiff(RGB16, photometric=2), eight(RGB16, 4095)),
    "RGB TIFF, big-endian": (tiff(RGB16.astype(">u2"), photometric=2), eight(RGB16, 4095)),
    "RGB TIFF, deflate": (tiff(RGB16, photometric=2, deflate=True), eight(RGB16, 4095)),
    "PPM": (pnm(RGB16, 65535), eight(RGB16, 4095)),
}


@pytest.mark.parametrize("case", ALPHA)
def test_16_bits_of_colour_or_alpha_that_hold_12_are_read_in_full(
    case: str, tmp_path: Path, capsys: Say
) -> None:
    """Pillow gives their upper 8 bits only: 12 bits of content would be 16 levels."""
    content, expected = ALPHA[case]
    found, manifest = packed(capsys, folder(tmp_path, [content] * 4))  # whatever the suffix
    planes = expected if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert np.array_equal(found.images[0], planes)
    assert manifest["pixels"] == {"bits": 12}


def test_a_tiff_of_16_bit_gray_with_alpha_has_a_clear_reason(tmp_path: Path, capsys: Say) -> None:
    err = refused(capsys, folder(tmp_path, [tiff(np.dstack([DEEP, OPAQUE]))] * 4, "tif"))
    assert "TIFF of a kind that Pillow cannot read: save it as gray or RGB" in err


# Gray


def nearly(distance: int) -> bytes:
    """Return a gray image whose one pixel has a red that is `distance` away, as PNG."""
    pixels = np.dstack([np.clip(GRAY, 10, 245)] * 3)
    pixels[3, 4, 0] += distance
    return saved(pixels)


@pytest.mark.parametrize(("distance", "kind"), [(1, "gray"), (2, "gray"), (3, "colour")])
def test_an_image_whose_channels_are_at_most_2_levels_apart_is_gray(
    distance: int, kind: str, tmp_path: Path, capsys: Say
) -> None:
    root = folder(tmp_path, [nearly(distance)] * 4)
    code, out, _ = call(capsys, "pack", root, "--results", tmp_path / "results")
    assert code == 0
    assert f"4 images, {kind}," in out
    assert ("4 images are nearly gray" in out) == (kind == "gray")
    found, manifest = packed(capsys, root)
    if kind == "gray":  # the weights of ITU-R 601-2, as Pillow documents
        assert found.images[0, 3, 4] == round(np.clip(GRAY, 10, 245)[3, 4] + 0.299 * distance)
    assert "pixels" not in manifest


def test_nearly_gray_images_of_a_coloured_set_keep_their_pixels(
    tmp_path: Path, capsys: Say
) -> None:
    found, manifest = packed(capsys, folder(tmp_path, [nearly(2), saved(COLOUR)] * 2))
    expected = np.asarray(Image.open(io.BytesIO(nearly(2)))).transpose(2, 0, 1)
    assert np.array_equal(found.images[0], expected)
    assert "pixels" not in manifest


def few_coloured(root: Path, n: int) -> Path:
    gray, coloured = GRAY[:8, :8], COLOUR[:8, :8]
    return folder(root, [saved(gray)] * (75 - n) + [saved(coloured)] * n)


def test_a_few_coloured_images_among_gray_ones_are_named_in_one_line(
    tmp_path: Path, capsys: Say
) -> None:
    err = refused(capsys, few_coloured(tmp_path, 7))
    assert "7 of 75 images in" in err
    names = [f"'train/ok_front/{i:03d}.png'" for i in range(68, 73)]
    assert f"are coloured, the others gray: {', '.join(names)} and 2 more. " in err
    assert "--gray" in err
    assert "--colour" in err
    assert not list((tmp_path / "results" / "packs").iterdir())


def test_a_tenth_of_coloured_images_is_a_coloured_set_and_its_gray_ones_are_counted(
    tmp_path: Path, capsys: Say
) -> None:
    root = few_coloured(tmp_path, 8)
    found, _ = packed(capsys, root)
    assert found.images.shape == (75, 3, 8, 8)
    text = "67 images are gray among coloured ones: stored with three equal channels."
    assert text in found.notes


def test_gray_and_colour_answer_the_question(tmp_path: Path, capsys: Say) -> None:
    root = few_coloured(tmp_path, 1)
    gray, manifest = packed(capsys, root, "--gray")
    assert gray.images.shape == (75, 8, 8)
    luma = COLOUR[:8, :8] @ [0.299, 0.587, 0.114]
    assert np.abs(gray.images[74] - luma).max() <= 0.51
    assert manifest["pixels"] == {"colour": "gray"}
    assert "1 image is coloured: converted to gray (--gray)." in gray.notes
    coloured, manifest = packed(capsys, root, "--colour")
    assert np.array_equal(coloured.images[74], COLOUR[:8, :8].transpose(2, 0, 1))
    assert "pixels" not in manifest


def test_colour_keeps_what_is_nearly_gray_as_version_0_1_did(tmp_path: Path, capsys: Say) -> None:
    found, _ = packed(capsys, folder(tmp_path, [nearly(2)] * 4), "--colour")
    assert found.images.shape == (4, 3, 16, 24)


# Sizes

WIDE = np.repeat(np.array([[10, 80, 160, 240]], np.uint8), 16, 0).repeat(16, 1)  # [16, 64]


def test_max_megapixels_lets_large_images_in_and_names_itself(tmp_path: Path, capsys: Say) -> None:
    """Pillow itself warns from 89 megapixels on: with errors for warnings, it would raise."""
    out = io.BytesIO()
    Image.new("1", (10_000, 9_500), 1).save(out, "PNG")
    root = folder(tmp_path, [saved(GRAY)] * 3 + [out.getvalue()])
    err = refused(capsys, root, "--pack-size", "16")
    assert "more than 25 megapixels (--max-megapixels)" in err
    found, manifest = packed(capsys, root, "--pack-size", "16", "--max-megapixels", "95")
    assert (found.images[3].max(), found.pixels.max_megapixels) == (255, 95)
    assert "pixels" not in manifest


RESIZES: dict[str, tuple[dict[str, object] | None, list[int]]] = {
    # 64 x 16 to 16 x 16: columns of the middle row
    "letterbox": (None, [10] * 3 + [80] * 4 + [160] * 4 + [240] * 4),
    "squash": ({"resize": "squash"}, [10] * 3 + [80] * 4 + [160] * 4 + [240] * 4),
    "crop": ({"resize": "crop"}, [80] * 8 + [160] * 8),
}


@pytest.mark.parametrize("how", RESIZES)
def test_a_resize_makes_the_square_that_its_name_says_and_is_recorded(
    how: str, tmp_path: Path, capsys: Say
) -> None:
    record, columns = RESIZES[how]
    root = folder(tmp_path, [saved(WIDE)] * 4)
    found, manifest = packed(capsys, root, "--pack-size", "16", "--resize", how)
    image = found.images[0]
    assert image.shape == (16, 16)
    assert manifest.get("pixels") == record
    if how == "letterbox":
        assert (image[:6] == 0).all()
        assert (image[10:] == 0).all()
        assert (image[7:9, 1] > 0).all()
        return
    assert (image == image[0]).all()  # no row is padding
    away = np.abs(image[0].astype(int) - np.repeat([10, 80, 160, 240], 4))
    if how == "squash":
        assert np.median(away) <= 10  # bicubic reduction overshoots beside an edge
    else:
        assert image[0].tolist() == columns
    assert any(f"({how})" in sentence for sentence in found.notes)


def test_a_resize_of_images_of_one_size_is_said_to_have_no_effect(
    tmp_path: Path, capsys: Say
) -> None:
    root = folder(tmp_path, [saved(WIDE)] * 4)
    plain, _ = packed(capsys, root)
    given, _ = packed(capsys, root, "--resize", "crop")
    assert given.dataset_id == plain.dataset_id
    _, out, _ = call(capsys, "pack", root, "--results", tmp_path / "results", "--resize", "crop")
    assert "--resize crop has no effect: all images have one size and keep it" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "11"], "--bits must be 8, 10, 12, 14 or 16; got 11."),
        (["--max-megapixels", "0"], "--max-megapixels must be 1 to 10,000; got 0."),
    ],
)
def test_a_rule_out_of_range_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: Say
) -> None:
    assert message in refused(capsys, folder(tmp_path, [saved(GRAY)] * 4), *words, code=2)


# Other commands


def test_the_audit_says_the_range_too(tmp_path: Path, capsys: Say) -> None:
    root = folder(tmp_path, [png16(DEEP + np.uint16(i)) for i in range(12)])
    words = ("--data", root, "--results", tmp_path / "results", "--bits", "14")
    message = "16-bit files hold 14 bits: read as 0..16383 (--bits)."
    assert message in call(capsys, "audit", *words)[1]


def test_a_rule_without_a_folder_is_refused(
    tiny: Path, tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)
    words = ("sweep", tiny, "--results", tmp_path / "results", "--bits", "12")
    code, _, err = call(capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "--bits, --resize, --max-megapixels, --gray and --colour require --data" in err
