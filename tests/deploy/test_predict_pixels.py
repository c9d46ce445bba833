"""How `predict` reads images: by the rules of the training, from 12-bit files to a resize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from casting_tune.data.pixel_rules import PixelRules
from casting_tune.deploy import export_folder, predict
from casting_tune.errors import StoreError, UsageError
from casting_tune.store.store import Store
from tests.cli.test_main import call
from tests.data.odd_files import png16, tiff

LEVELS = np.linspace(0, 4095, 16 * 24).round().astype("<u2").reshape(16, 24)


@pytest.fixture(autouse=True)
def _own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)


class Session:
    """A session that keeps what it is given, and finds no defect."""

    def run(self, names: list[str], fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.images = fed["images"]
        return [np.array([0.25], np.float32), np.array([False])]


def network(
    *, is_colour: bool = False, box: int | None = None, **pixels: object
) -> predict.Network:
    settings = {"colour": is_colour, "letterbox_px": box, "packed_px": [16, 24], "pixels": pixels}
    return predict.Network(settings | ({"packed_px": [box, box]} if box else {}), Session())


def seen(opened: predict.Network, file: Path, content: bytes | Image.Image) -> np.ndarray | str:
    """Return the one image that the network is given, or the reason for no decision."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content.save(file)
    decision = predict.decide(opened, file)
    return decision.reason or opened.session.images[0]


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_frame_of_12_bits_is_scaled_as_in_training(photometric: int, tmp_path: Path) -> None:
    found = seen(network(bits=12), tmp_path / "a.tif", tiff(LEVELS, photometric=photometric))
    expected = np.rint(LEVELS * (255 / 4095))
    assert np.array_equal(found, expected if photometric else 255 - expected)


def test_a_frame_beyond_the_range_of_the_training_gets_no_decision(tmp_path: Path) -> None:
    found = seen(network(bits=12), tmp_path / "a.png", png16(LEVELS + 1))
    assert found == "gray level 4,096 does not fit into 12 bits (0..4,095)"


@pytest.mark.parametrize(("distance", "is_used"), [(2, True), (3, False)])
def test_a_gray_camera_that_sends_rgb_with_chroma_noise_gets_decisions(
    distance: int, is_used: bool, tmp_path: Path
) -> None:
    pixels = np.full((16, 24, 3), 100, np.uint8)
    pixels[5, 6, 2] += distance
    found = seen(network(), tmp_path / "a.png", Image.fromarray(pixels))
    if is_used:
        assert np.array_equal(found, np.full((16, 24), 100))  # 0.114 * 2 is below half a level
    else:
        assert found == "a colour image; the network was trained on gray images"


def test_colour_is_converted_if_it_was_in_training(tmp_path: Path) -> None:
    red = Image.new("RGB", (24, 16), (200, 0, 0))
    assert (seen(network(colour="gray"), tmp_path / "a.png", red) == round(200 * 0.299)).all()


def test_a_coloured_network_is_given_what_is_nearly_gray_unchanged(tmp_path: Path) -> None:
    nearly = Image.new("RGB", (24, 16), (100, 101, 102))
    found = seen(network(is_colour=True), tmp_path / "a.png", nearly)
    assert np.array_equal(found[:, 0, 0], [100, 101, 102])


def _wide_seen(how: str, tmp_path: Path) -> np.ndarray | str:
    wide = np.repeat(np.array([[10, 80, 160, 240]], np.uint8), 16, 0).repeat(16, 1)  # [16, 64]
    return seen(network(box=16, resize=how), tmp_path / "a.png", Image.fromarray(wide))


def test_an_image_is_resized_as_in_training(tmp_path: Path) -> None:
    assert (_wide_seen("crop", tmp_path) == np.repeat([80, 160], 8)).all()
    letterboxed, squashed = (_wide_seen(how, tmp_path) for how in ("letterbox", "squash"))
    assert (letterboxed[:6] == 0).all()
    assert (squashed[:6] == squashed[8:14]).all()
    assert (squashed[0, [1, 14]] > 0).all()


def test_max_megapixels_of_predict_replaces_that_of_the_training(tmp_path: Path) -> None:
    large = Image.new("1", (6000, 5000), 1)
    for limit, is_used in ((25, False), (30, True)):
        found = seen(network(box=16, max_megapixels=limit), tmp_path / "a.png", large)
        assert isinstance(found, np.ndarray) == is_used
    assert "6000 x 5000 pixels, more than 25 megapixels" in seen(
        network(box=16), tmp_path / "a.png", large
    )


def test_only_what_an_older_predict_would_misread_raises_the_version() -> None:
    def version(**rules: Any) -> int:
        return export_folder.version(PixelRules(**rules))

    assert (version(), version(colour="colour"), version(max_megapixels=40)) == (1, 1, 1)
    assert (version(bits=12), version(resize="crop"), version(colour="gray")) == (2, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 3}', "is an export of version 3; this casting_tune supports 1 to 2"),
        ('{"version": 2, "pixels": {"depth": 12}}', "Invalid decision.json"),
    ],
)
def test_an_export_whose_rules_are_unknown_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "decision.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        export_folder.read_decision(tmp_path)


TINY = """
question = "Does it run?"
type = "grid"

[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
batch_size = 16
epochs = 1

[axes]
seed = [0]
"""


def castings(root: Path) -> Path:
    """Draw 48 castings of 12 bits in 16-bit TIFF, 40 x 32 px: a defect is a bright spot."""
    draw = np.random.default_rng(0)
    for i in range(48):
        levels = draw.integers(800, 1200, (32, 40))
        if i % 2:
            levels[10:16, 15:21] = 4000
        split, name = "test" if i < 12 else "train", "def_front" if i % 2 else "ok_front"
        file = root / split / name / f"{i}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiff(levels.astype("<u2")))
    return root


@pytest.mark.slow
def test_12_bits_and_a_crop_go_from_the_images_to_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, results, line = castings(tmp_path / "images"), tmp_path / "results", tmp_path / "line"
    (tmp_path / "tiny.toml").write_text(TINY)
    store = ("--results", results)
    words = ("sweep", tmp_path / "tiny.toml", "--data", data, *store, "--inline", "--no-baselines")
    words = (*words, "--pack-size", "32", "--resize", "crop")
    code, out, err = call(capsys, *words, "--plan")
    assert (code, err) == (0, "")
    assert "16-bit files hold 12 bits: read as 0..4095 (--bits)." in out
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert "16-bit files hold 12 bits: read as 0..4095 (--bits)." in out
    assert "cropped to a square in the middle, then resized to 32 px (crop)." in out
    code, _, err = call(capsys, "table", "tiny", *store)
    assert code == 0, err
    (row,) = Store(results).read("trials").to_pylist()
    assert json.loads(row["pixels"]) == {"bits": 12, "resize": "crop"}

    code, _, err = call(capsys, "export", "best", "--sweep", "tiny", "--out", line, *store)
    assert code == 0, err
    settings = json.loads((line / "decision.json").read_text())
    assert (settings["version"], settings["pixels"]) == (2, {"bits": 12, "resize": "crop"})
    card = (line / "README.md").read_text()
    assert "16-bit files hold 12 bits: read as 0..4095" in card
    assert "cropped to a square" in card
    assert "padded" not in card

    (data / "test" / "ok_front" / "bright.tif").write_bytes(tiff(np.full((32, 40), 4096, "<u2")))
    code, out, _ = call(capsys, "predict", line, data / "test", "--json")
    assert code == 4
    made = {decision["sha256"]: decision for decision in json.loads(out)["decisions"]}
    (bad,) = (decision for decision in made.values() if decision["reason"])
    assert bad["reason"] == "gray level 4,096 does not fit into 12 bits (0..4,095)"
    stored = Store(results).read("predictions").to_pylist()
    tested = [image for image in stored if image["split"] == "test"]
    assert len(tested) == 12
    for image in tested:
        assert made[image["sha256"]]["score"] == pytest.approx(image["score"], abs=1e-5)


@pytest.mark.slow
def test_a_cell_is_exported_from_its_folder_by_the_rules_of_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pack is gone: it is made again, cropped and from 12 bits, without these options."""
    data, results = castings(tmp_path / "images"), tmp_path / "results"
    (tmp_path / "tiny.toml").write_text(TINY)
    words = ("sweep", tmp_path / "tiny.toml", "--data", data, "--results", results, "--inline")
    size = ("--pack-size", "32")
    assert call(capsys, *words, "--no-baselines", *size, "--resize", "crop")[0] == 0
    (results / "packs").rename(tmp_path / "gone")
    words = ("export", "best", "--sweep", "tiny", "--results", results, "--data", data, *size)
    code, _, err = call(capsys, *words, "--out", tmp_path / "line")
    assert code == 0, err


def test_a_limit_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-megapixels must be 1 to 10,000; got 0"):
        predict.rules_of({"colour": False, "pixels": {"max_megapixels": 0}}).check()
