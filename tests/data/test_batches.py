from __future__ import annotations

import numpy as np
import pytest
import torch

from casting_tune.data import batches

CPU = torch.device("cpu")


def test_chosen_rows_arrive_unchanged_when_they_fit() -> None:
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    out = batches.put(images, np.array([2, 0]), px=4, device=CPU)
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out.numpy()[:, 0], images[[2, 0]])


def test_colour_keeps_its_three_channels() -> None:
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    assert batches.put(images, np.array([0, 1]), px=4, device=CPU).shape == (2, 3, 4, 4)


def test_a_reduction_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((1, 64, 64), dtype=np.uint8)
    stripes[:, :, ::2] = (
        200  # every other column: a plain bilinear sample at a fifth would see stripes of its own
    )
    out = batches.put(stripes, np.array([0]), px=13, device=CPU)[0, 0, 2:-2, 2:-2].numpy()
    assert abs(float(out.mean()) - 100) < 3
    assert int(out.max()) - int(out.min()) < 25


def test_smaller_images_are_not_enlarged_here() -> None:
    assert batches.put(
        np.zeros((1, 8, 6), dtype=np.uint8), np.array([0]), px=16, device=CPU
    ).shape == (1, 1, 8, 6)


def test_writing_to_what_was_put_leaves_a_read_only_pack_as_it_was() -> None:
    images = np.zeros((2, 4, 4), dtype=np.uint8)
    images.flags.writeable = False
    batches.put(images, np.array([0, 1]), px=4, device=CPU).fill_(7)
    assert images.max() == 0


def test_an_order_holds_every_image_once_and_repeats_from_its_seed() -> None:
    order = batches.shuffle(100, seed=3, epoch=1)
    assert sorted(order) == list(range(100))
    np.testing.assert_array_equal(order, batches.shuffle(100, seed=3, epoch=1))
    assert not np.array_equal(order, batches.shuffle(100, seed=3, epoch=2))
    assert not np.array_equal(order, batches.shuffle(100, seed=4, epoch=1))


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),
        (3, 1, [1, 2]),
        (5, 2, [2, 3]),
        (3, 8, [3]),
    ],
)
def test_every_image_is_in_one_batch_and_a_lone_last_one_joins_the_batch_before(
    n: int, batch_size: int, sizes: list[int]
) -> None:
    cut = batches.slices(n, batch_size)
    assert [rows.stop - rows.start for rows in cut] == sizes
    assert [i for rows in cut for i in range(rows.start, rows.stop)] == list(range(n))
