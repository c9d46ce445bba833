"""Generates synthetic castings with and without defects, in the folder layout of the real set.

Input: a folder, a number of images and a seed. Output: PNG files in
{train,test}/{def_front,ok_front}. A casting is a pump impeller seen from above: a turned flange, a
cavity with vanes, a hub. Everything except the defect (position, rotation, light, brightness, wear)
has the same random ranges in both classes, so only the defect distinguishes them. Uses no real
image, and knows no packs or networks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from casting_tune import machine
from casting_tune.data.synthetic_marks import DEFECT_MARKS, Part, apply_mark, wear
from casting_tune.errors import ImagesError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]  # images are float32, outlines float64

DEFECTS = tuple(DEFECT_MARKS)

_DEFECTIVE_SHARE = 0.57  # of the real set's 7,348 images, 4,211 are defective
_TEST_SHARE = 0.2


def draw(
    folder: Path,
    *,
    n_images: int = 400,
    size_px: int = 300,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `n_images` PNG files: 20 % test, 57 % defective, all defects equally often.

    The same arguments write the same bytes: each image has its own random generator, seeded with
    the seed and the image's number.

    Args:
        folder: a folder that does not exist or is empty.
        n_images: at least 10, so that no class folder is empty.
        size_px: side of the square images, at least 32.
        seed: not negative.
        on_progress: called with (images written, images in all).

    Raises:
        UsageError: a number is out of range.
        ImagesError: the folder is not empty or cannot be written.
    """
    for name, value, least in (
        ("n_images", n_images, 10),
        ("size_px", size_px, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}; got {value}.")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ImagesError(
                f"The folder for synthetic castings is not empty: '{folder}'. Use another folder."
            )
        kinds = _plan(n_images)
        for parent in dict.fromkeys(parent for parent, _ in kinds):
            (folder / parent).mkdir(parents=True, exist_ok=True)

        def write(i: int) -> None:
            parent, defect = kinds[i]
            image = casting(np.random.default_rng([seed, i]), size_px=size_px, defect=defect)
            name = f"{defect or 'good'}_{i:05d}.png"
            Image.fromarray(image).save(folder / parent / name, compress_level=3)

        with ThreadPoolExecutor(machine.cpus()) as threads:
            for n_done, _ in enumerate(threads.map(write, range(n_images)), start=1):
                if on_progress is not None:
                    on_progress(n_done, n_images)
    except OSError as error:
        raise ImagesError(
            f"Cannot write castings to '{folder}': {error.strerror or error}. "
            "Use a writable folder."
        ) from error


def casting(rng: np.random.Generator, *, size_px: int, defect: str | None) -> NDArray[np.uint8]:
    """Return one casting, [size_px, size_px] uint8.

    Args:
        rng: random generator of position, light, wear and defect.
        size_px: side of the image.
        defect: a name of `DEFECTS`, or None for a good casting.

    Raises:
        UsageError: the defect is not in `DEFECTS`.
    """
    if defect is not None and defect not in DEFECTS:
        raise UsageError(f"Unknown defect '{defect}'. Known: {', '.join(DEFECTS)}.")
    part = Part.random(rng)
    canvas = _surface(rng, part, size_px=size_px)  # [h, w] float32 gray levels
    marks = wear(rng, part)
    if defect is not None:
        marks += DEFECT_MARKS[defect](rng, part)
    for mark in marks:
        apply_mark(canvas, mark)
    canvas = _blurred(canvas, radius=rng.uniform(0.2, 0.7) * size_px / 300)
    canvas = canvas * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12)
    canvas += rng.normal(0, rng.uniform(1.0, 3.5), canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _plan(n_images: int) -> list[tuple[str, str | None]]:
    """Return folder and defect of each image: test first, defects in rotation."""
    n_test = round(n_images * _TEST_SHARE)
    plan: list[tuple[str, str | None]] = []
    for split, n in (("test", n_test), ("train", n_images - n_test)):
        n_defective = round(n * _DEFECTIVE_SHARE)
        plan += [(f"{split}/def_front", DEFECTS[i % len(DEFECTS)]) for i in range(n_defective)]
        plan += [(f"{split}/ok_front", None)] * (n - n_defective)
    return plan


def _surface(rng: np.random.Generator, part: Part, *, size_px: int) -> Floats:
    """Return the casting without defect on its table, [h, w] gray levels of about 0 to 255."""
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    dx, dy = (axis[None, :] - part.x) / part.radius, (axis[:, None] - part.y) / part.radius
    cos, sin = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
    u, v = dx * cos + dy * sin, (dy * cos - dx * sin) / part.squash
    r, angle = np.hypot(u, v), np.arctan2(v, u)  # [h, w] in flange radii, radians
    soft = 1.2 / (part.radius * size_px)  # width of an edge

    def over(below: Floats, radius: float, level: Floats | float) -> Floats:
        return below + np.clip((radius - r) / soft + 0.5, 0, 1) * (level - below)

    across, down = rng.uniform(-22, 22), rng.uniform(-22, 22)
    canvas: Floats = rng.uniform(150, 185) + across * dx + down * dy
    shadow = np.hypot(u - rng.uniform(-0.06, 0.06), v - rng.uniform(-0.06, 0.06))
    canvas = canvas - rng.uniform(40, 85) * np.clip((1.16 - shadow) / 0.2, 0, 1)
    canvas = over(canvas, 1.0, rng.uniform(35, 85))
    canvas = over(canvas, 0.985, _turned(rng, r, angle, level=rng.uniform(185, 210)))
    step = part.cavity + 0.1
    canvas = over(
        canvas,
        step + 0.015,
        rng.uniform(25, 60) + 70 * (1 + np.cos(angle - rng.uniform(0, 6.3))) / 2,
    )
    canvas = over(canvas, step - 0.015, _turned(rng, r, angle, level=rng.uniform(165, 195)))
    canvas = over(canvas, part.cavity, _vanes(rng, r, angle))
    canvas = over(canvas, part.hub, _turned(rng, r, angle, level=rng.uniform(175, 210)))
    bore = part.hub - rng.uniform(0.06, 0.08)
    canvas = over(canvas, bore + 0.01, rng.uniform(30, 60))
    return over(
        canvas, bore, rng.uniform(110, 150) + 45 * u / bore + rng.uniform(-30, 30) * v / bore
    )


def _turned(rng: np.random.Generator, r: Floats, angle: Floats, *, level: float) -> Floats:
    """Return turned metal: light rays at random angles, and fine rings."""
    around = np.linspace(-np.pi, np.pi, 721)
    light = np.zeros_like(around)
    for _ in range(rng.integers(3, 6)):
        towards, narrow = rng.uniform(-np.pi, np.pi), rng.uniform(4, 40)
        light += rng.uniform(-38, 26) * np.exp(narrow * (np.cos(around - towards) - 1))
    rings = np.convolve(rng.normal(0, 1, 400), [0.25, 0.5, 0.25], mode="same") * rng.uniform(2, 7)
    return (
        level
        + light.astype(np.float32)[((angle + np.pi) * (720 / (2 * np.pi))).astype(np.int32)]
        + rings.astype(np.float32)[np.minimum((r * 380).astype(np.int32), 399)]
    )


def _vanes(rng: np.random.Generator, r: Floats, angle: Floats) -> Floats:
    """Return the dark cavity with seven swept vanes, slightly lighter along their edges."""
    wave = np.sin(7 * angle + rng.uniform(12, 18) * r + rng.uniform(0, 6.3))
    edge = np.clip(wave - 0.4, 0, 1) * rng.uniform(15, 60) * (1 + np.cos(angle)) / 2
    edge = edge + np.clip(wave - 0.9, 0, 1) * rng.uniform(150, 400)
    cavity: Floats = rng.uniform(14, 32) + edge * np.clip(r * 3 - 0.6, 0, 1)
    return cavity


def _blurred(canvas: Floats, *, radius: float) -> Floats:
    """Return the canvas blurred by `radius` pixels."""
    gray = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    return np.asarray(gray.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
