"""Pictures for a page as data URLs, so that the page needs no other file.

The augmentation grid shows a synthetic casting. Only `thumbnails` embeds images of the dataset.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from casting_tune.data import pack as packs
from casting_tune.data import synthetic
from casting_tune.data.pack import Pack
from casting_tune.report import image_grids, mpl_charts

MOST_ROWS = 40
"""Maximum number of rows of a chart in a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture for a page: `address` is a data: URL, the sides are in pixels."""

    title: str
    address: str
    width: int
    height: int


def chart_pictures(
    compared: pd.DataFrame,
    times: pd.DataFrame,
    thresholds: pd.DataFrame,
    *,
    title: str,
    packed: Pack | None,
) -> list[Picture]:
    """Draw the charts of the study: metrics by row, times, metrics by threshold, image counts.

    Args:
        compared: frame of `tables.comparison`; the first MOST_ROWS rows are drawn.
        times: frame of `timings.timing`.
        thresholds: frame of `tables.thresholds` for one row; an empty one gives no chart.
        title: title of the comparison.
        packed: the images, for their number by class and split; None gives no chart.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shown = compared.head(MOST_ROWS)
        more = (
            f" (the first {MOST_ROWS} of {len(compared)} rows)" if len(compared) > MOST_ROWS else ""
        )
        files = {
            f"Metrics by row{more}": mpl_charts.plot_metrics(
                shown, folder / "metrics.png", title=title
            )
        }
        if times["n"].sum():
            files["Training time by backbone and batch size"] = mpl_charts.plot_times(
                times, folder / "times.png"
            )
        if len(thresholds) and thresholds["n"].max() > 0:
            drawn = mpl_charts.plot_thresholds(thresholds, folder)
            files |= {
                f"{file.stem.partition('_')[2].capitalize()} by threshold": file for file in drawn
            }
        if packed is not None:
            files["Images by split and class"] = mpl_charts.plot_images(
                packed, folder / "images.png"
            )
        return [_picture(name, file) for name, file in files.items()]


@cache
def augmentation() -> tuple[Picture, ...]:
    """Draw a synthetic casting with all augmentations, brightness factors and hues."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        synthetic.draw(folder / "castings", n_images=20, size_px=160, seed=7)
        packed = packs.pack(folder / "castings", folder / "packs")
        files = {
            file.stem: file
            for file in image_grids.preview(packed, folder / "grids", seed=3, px=112)
        }
        names = {
            "augmentation": "A synthetic casting with every augmentation setting of the study",
            "brightness": "Brightness",
            "hue": "Hue",
        }
        return tuple(_picture(title, files[name]) for name, title in names.items())


def thumbnails(packed: Pack, images: Iterable[int], *, px: int = 168) -> dict[int, Picture]:
    """Return thumbnails of images of a pack, by image index."""
    pictures = {}
    for image in images:
        pixels = packed.images[image]
        thumbnail = Image.fromarray(
            np.ascontiguousarray(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1))
        )
        thumbnail.thumbnail((px, px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        thumbnail.save(buffer, format="WEBP", quality=72)
        pictures[image] = Picture(
            title=str(packed.paths[image]),
            address=_address(buffer.getvalue(), "webp"),
            width=thumbnail.width,
            height=thumbnail.height,
        )
    return pictures


def _picture(title: str, file: Path) -> Picture:
    with Image.open(file) as image:
        width, height = image.size
        buffer = io.BytesIO()
        # a third of the size of a PNG
        image.convert("RGB").save(buffer, format="WEBP", lossless=True)
    return Picture(
        title=title, address=_address(buffer.getvalue(), "webp"), width=width, height=height
    )


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
