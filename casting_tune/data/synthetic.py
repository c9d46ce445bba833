"""Draws castings with and without defects, into the folder layout of the real set.

In come a folder, a count and a seed; out go PNG files in {train,test}/{def_front,ok_front}. A
casting is a pump impeller seen from above: a turned flange, a cavity with vanes, a hub. Everything
that makes no defect (place, turn, light, brightness, wear) is drawn from the same ranges for both
classes, so that only the defect tells them apart. Must not use a real image in any way, nor know of
packs or networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from casting_tune.errors import ImagesError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]  # images are float32, outlines float64

DEFECTS: tuple[str, ...] = ("blow_hole", "burr", "scratch", "shrinkage")

_DEFECTIVE_SHARE = 0.57  # of the real set's 7,348 images, 4,211 are defective
_TEST_SHARE = 0.2
_SCALE = 3  # shapes with edges are drawn this many times larger, then reduced


def draw(
    folder: Path,
    *,
    n_images: int = 400,
    size_px: int = 300,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `n_images` PNG files: a fifth is test, 57 % are defective, each defect about as often as the others.

    The same arguments write the same bytes: each image has a random stream of its own, of the seed
    and its number.

    Args:
        folder: a folder that does not exist yet, or is empty.
        n_images: at least 10, so that no class folder is empty.
        size_px: side of the square images, at least 32.
        seed: not negative.
        on_progress: called with (images written, images in all).

    Raises:
        UsageError: a number is out of its range.
        ImagesError: the folder holds something, or cannot be written.
    """
    for name, value, least in (
        ("n_images", n_images, 10),
        ("size_px", size_px, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is at least {least}; got {value}.")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ImagesError(
                f"Castings are drawn into an empty folder, and '{folder}' is not: give another one."
            )
        kinds = _plan(n_images)
        for parent in dict.fromkeys(parent for parent, _ in kinds):
            (folder / parent).mkdir(parents=True, exist_ok=True)

        def write(i: int) -> None:
            parent, defect = kinds[i]
            image = casting(np.random.default_rng([seed, i]), size_px=size_px, defect=defect)
            name = f"{defect or 'good'}_{i:05d}.png"
            Image.fromarray(image).save(folder / parent / name, compress_level=3)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for n_done, _ in enumerate(threads.map(write, range(n_images)), start=1):
                if on_progress is not None:
                    on_progress(n_done, n_images)
    except OSError as error:
        raise ImagesError(
            f"Cannot draw castings into '{folder}': {error.strerror or error}. Give a folder that can be written."
        ) from error


def casting(rng: np.random.Generator, *, size_px: int, defect: str | None) -> NDArray[np.uint8]:
    """Return one casting, [size_px, size_px] uint8.

    Args:
        rng: what place, light, wear and defect are drawn from.
        size_px: side of the image.
        defect: a name of `DEFECTS`, or None for a good casting.

    Raises:
        UsageError: the defect is not in `DEFECTS`.
    """
    if defect is not None and defect not in DEFECTS:
        raise UsageError(f"Unknown defect '{defect}'. Known: {', '.join(DEFECTS)}.")
    part = _Part.drawn(rng)
    canvas = _surface(rng, part, size_px=size_px)  # [h, w] float32 gray levels
    marks = _wear(rng, part)
    if defect is not None:
        marks += _MARKS[defect](rng, part)
    for mark in marks:
        _apply(canvas, mark)
    canvas = _blurred(canvas, radius=rng.uniform(0.2, 0.7) * size_px / 300)
    canvas = canvas * rng.uniform(0.75, 1.15) + rng.uniform(-12, 12)
    canvas += rng.normal(0, rng.uniform(1.0, 3.5), canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the casting lies; lengths are shares of the image's side, radii shares of the flange's radius."""

    x: float
    y: float
    radius: float
    squash: float
    turn: float
    cavity: float
    hub: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Part:
        return cls(
            x=0.5 + rng.uniform(-0.03, 0.03),
            y=0.5 + rng.uniform(-0.03, 0.03),
            radius=rng.uniform(0.38, 0.44),
            squash=rng.uniform(0.92, 1.0),
            turn=rng.uniform(0, 2 * np.pi),
            cavity=rng.uniform(0.53, 0.57),
            hub=rng.uniform(0.24, 0.28),
        )

    def place(self, radius: Floats | float, angle: Floats | float) -> Floats:
        """Return where [n] points of the part, or one, lie in the image, [n, 2] as shares of its side."""
        x, y = radius * np.cos(angle), radius * np.sin(angle) * self.squash
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        along, down = x * cos - y * sin, x * sin + y * cos
        return np.stack([self.x + self.radius * along, self.y + self.radius * down], axis=-1)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Polygons [n, 2] in shares of the image's side, the gray level that they pull towards, a weight in [0, 1]."""

    polygons: list[Floats]
    level: float
    weight: float


def _plan(n_images: int) -> list[tuple[str, str | None]]:
    """Return folder and defect of each image: test first, defects in turn."""
    n_test = round(n_images * _TEST_SHARE)
    plan: list[tuple[str, str | None]] = []
    for split, n in (("test", n_test), ("train", n_images - n_test)):
        n_defective = round(n * _DEFECTIVE_SHARE)
        plan += [(f"{split}/def_front", DEFECTS[i % len(DEFECTS)]) for i in range(n_defective)]
        plan += [(f"{split}/ok_front", None)] * (n - n_defective)
    return plan


def _surface(rng: np.random.Generator, part: _Part, *, size_px: int) -> Floats:
    """Return the sound casting on its table, [h, w] gray levels about 0 to 255."""
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    dx, dy = (axis[None, :] - part.x) / part.radius, (axis[:, None] - part.y) / part.radius
    cos, sin = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
    u, v = dx * cos + dy * sin, (dy * cos - dx * sin) / part.squash
    r, angle = np.hypot(u, v), np.arctan2(v, u)  # [h, w] in flange radii, radians
    soft = 1.2 / (part.radius * size_px)  # an edge rises over this

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
    """Return metal off the lathe: rays of light that turn with the view, and fine rings."""
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
    """Return the dark cavity with seven swept vanes, a little lighter along their edges."""
    wave = np.sin(7 * angle + rng.uniform(12, 18) * r + rng.uniform(0, 6.3))
    edge = np.clip(wave - 0.4, 0, 1) * rng.uniform(15, 60) * (1 + np.cos(angle)) / 2
    edge = edge + np.clip(wave - 0.9, 0, 1) * rng.uniform(150, 400)
    cavity: Floats = rng.uniform(14, 32) + edge * np.clip(r * 3 - 0.6, 0, 1)
    return cavity


def _wear(rng: np.random.Generator, part: _Part) -> list[_Mark]:
    """Return what every casting may have: faint specks, a faint tool trace, a nick of light on the rim."""
    specks = [
        _blob(rng, part, radius=rng.uniform(0.1, 1.0), size=rng.uniform(0.001, 0.003))
        for _ in range(6)
    ]
    trace = _stroke(rng, part, turn=rng.uniform(0.1, 0.4), width=0.008)
    glint = _blob(rng, part, radius=rng.uniform(0.97, 1.0), size=rng.uniform(0.004, 0.008))
    return [
        _Mark(specks[: rng.integers(0, 7)], rng.uniform(60, 240), rng.uniform(0.2, 0.5)),
        _Mark([trace], rng.uniform(150, 230), rng.uniform(0.0, 0.35)),
        _Mark([glint], rng.uniform(120, 250), rng.uniform(0.2, 0.8)),
    ]


def _blow_hole(rng: np.random.Generator, part: _Part) -> list[_Mark]:
    """Return one to three gas holes with a lit edge, on the flange or its rim."""
    marks = []
    for _ in range(rng.integers(1, 4)):
        radius, size = rng.uniform(part.cavity + 0.14, 1.0), rng.uniform(0.009, 0.027)
        hole = _blob(rng, part, radius=radius, size=size)
        marks.append(_Mark([hole + rng.uniform(-0.004, 0.004, 2)], 245, rng.uniform(0.4, 0.9)))
        marks.append(_Mark([hole], rng.uniform(5, 45), rng.uniform(0.8, 1.0)))
    return marks


def _burr(rng: np.random.Generator, part: _Part) -> list[_Mark]:
    """Return a torn rim: a dark ragged band with bright flakes, over 17 to 80 degrees."""
    start, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.4)
    angles = np.linspace(start, start + width, max(8, int(width * 45)))
    bump = np.sin(np.linspace(0, np.pi, len(angles))) ** 0.5 * rng.uniform(0.03, 0.075)
    outer = 1.0 + bump * rng.uniform(0.1, 1.0, len(angles))
    inner = 0.985 - bump * rng.uniform(0.0, 0.6, len(angles))
    band = _Mark([_band(part, outer, inner, angles)], rng.uniform(20, 60), rng.uniform(0.75, 1.0))
    flakes = [
        _blob(
            rng,
            part,
            radius=rng.uniform(0.98, 1.05),
            size=rng.uniform(0.003, 0.008),
            angle=rng.choice(angles),
        )
        for _ in range(int(width * rng.uniform(6, 14)) + 1)
    ]
    return [band, _Mark(flakes, rng.uniform(210, 255), rng.uniform(0.7, 1.0))]


def _scratch(rng: np.random.Generator, part: _Part) -> list[_Mark]:
    """Return one or two long scores over the flange, dark with a bright lip."""
    marks = []
    for _ in range(rng.integers(1, 3)):
        line = _stroke(rng, part, turn=rng.uniform(0.2, 1.0), width=rng.uniform(0.018, 0.036))
        marks.append(_Mark([line + rng.uniform(0.002, 0.005)], 250, rng.uniform(0.5, 0.9)))
        marks.append(_Mark([line], rng.uniform(30, 90), rng.uniform(0.7, 1.0)))
    return marks


def _shrinkage(rng: np.random.Generator, part: _Part) -> list[_Mark]:
    """Return a spongy patch: a cloud of small pores on metal that has lost its shine."""
    radius, angle = rng.uniform(part.cavity + 0.16, 0.92), rng.uniform(0, 2 * np.pi)
    spread = rng.uniform(0.03, 0.08)
    pores = [
        _blob(
            rng,
            part,
            radius=min(0.97, max(part.cavity + 0.13, radius + spread * float(rng.normal()))),
            size=rng.uniform(0.0035, 0.008),
            angle=angle + 1.6 * spread * float(rng.normal()),
        )
        for _ in range(rng.integers(10, 30))
    ]
    dull = [
        _blob(rng, part, radius=radius, size=spread * reach, angle=angle)
        for reach in (0.25, 0.35, 0.45, 0.55)
    ]
    stains = [_Mark([outline], rng.uniform(110, 150), rng.uniform(0.03, 0.15)) for outline in dull]
    return [*stains, _Mark(pores, rng.uniform(15, 60), 0.9)]


_MARKS: dict[str, Callable[[np.random.Generator, _Part], list[_Mark]]] = {
    "blow_hole": _blow_hole,
    "burr": _burr,
    "scratch": _scratch,
    "shrinkage": _shrinkage,
}


def _blob(
    rng: np.random.Generator, part: _Part, *, radius: float, size: float, angle: float | None = None
) -> Floats:
    """Return an uneven round outline of radius `size`, somewhere at `radius` from the part's middle."""
    middle = part.place(radius, rng.uniform(0, 2 * np.pi) if angle is None else angle)
    around = np.linspace(0, 2 * np.pi, 14, endpoint=False) + rng.uniform(0, 6.3)
    reach = size * rng.uniform(0.6, 1.25, len(around))
    long, along = rng.uniform(1.0, 1.7), rng.uniform(0, np.pi)
    across, down = reach * np.cos(around) * long, reach * np.sin(around)
    cos, sin = np.cos(along), np.sin(along)
    outline: Floats = middle + np.stack(
        [across * cos - down * sin, across * sin + down * cos], axis=-1
    )
    return outline


def _stroke(rng: np.random.Generator, part: _Part, *, turn: float, width: float) -> Floats:
    """Return the outline of a bent, tapering line that stays on the flange and goes `turn` radians around the part."""
    start = rng.uniform(0, 2 * np.pi)
    near, far = rng.uniform(part.cavity + 0.15, 0.96, 2)
    along = np.linspace(0, 1, 20)
    angles, bow = start + along * turn, rng.uniform(-0.04, 0.04) * np.sin(np.pi * along)
    middle = np.clip(near + along * (far - near) + bow, part.cavity + 0.14, 0.97)
    half = width / 2 * (1 - (2 * along - 1) ** 4) * rng.uniform(0.6, 1.0, len(along))
    return _band(part, middle + half, middle - half, angles)


def _band(part: _Part, outer: Floats, inner: Floats, angles: Floats) -> Floats:
    """Return the outline of what lies between two radii at each angle."""
    return np.concatenate([part.place(outer, angles), part.place(inner, angles)[::-1]])


def _apply(canvas: Floats, mark: _Mark) -> None:
    """Pull the canvas towards the mark's level under its polygons, with smooth edges; only their box is touched."""
    if not mark.polygons:
        return
    size_px = len(canvas)
    corners = np.concatenate(mark.polygons) * size_px
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, size_px - 1)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 1, size_px)
    mask = Image.new("L", ((right - left) * _SCALE, (bottom - top) * _SCALE))
    pen = ImageDraw.Draw(mask)
    for polygon in mark.polygons:
        pen.polygon(((polygon * size_px - (left, top)) * _SCALE).ravel().tolist(), fill=255)
    cover = np.asarray(mask.reduce(_SCALE), dtype=np.float32) * np.float32(mark.weight / 255)
    box = canvas[top:bottom, left:right]
    box += cover * (mark.level - box)


def _blurred(canvas: Floats, *, radius: float) -> Floats:
    """Return the canvas out of focus by `radius` pixels."""
    gray = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    return np.asarray(gray.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
