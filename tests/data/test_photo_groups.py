from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from casting_tune.data import photo_groups, synthetic


def _drawn(n: int, *, size_px: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """n drawn castings and their labels, half of them defective."""
    defects = [synthetic.DEFECTS[i % len(synthetic.DEFECTS)] if i % 2 else None for i in range(n)]
    castings = [
        synthetic.casting(np.random.default_rng([seed, i]), size_px=size_px, defect=defect)
        for i, defect in enumerate(defects)
    ]
    return np.stack(castings), np.arange(n, dtype=np.uint8) % 2


def _turned(image: NDArray[np.uint8], degrees: float, *, mirror: bool) -> NDArray[np.uint8]:
    """The image turned about its middle, the corners filled with the table's gray."""
    picture = Image.fromarray(image).rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=int(np.median(image[:3]))
    )
    return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else picture)


def _copies(
    n: int, *, of_each: int, size_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Return copies of n castings in mixed order, their labels and their castings.

    Each copy is turned by any angle; every second copy is mirrored.
    """
    castings, labels = _drawn(n, size_px=size_px, seed=3)
    rng = np.random.default_rng(5)
    whose = rng.permutation(np.repeat(np.arange(n), of_each))
    images = [
        _turned(castings[k], rng.uniform(0, 360), mirror=bool(i % 2)) for i, k in enumerate(whose)
    ]
    return np.stack(images), labels[whose], whose


def _partition(numbers: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(numbers == number).tolist()) for number in np.unique(numbers)}


@pytest.mark.parametrize("size_px", [64, 128, 300])
def test_copies_turned_by_any_angle_and_mirrored_are_exactly_the_castings_they_came_from(
    size_px: int,
) -> None:
    images, labels, whose = _copies(20, of_each=6, size_px=size_px)
    assert _partition(photo_groups.find(images, labels).group) == _partition(whose)


def test_groups_are_numbered_in_the_order_of_their_first_image() -> None:
    images, labels, _ = _copies(10, of_each=3, size_px=96)
    group = photo_groups.find(images, labels).group
    _, first = np.unique(group, return_index=True)
    assert np.unique(group).tolist() == list(range(10))
    assert first.tolist() == sorted(first.tolist())


@pytest.mark.parametrize(("n", "size_px"), [(40, 64), (40, 128), (60, 300)])
def test_different_drawn_castings_are_different_photographs(n: int, size_px: int) -> None:
    images, labels = _drawn(n, size_px=size_px, seed=1)
    found = photo_groups.find(images, labels)
    assert len(np.unique(found.group)) == n
    assert np.isnan(found.tightness)


@pytest.mark.parametrize("size_px", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_of_four_hundred_different_castings_at_most_one_in_fifty_is_merged(size_px: int) -> None:
    images, labels = _drawn(400, size_px=size_px, seed=2)
    group = photo_groups.find(images, labels).group
    assert len(np.unique(group)) >= 392
    assert np.bincount(group).max() <= 3


def test_a_part_that_was_shifted_before_it_was_turned_is_the_same_photograph() -> None:
    images, labels = _drawn(20, size_px=200, seed=6)
    moved = np.roll(images[0], (7, -5), axis=(0, 1))
    everything = np.concatenate([images, _turned(moved, 77, mirror=True)[None]])
    group = photo_groups.find(everything, np.append(labels, labels[0])).group
    assert group[20] == group[0]
    assert len(np.unique(group)) == 20


def test_colour_images_are_grouped_by_their_luminance() -> None:
    images, labels, whose = _copies(10, of_each=3, size_px=96)
    colour = np.stack([images, images, images], axis=1)  # [n, 3, h, w]
    assert _partition(photo_groups.find(colour, labels).group) == _partition(whose)


def test_images_that_are_not_square_are_grouped() -> None:
    images, labels, whose = _copies(10, of_each=4, size_px=128)
    wide = np.pad(images, ((0, 0), (0, 0), (20, 20)), mode="edge")
    assert wide.shape[1:] == (128, 168)
    assert _partition(photo_groups.find(wide, labels).group) == _partition(whose)


def test_copies_of_two_sizes_inside_a_black_frame_are_grouped() -> None:
    images, labels, whose = _copies(12, of_each=4, size_px=160)
    packed, short_px = images.copy(), np.full(len(images), 160, dtype=np.float32)
    for i in range(0, len(images), 3):
        packed[i], short_px[i] = 0, 128
        packed[i, 16:144, 16:144] = np.asarray(
            Image.fromarray(images[i]).resize((128, 128), Image.Resampling.BICUBIC)
        )
    assert _partition(photo_groups.find(packed, labels, short_px=short_px).group) == _partition(
        whose
    )


def test_images_of_one_gray_level_are_no_photograph_of_each_other() -> None:
    images, labels = _drawn(20, size_px=64, seed=1)
    images[3], images[8] = 0, 200
    images[5] = 100 + np.random.default_rng(0).integers(0, 2, (64, 64))
    assert len(np.unique(photo_groups.find(images, labels).group)) == 20


def test_images_declared_the_same_are_one_photograph_whatever_they_show() -> None:
    images, labels = _drawn(20, size_px=64, seed=1)
    same = np.arange(20)
    same[[4, 9, 17]] = 99
    group = photo_groups.find(images, labels, same=same).group
    assert group[4] == group[9] == group[17]
    assert len(np.unique(group)) == 18


def test_the_cut_stands_above_what_strangers_reach_and_inside_its_bounds() -> None:
    images, labels = _drawn(60, size_px=300, seed=1)
    found = photo_groups.find(images, labels)
    assert photo_groups.FLOOR <= found.threshold <= photo_groups.CEILING
    assert found.strangers < found.threshold


def test_photographs_are_found_where_three_in_twenty_of_them_carry_both_labels() -> None:
    images, labels, whose = _copies(20, of_each=6, size_px=300)
    mixed = np.where((whose < 3) & (np.arange(len(images)) % 2 == 0), 1 - labels, labels).astype(
        np.uint8
    )
    assert _partition(photo_groups.find(images, mixed).group) == _partition(whose)


def test_pairs_that_the_bound_passes_over_are_all_below_the_cut() -> None:
    images, _, _ = _copies(10, of_each=3, size_px=96)
    spectra = photo_groups.whitened(photo_groups.unwrap(images))
    every = photo_groups.similarity(spectra, spectra)
    above = photo_groups.similarity(spectra, spectra, above=0.4)
    assert np.array_equal(above, np.where(every > 0.4, every, 0))
    assert 0 < np.count_nonzero(above) < above.size


def test_likeness_is_the_best_correlation_over_every_turn_and_mirror() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, photo_groups.N_RADII, photo_groups.N_ANGLES)).astype(np.float32)
    spectra = photo_groups.whitened(maps)
    padded = np.zeros(
        (3, photo_groups.N_RADII, photo_groups.N_ANGLES // 2 + 1), dtype=np.complex128
    )
    padded[:, :, 1 : photo_groups.N_WAVES + 1] = spectra
    plain = np.fft.irfft(
        padded, n=photo_groups.N_ANGLES, axis=-1
    )  # the same patterns along the angle
    one, other = plain[0], plain[1]
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    by_hand = max(
        float((one * np.roll(view, shift, axis=1)).sum()) / length
        for view in (other, other[:, ::-1])
        for shift in range(photo_groups.N_ANGLES)
    )
    assert photo_groups.similarity(spectra[:1], spectra[1:2])[0, 0] == pytest.approx(
        by_hand, abs=1e-5
    )
    assert photo_groups.similarity(spectra[:1], spectra[:1])[0, 0] == pytest.approx(1, abs=1e-5)


def test_progress_reaches_the_number_of_images() -> None:
    images, labels = _drawn(40, size_px=64, seed=1)
    seen: list[tuple[int, int]] = []
    photo_groups.find(images, labels, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_the_same_images_give_the_same_groups_and_cut_twice() -> None:
    images, labels, _ = _copies(10, of_each=3, size_px=64)
    first, again = (photo_groups.find(images, labels) for _ in range(2))
    assert np.array_equal(first.group, again.group)
    assert first.threshold == again.threshold
