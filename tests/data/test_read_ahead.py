from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from casting_tune.data import batches, read_ahead
from casting_tune.data.pixel_source import PixelSource, file_of
from casting_tune.data.read_ahead import ReadAhead
from casting_tune.errors import ImagesError

CPU = torch.device("cpu")


def reading() -> list[str]:
    """Names of the threads that read images."""
    return [t.name for t in threading.enumerate() if t.name.startswith("casting-tune-images")]


@pytest.fixture(params=["gray", "colour"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> np.ndarray:
    """50 images of 24 x 20 random levels, memory-mapped as a pack has them."""
    shape = (50, 24, 20) if request.param == "gray" else (50, 3, 24, 20)
    np.save(
        tmp_path / "castings.npy",
        np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
    )
    mapped: np.ndarray = np.load(tmp_path / "castings.npy", mmap_mode="r")
    return mapped


def test_a_file_gives_the_rows_that_its_array_has(images: np.ndarray) -> None:
    rows = np.array([49, 0, 7, 7])
    out = np.empty((4, *images.shape[1:]), np.uint8)
    with PixelSource(images) as source:
        assert source.from_disk
        source.read(rows, out)
    np.testing.assert_array_equal(out, images[rows])


def test_only_a_whole_mapped_array_is_read_from_its_file(images: np.ndarray) -> None:
    assert file_of(images) == Path(str(images.filename))  # type: ignore[attr-defined]
    assert file_of(images[1:]) is None  # its first image is not the first one of the file
    assert file_of(np.array(images)) is None
    out = np.empty((1, *images.shape[1:]), np.uint8)
    with PixelSource(images[1:]) as source:
        source.read(np.array([0]), out)
    np.testing.assert_array_equal(out[0], images[1])


def test_a_file_that_has_become_too_short_is_one_clear_error(images: np.ndarray) -> None:
    file = file_of(images)
    assert file is not None
    out = np.empty((1, *images.shape[1:]), np.uint8)
    with PixelSource(images) as source:
        with file.open("r+b") as cut:
            cut.truncate(1000)
        with pytest.raises(ImagesError, match="too short"):
            source.read(np.array([49]), out)


@pytest.mark.parametrize("px", [16, 20, 64])
@pytest.mark.parametrize("in_file", [True, False])
def test_batches_read_ahead_are_bit_for_bit_those_on_the_device(
    images: np.ndarray, px: int, in_file: bool
) -> None:
    given = images if in_file else np.array(images)
    order = np.random.default_rng(1).permutation(50)
    parts = [order[part] for part in batches.slices(50, 7)]
    resident = batches.put(images, order, px=px, device=CPU)
    with ReadAhead(given, batch_size=8, px=px, device=CPU) as reader:
        for _ in range(2):  # buffers are used again
            read = [pixels.clone() for pixels in reader.batches(parts)]
            assert torch.equal(torch.cat(read), resident)


def test_more_batches_than_buffers_come_in_their_order(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES", 1)  # one batch is read, one is with the network
    with ReadAhead(images, batch_size=1, px=64, device=CPU) as reader:
        read = [
            pixels.numpy().reshape(images.shape[1:]).copy()
            for pixels in reader.batches(np.arange(50)[:, None])
        ]
    np.testing.assert_array_equal(np.stack(read), images)


def left_early(reader: ReadAhead) -> None:
    for _ in reader.batches(np.arange(50)[:, None]):
        break


def failed(reader: ReadAhead) -> None:
    for _ in reader.batches(np.arange(50)[:, None]):
        raise RuntimeError("broken kernel")


def held(reader: ReadAhead) -> None:
    reader.__dict__["kept"] = suspended = reader.batches(np.arange(50)[:, None])
    next(suspended)


def whole(reader: ReadAhead) -> None:
    assert len(list(reader.batches(np.arange(50)[:, None]))) == 50


@pytest.mark.parametrize("use", [left_early, failed, held, whole])
def test_the_thread_ends_with_the_context_however_that_ends(
    images: np.ndarray, use: Callable[[ReadAhead], None]
) -> None:
    try:
        with ReadAhead(images, batch_size=1, px=64, device=CPU) as reader:
            use(reader)
            assert len(reading()) == 1
    except RuntimeError:
        assert use is failed
    assert reading() == []


def test_after_an_epoch_that_was_left_the_next_one_has_all_its_batches(images: np.ndarray) -> None:
    with ReadAhead(images, batch_size=4, px=64, device=CPU) as reader:
        parts = [np.arange(50)[part] for part in batches.slices(50, 4)]
        for _ in range(20):
            for _ in reader.batches(parts):
                break
        read = torch.cat([pixels.clone() for pixels in reader.batches(parts)])
    np.testing.assert_array_equal(read.numpy().reshape(images.shape), images)


def test_an_error_of_the_disk_is_raised_at_its_batch_and_ends_the_reading(
    images: np.ndarray,
) -> None:
    file = file_of(images)
    assert file is not None
    with ReadAhead(images, batch_size=1, px=64, device=CPU) as reader:
        with file.open("r+b") as cut:
            cut.truncate(128 + 40 * images[0].nbytes)  # the header and 40 images
        read = reader.batches(np.arange(50)[:, None])
        assert len([next(read) for _ in range(40)]) == 40
        with pytest.raises(ImagesError, match="too short"):
            next(read)
    assert reading() == []
