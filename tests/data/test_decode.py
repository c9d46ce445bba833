from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casting_tune.data.decode import Picture, decode

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (24, 32), dtype=np.uint8)  # [h, w]
COLOUR = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def _decoded(file: Path, image: Image.Image, **options: object) -> np.ndarray:
    """Save an image and return what is decoded from it: [h, w], or [3, h, w] if colour is there."""
    image.save(file, **options)
    pixels = decode(file, box=None).pixels
    assert pixels is not None
    assert pixels.dtype == np.uint8
    return pixels


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.webp", "a.PNG"])
def test_gray_survives_every_lossless_format(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(_decoded(tmp_path / name, Image.fromarray(GRAY), **options), GRAY)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_colour_is_kept_as_three_planes(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    pixels = _decoded(tmp_path / name, Image.fromarray(COLOUR), **options)
    assert np.array_equal(pixels, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_gray_jpeg_stored_as_colour_is_one_plane_equal_to_its_rgb(
    tmp_path: Path, name: str, subsampling: int
) -> None:
    image = Image.fromarray(GRAY).convert("RGB")
    pixels = _decoded(tmp_path / name, image, quality=80, subsampling=subsampling)
    rgb = np.asarray(Image.open(tmp_path / name))
    assert rgb.shape == (24, 32, 3)
    assert np.array_equal(pixels[..., None].repeat(3, axis=-1), rgb)


@pytest.mark.parametrize("keep_rgb", [False, True])
def test_a_colour_jpeg_is_equal_to_its_rgb(tmp_path: Path, keep_rgb: bool) -> None:
    pixels = _decoded(tmp_path / "a.jpg", Image.fromarray(COLOUR), quality=90, keep_rgb=keep_rgb)
    rgb = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(pixels, rgb.transpose(2, 0, 1))


def test_a_gray_jpeg_stored_as_r_g_b_is_one_plane(tmp_path: Path) -> None:
    image = Image.fromarray(GRAY).convert("RGB")
    pixels = _decoded(tmp_path / "a.jpg", image, quality=90, keep_rgb=True)
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a.jpg"))[..., 0])


def test_one_coloured_pixel_is_colour(tmp_path: Path) -> None:
    pixels = np.stack([GRAY] * 3, axis=-1)
    pixels[3, 4, 2] ^= 4
    assert np.array_equal(
        _decoded(tmp_path / "a.png", Image.fromarray(pixels)), pixels.transpose(2, 0, 1)
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path, name: str) -> None:
    levels = np.linspace(0, 65535, 24 * 32).round().astype(np.uint16).reshape(24, 32)
    pixels = _decoded(tmp_path / name, Image.fromarray(levels))
    assert np.abs(pixels - levels / 257).max() <= 0.5


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    alpha = np.zeros((24, 32), dtype=np.uint8)
    alpha[:, 16:] = 255
    pixels = _decoded(tmp_path / "a.png", Image.fromarray(np.dstack([COLOUR, alpha])))
    assert (pixels[:, :, :16] == 0).all()
    assert np.array_equal(pixels[:, :, 16:], COLOUR.transpose(2, 0, 1)[:, :, 16:])


def test_a_gray_image_with_alpha_stays_one_plane(tmp_path: Path) -> None:
    half = np.full_like(GRAY, 128)
    pixels = _decoded(tmp_path / "a.png", Image.fromarray(np.dstack([GRAY, half])))
    assert np.abs(pixels - GRAY * (128 / 255)).max() <= 1


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(_decoded(tmp_path / "a.png", image), expected)


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    image = Image.fromarray(GRAY > 127)
    assert np.array_equal(_decoded(tmp_path / "a.png", image), np.where(GRAY > 127, 255, 0))


def test_cmyk_is_turned_into_rgb(tmp_path: Path) -> None:
    pixels = _decoded(tmp_path / "a.jpg", Image.new("CMYK", (32, 24), (0, 255, 255, 0)), quality=95)
    assert np.abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_the_exif_turn_is_applied_once(tmp_path: Path, name: str) -> None:
    bright_left = np.zeros((32, 24), dtype=np.uint8)
    bright_left[:, :12] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter, so that left becomes top
    pixels = _decoded(tmp_path / name, Image.fromarray(bright_left), exif=exif)
    assert pixels.shape == (24, 32)
    assert pixels[:10].mean() > 190
    assert pixels[14:].mean() < 10


def test_a_picture_tells_the_hash_and_the_size_of_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # a quarter turn
    Image.fromarray(GRAY).save(tmp_path / "a.png", exif=exif)
    picture = decode(tmp_path / "a.png", box=16)
    assert picture.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert (picture.size, picture.reason) == ((32, 24), "")


@pytest.mark.parametrize("shape", [(20, 40), (10, 20), (40, 80)])
def test_a_box_holds_the_picture_in_the_middle_of_black(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    Image.fromarray(np.full(shape, 200, dtype=np.uint8)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", box=40).pixels
    assert pixels is not None
    assert pixels.shape == (40, 40)
    assert (pixels[10:30] == 200).all()
    assert (pixels[:10] == 0).all()
    assert (pixels[30:] == 0).all()


def test_a_picture_thinner_than_a_pixel_keeps_one(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 400), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", box=16).pixels
    assert pixels is not None
    assert (pixels.max(axis=1) == 200).sum() == 1


# Bad files


def _reason(file: Path) -> str:
    picture = decode(file, box=None)
    assert picture.pixels is None
    assert picture.size == (0, 0)
    return picture.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image", "not one of JPEG, PNG, BMP, TIFF, WEBP, GIF, PPM"),
        (b"%PDF-1.7" + bytes(50), "not one of JPEG, PNG, BMP, TIFF, WEBP, GIF, PPM"),
    ],
)
def test_what_is_no_image_is_reported_as_such(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert _reason(tmp_path / "a.png").startswith(reason)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp", "a.webp"])
def test_a_cut_file_gives_no_half_picture(tmp_path: Path, name: str) -> None:
    Image.fromarray(COLOUR).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    reason = _reason(tmp_path / name)
    assert reason
    assert reason.isprintable()


@pytest.mark.parametrize("side", [5001, 10_000, 14_000])
def test_a_vast_picture_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    """Pillow itself warns from 89 megapixels on and raises from 179."""
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert "more than 25 megapixels" in _reason(tmp_path / "a.png")


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    page = Image.fromarray(GRAY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    assert _reason(tmp_path / "a.tif") == "2 pictures in one file"


def test_gray_levels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in _reason(tmp_path / "a.tif")
    Image.fromarray(GRAY.astype(np.int32) * 1000).save(tmp_path / "a.tif")
    assert "outside 16 bits" in _reason(tmp_path / "a.tif")


def test_a_file_that_cannot_be_read_is_reported_as_such(tmp_path: Path) -> None:
    assert decode(tmp_path / "nowhere.png", box=None) == Picture(
        "", reason="cannot be read: No such file or directory"
    )
