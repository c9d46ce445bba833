"""The marks of a synthetic casting: wear that every casting may have, and the defects.

Input: a random generator and a Part, the position of the casting. Output: Marks, polygons with a
gray level, and the canvas with a mark applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]  # images are float32, outlines float64

_SCALE = 3  # shapes with edges are drawn this many times larger, then reduced


@dataclass(frozen=True, slots=True)
class Part:
    """Position of the casting; lengths are shares of the side, radii of the flange's radius."""

    x: float
    y: float
    radius: float
    squash: float
    turn: float
    cavity: float
    hub: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Part:
        """Return a casting at a random position."""
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
        """Return image positions of points of the part, [n, 2] as shares of the image's side."""
        x, y = radius * np.cos(angle), radius * np.sin(angle) * self.squash
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        along, down = x * cos - y * sin, x * sin + y * cos
        return np.stack([self.x + self.radius * along, self.y + self.radius * down], axis=-1)


@dataclass(frozen=True, slots=True)
class Mark:
    """Polygons [n, 2] in shares of the image's side, their gray level, and a weight in [0, 1]."""

    polygons: list[Floats]
    level: float
    weight: float


def wear(rng: np.random.Generator, part: Part) -> list[Mark]:
    """Return wear that every casting may have: specks, a tool trace, a reflection on the rim."""
    specks = [
        _blob(rng, part, radius=rng.uniform(0.1, 1.0), size=rng.uniform(0.001, 0.003))
        for _ in range(6)
    ]
    trace = _stroke(rng, part, turn=rng.uniform(0.1, 0.4), width=0.008)
    glint = _blob(rng, part, radius=rng.uniform(0.97, 1.0), size=rng.uniform(0.004, 0.008))
    return [
        Mark(specks[: rng.integers(0, 7)], rng.uniform(60, 240), rng.uniform(0.2, 0.5)),
        Mark([trace], rng.uniform(150, 230), rng.uniform(0.0, 0.35)),
        Mark([glint], rng.uniform(120, 250), rng.uniform(0.2, 0.8)),
    ]


def _blow_hole(rng: np.random.Generator, part: Part) -> list[Mark]:
    """Return one to three gas holes with a bright edge, on the flange or its rim."""
    marks = []
    for _ in range(rng.integers(1, 4)):
        radius, size = rng.uniform(part.cavity + 0.14, 1.0), rng.uniform(0.009, 0.027)
        hole = _blob(rng, part, radius=radius, size=size)
        marks.append(Mark([hole + rng.uniform(-0.004, 0.004, 2)], 245, rng.uniform(0.4, 0.9)))
        marks.append(Mark([hole], rng.uniform(5, 45), rng.uniform(0.8, 1.0)))
    return marks


def _burr(rng: np.random.Generator, part: Part) -> list[Mark]:
    """Return a torn rim: a dark ragged band with bright flakes, over 17 to 80 degrees."""
    start, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.4)
    angles = np.linspace(start, start + width, max(8, int(width * 45)))
    bump = np.sin(np.linspace(0, np.pi, len(angles))) ** 0.5 * rng.uniform(0.03, 0.075)
    outer = 1.0 + bump * rng.uniform(0.1, 1.0, len(angles))
    inner = 0.985 - bump * rng.uniform(0.0, 0.6, len(angles))
    band = Mark([_band(part, outer, inner, angles)], rng.uniform(20, 60), rng.uniform(0.75, 1.0))
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
    return [band, Mark(flakes, rng.uniform(210, 255), rng.uniform(0.7, 1.0))]


def _scratch(rng: np.random.Generator, part: Part) -> list[Mark]:
    """Return one or two long scratches on the flange, dark with a bright edge."""
    marks = []
    for _ in range(rng.integers(1, 3)):
        line = _stroke(rng, part, turn=rng.uniform(0.2, 1.0), width=rng.uniform(0.018, 0.036))
        marks.append(Mark([line + rng.uniform(0.002, 0.005)], 250, rng.uniform(0.5, 0.9)))
        marks.append(Mark([line], rng.uniform(30, 90), rng.uniform(0.7, 1.0)))
    return marks


def _shrinkage(rng: np.random.Generator, part: Part) -> list[Mark]:
    """Return a shrinkage area: many small pores on dull metal."""
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
    stains = [Mark([outline], rng.uniform(110, 150), rng.uniform(0.03, 0.15)) for outline in dull]
    return [*stains, Mark(pores, rng.uniform(15, 60), 0.9)]


DEFECT_MARKS: dict[str, Callable[[np.random.Generator, Part], list[Mark]]] = {
    "blow_hole": _blow_hole,
    "burr": _burr,
    "scratch": _scratch,
    "shrinkage": _shrinkage,
}


def _blob(
    rng: np.random.Generator, part: Part, *, radius: float, size: float, angle: float | None = None
) -> Floats:
    """Return an irregular round outline of radius `size`, at `radius` from the part's middle."""
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


def _stroke(rng: np.random.Generator, part: Part, *, turn: float, width: float) -> Floats:
    """Return the outline of a curved, tapering line on the flange, over `turn` radians."""
    start = rng.uniform(0, 2 * np.pi)
    near, far = rng.uniform(part.cavity + 0.15, 0.96, 2)
    along = np.linspace(0, 1, 20)
    angles, bow = start + along * turn, rng.uniform(-0.04, 0.04) * np.sin(np.pi * along)
    middle = np.clip(near + along * (far - near) + bow, part.cavity + 0.14, 0.97)
    half = width / 2 * (1 - (2 * along - 1) ** 4) * rng.uniform(0.6, 1.0, len(along))
    return _band(part, middle + half, middle - half, angles)


def _band(part: Part, outer: Floats, inner: Floats, angles: Floats) -> Floats:
    """Return the outline of the area between two radii per angle."""
    return np.concatenate([part.place(outer, angles), part.place(inner, angles)[::-1]])


def apply_mark(canvas: Floats, mark: Mark) -> None:
    """Blend the mark's gray level into the canvas inside its polygons, with smooth edges."""
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
