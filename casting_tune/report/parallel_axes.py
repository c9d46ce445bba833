"""Parallel coordinates of trainings: plotly cannot draw them under a strict CSP.

Computes only positions; the template draws them as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A vertical axis: position 0..1 from the left, and ticks 0..1 from the top."""

    name: str
    x: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Parallel coordinates.

    Attributes:
        axes: the axes from left to right.
        lines: for each training its positions on the axes, and its rank (0 worst, 1 best).
    """

    axes: tuple[Axis, ...]
    lines: tuple[tuple[tuple[float, ...], float], ...]


def parallel(frame: pd.DataFrame, *, measured: Sequence[str]) -> Parallel:
    """Place the settings and metrics of all trainings on parallel axes.

    Args:
        frame: one row per training. Text values keep the order of their first use.
        measured: the columns with metrics in 0..1; `validation_accuracy` ranks the lines.
    """
    axes, places = [], []
    names = [str(name) for name in frame.columns]
    for k, name in enumerate(names):
        place = _measured if name in measured else _setting
        positions, ticks = place(frame[name])
        places.append(positions)
        axes.append(Axis(name=name, x=k / max(1, len(names) - 1), ticks=ticks))
    accuracy = frame["validation_accuracy"].astype(float)
    rank = (accuracy.rank(method="average") - 1) / max(1, len(accuracy) - 1)
    lines = [
        (tuple(float(column[i]) for column in places), float(rank.iloc[i]))
        for i in np.argsort(rank.to_numpy()).tolist()
    ]
    kept = tuple(line for line in lines if np.isfinite(line[0]).all())
    return Parallel(axes=tuple(axes), lines=kept)


Ticks = tuple[tuple[float, str], ...]


def _measured(column: pd.Series[Any]) -> tuple[NDArray[np.float64], Ticks]:
    """Place a metric from its smallest value at the bottom to its largest at the top."""
    values = column.to_numpy(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    ends = ((0.0, high), (1.0, low)) if high > low else ((1.0, low),)
    ticks = tuple((at, f"{100 * value:.1f} %") for at, value in ends)
    return 1 - (values - low) / ((high - low) or 1.0), ticks


def _setting(column: pd.Series[Any]) -> tuple[NDArray[np.float64], Ticks]:
    """Place the values of a setting at equal distances: numbers by size, others by first use."""
    dtypes = pd.api.types
    is_number = dtypes.is_numeric_dtype(column) and not dtypes.is_bool_dtype(column)
    values = sorted(set(column)) if is_number else list(dict.fromkeys(column))
    at = {value: 1 - (j + 0.5) / len(values) for j, value in enumerate(values)}
    shown = values if len(values) <= 12 else [values[0], values[-1]]
    return column.map(at).to_numpy(float), tuple((at[value], _text(value)) for value in shown)


def _text(value: object) -> str:
    """Return a setting as a short text; the page escapes it."""
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 18 else f"{text[:11]}…{text[-6:]}"
