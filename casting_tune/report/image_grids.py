"""Grids of images as PNG files: samples of a pack, and the effect of each augmentation.

The grids show exactly the pixels that training uses. The same pack and seed give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casting_tune.data import augmentation
from casting_tune.errors import ImagesError, UsageError
from casting_tune.report import mpl_style
from casting_tune.toggles import TOGGLES, parse_augmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack

SETTINGS = (
    "default", "only hue contrast", "additional", "no hue contrast", "no shift", "no rotation",
    "no brightness", "no shear", "no zoom", "no fill_mode", "no flip",
)  # fmt: skip
"""The settings of part 2 of the study, in its order, in the spelling of `augmentation.parse`."""

BRIGHTNESS = (0.875, 0.9375, 1.0, 1.0625, 1.125, 1.1875, 1.25)
HUE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def preview(pack: Pack, folder: Path, *, seed: int = 0, px: int = 300) -> list[Path]:
    """Write samples.png, brightness.png, hue.png and augmentation.png, and return their paths.

    Args:
        pack: the images; all grids but the samples show one random defective training image.
        folder: created if necessary; files with these names are replaced.
        seed: seed of the images and all augmentations.
        px: side of the network input, and of each image in the grids.

    Raises:
        UsageError: px is out of range, or the folder cannot be written.
        ImagesError: no training image is defective.
    """
    if not 16 <= px <= 600:
        raise UsageError(f"px must be 16 to 600 for a preview; got {px}.")
    rows = np.flatnonzero((pack.labels == 1) & (pack.splits == "train"))
    if not len(rows):
        raise ImagesError(
            f"A preview requires a defective image in train; none of '{pack.positive}' was found."
        )
    image = pack.images[np.random.default_rng(seed).choice(rows)]
    draws = augmented(image, n=6, seed=seed, px=px)
    grids = {
        "samples": (
            samples(pack, n=6, seed=seed, px=px),
            [f"{pack.positive} (defective)", f"{pack.negative} (ok)"], [],
            _samples_title(pack),
        ),
        "brightness": (
            brightened(image, px=px), ["brightness"], [f"x {factor:g}" for factor in BRIGHTNESS],
            _brightness_title(),
        ),
        "hue": (
            hued(image, px=px), ["a red patch", "the casting"], [f"hue + {turn:g}" for turn in HUE],
            _hue_title(gray=pack.images.ndim == 3),
        ),
        "augmentation": (
            draws, list(SETTINGS), [f"draw {column + 1}" for column in range(draws.shape[1])],
            f"One casting with the {len(SETTINGS)} augmentation settings of the study, "
            f"{draws.shape[1]} random draws each. All images of a column use the same draws: "
            "rows differ only by their toggles.",
        ),
    }  # fmt: skip
    return [
        _grid(tiles, folder / f"{name}.png", rows=rows, columns=columns, title=title)
        for name, (tiles, rows, columns, title) in grids.items()
    ]


def _samples_title(pack: Pack) -> str:
    n_defective, n_ok = (int(np.sum(pack.labels == label)) for label in (1, 0))
    return (
        f"Random castings of both classes, from {len(pack.labels):,} images: "
        f"{n_defective:,} {pack.positive} and {n_ok:,} {pack.negative}"
    )


def _brightness_title() -> str:
    toggle = TOGGLES["brightness"]
    return (
        f"One casting at brightness factors {BRIGHTNESS[0]:g} to {BRIGHTNESS[-1]:g}; "
        f"1 is the original image. The toggle draws {toggle.low:g} to {toggle.high:g}."
    )


def _hue_title(*, gray: bool) -> str:
    effect = (
        "The casting is gray and does not change." if gray else "The casting changes its colour."
    )
    return f"Hue shifted by {HUE[0]:g} to {HUE[-1]:g} of the colour circle. {effect}"


def samples(pack: Pack, *, n: int, seed: int, px: int) -> NDArray[np.uint8]:
    """Return random castings, defective above ok; fewer than n if a class has fewer.

    Returns:
        [2, n, px, px, 3].
    """
    draw = np.random.default_rng(seed).permutation
    drawn = [draw(np.flatnonzero(pack.labels == label)) for label in (1, 0)]
    n = min(n, *(len(rows) for rows in drawn))
    return np.stack(
        [_processed(pack.images[rows[:n]], augmentation.Draws(), px=px) for rows in drawn]
    )


def brightened(image: NDArray[np.uint8], *, px: int) -> NDArray[np.uint8]:
    """Return [1, len(BRIGHTNESS), px, px, 3] of one [h, w] or [3, h, w] image."""
    return _at_values(image, "brightness", BRIGHTNESS, px=px)[None]


def hued(image: NDArray[np.uint8], *, px: int) -> NDArray[np.uint8]:
    """Return a red patch and one [h, w] or [3, h, w] image at each shift of HUE.

    A gray image gets three channels here, so that its hue is really shifted; training skips this,
    because it changes nothing.

    Returns:
        [2, len(HUE), px, px, 3].
    """
    red = np.zeros((3, *image.shape[-2:]), np.uint8)
    red[0], red[1:] = 200, 40
    colour = np.broadcast_to(image, (3, *image.shape[-2:]))
    return np.stack([_at_values(red, "hue", HUE, px=px), _at_values(colour, "hue", HUE, px=px)])


def augmented(image: NDArray[np.uint8], *, n: int, seed: int, px: int) -> NDArray[np.uint8]:
    """Return n random draws of one [h, w] or [3, h, w] image with each of SETTINGS, in epoch 1.

    Returns:
        [11, n, px, px, 3].
    """
    import torch

    copies = np.repeat(image[None], n, axis=0)
    drawn = [
        augmentation.draw(
            parse_augmentation(setting), n, seed=seed, epoch=1, device=torch.device("cpu")
        )
        for setting in SETTINGS
    ]
    return np.stack([_processed(copies, draws, px=px) for draws in drawn])


def _at_values(
    image: NDArray[np.uint8], parameter: str, values: Sequence[float], *, px: int
) -> NDArray[np.uint8]:
    import torch

    parameters = {parameter: torch.tensor(values, dtype=torch.float64)}
    draws = augmentation.prepare(parameters, constant_fill=False, device=torch.device("cpu"))
    return _processed(np.repeat(image[None], len(values), axis=0), draws, px=px)


def _processed(
    images: NDArray[np.uint8], draws: augmentation.Draws, *, px: int
) -> NDArray[np.uint8]:
    """Return [n, px, px, 3] of [n, h, w] or [n, 3, h, w] images, with the code that trains."""
    import torch

    n, *_, height, width = images.shape
    inputs = augmentation.apply(
        torch.from_numpy(np.array(images)).reshape(n, -1, height, width), draws, px=px
    )
    pixels = inputs.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _grid(
    tiles: NDArray[np.uint8], file: Path, *, rows: Sequence[str], columns: Sequence[str], title: str
) -> Path:
    """Draw tiles, [rows, columns, px, px, 3], pixel by pixel, with a title and labels."""
    from matplotlib.figure import Figure

    n_rows, n_columns, px = tiles.shape[:3]
    size = max(11, round(px * 0.085))  # font size in pixels
    gap = max(2, px // 50)
    with mpl_style.style():
        left = 2 * size + round(max(_width(mpl_style.name(row), size) for row in rows))
        width = max(left + n_columns * (px + gap) + size, 40 * size)
        lines = textwrap.wrap(mpl_style.plain(title), int((width - 2 * size) / (0.62 * size)))
        top = round(size * (1.5 * len(lines) + 1.4 + 1.6 * bool(columns)))
        height = top + n_rows * (px + gap) + size
        page = np.full((height, width, 3), 255, np.uint8)
        for row, column in np.ndindex(n_rows, n_columns):
            y, x = top + row * (px + gap), left + column * (px + gap)
            page[y : y + px, x : x + px] = tiles[row, column]
        figure = Figure(
            figsize=((width + 0.1) / 100, (height + 0.1) / 100), dpi=100, facecolor="white"
        )
        figure.figimage(page)

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(
                x / width, 1 - y / height, text, **{"fontsize": size * 0.72, "va": "center"} | look
            )

        write(size, size * 0.8, "\n".join(lines), va="top", fontsize=size * 0.8, linespacing=1.25)
        for column, name in enumerate(columns):
            write(
                left + column * (px + gap) + px / 2,
                top - 0.9 * size,
                mpl_style.name(name),
                ha="center",
            )
        for row, name in enumerate(rows):
            write(
                left - size * 0.8, top + row * (px + gap) + px / 2, mpl_style.name(name), ha="right"
            )
        return mpl_style.save(figure, file)


def _width(text: str, size: float) -> float:
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0
