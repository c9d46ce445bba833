"""Pictures inside a page: PNGs and thumbnails as data addresses, so that the page needs no other file.

Comes in: frames of tables, a pack. Goes out: Picture. A casting for the augmentation grid is drawn,
not photographed; photographs come in only through `thumbnails`, which a person has to ask for.
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
"""Rows of a chart in a page: more would be a picture of metres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture for a page: `address` is a data: URL, sides in pixels."""

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
    """Draw the study's charts of a run: metrics by row, times, metrics over thresholds of the best row, the images.

    Args:
        compared: of `tables.comparison`; the first MOST_ROWS rows are drawn.
        times: of `timings.timing`.
        thresholds: of `tables.thresholds`, one row's; empty draws none.
        title: what the rows are.
        packed: the images, where they are here; their number by class and split is drawn.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
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
                f"{file.stem.partition('_')[2].capitalize()} over the threshold": file
                for file in drawn
            }
        if packed is not None:
            files["Images by split and class"] = mpl_charts.plot_images(
                packed, folder / "images.png"
            )
        return [_picture(name, file) for name, file in files.items()]


@cache
def augmentation() -> tuple[Picture, ...]:
    """Draw one casting under every augmentation, and at the brightness factors and hues of the toggles."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        synthetic.draw(folder / "castings", n_images=20, size_px=160, seed=7)
        packed = packs.pack(folder / "castings", folder / "packs")
        files = {
            file.stem: file
            for file in image_grids.preview(packed, folder / "grids", seed=3, px=112)
        }
        names = {
            "augmentation": "A drawn casting under every setting of the study",
            "brightness": "Brightness",
            "hue": "Hue",
        }
        return tuple(_picture(title, files[name]) for name, title in names.items())


def thumbnails(packed: Pack, images: Iterable[int], *, px: int = 168) -> dict[int, Picture]:
    """Return small pictures of some images of a pack, by image."""
    found = {}
    for image in images:
        pixels = packed.images[image]
        whole = Image.fromarray(
            np.ascontiguousarray(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1))
        )
        whole.thumbnail((px, px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        whole.save(buffer, format="WEBP", quality=72)
        found[image] = Picture(
            title=str(packed.paths[image]),
            address=_address(buffer.getvalue(), "webp"),
            width=whole.width,
            height=whole.height,
        )
    return found


def _picture(title: str, file: Path) -> Picture:
    with Image.open(file) as image:
        width, height = image.size
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="WEBP", lossless=True)  # a third of the PNG's size
    return Picture(
        title=title, address=_address(buffer.getvalue(), "webp"), width=width, height=height
    )


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
