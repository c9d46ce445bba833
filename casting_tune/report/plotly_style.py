"""Colours, axes and lines that the plotly figures share.

Text and line colours belong to the page, which can be light or dark. Names come from files, and
plotly interprets some HTML in text, so names are escaped here.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.text import plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Palette of Okabe & Ito (2008) for colour-blind readers; dashes and symbols differ as well."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
GRAY = "#888888"
_DASH_LENGTHS = ("", "9 6", "3 3", "9 4 3 4", "14 6", "14 4 3 4")


def figure(*, height: int, x: str, y: str) -> go.Figure:
    """Return an empty figure with two titled axes."""
    import plotly.graph_objects as go

    empty = go.Figure()
    empty.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 8, "r": 14, "t": 14, "b": 8},
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    style = {
        "automargin": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "showgrid": True,
    }
    empty.update_xaxes(**style, title={"text": x, "standoff": 8})
    empty.update_yaxes(**style, title={"text": y, "standoff": 8})
    return empty


def add_lines(drawn: go.Figure, frame: pd.DataFrame, x: str, y: str, *, shape: str) -> None:
    """Draw one line per training and one colour per row, in per cent."""
    import plotly.graph_objects as go

    for k, j, row, run, part in trainings(frame):
        drawn.add_trace(
            go.Scatter(
                x=list((100 * part[x]).round(3)),
                y=list((100 * part[y]).round(3)),
                name=name(row),
                legendgroup=str(k),
                mode="lines",
                showlegend=j == 0,
                opacity=0.85,
                meta=[f"{name(row, 80)}, {run}"],
                line={"color": COLORS[k % 6], "dash": DASHES[k % 6], "width": 1.8, "shape": shape},
                hovertemplate="%{meta[0]}<br>%{x:.2f} %, %{y:.2f} %<extra></extra>",
            )
        )


def add_vertical(drawn: go.Figure, at: float, text: str, *, dash: str, y: float) -> None:
    """Draw a vertical line with a label at the height y in 0..1."""
    line = {"color": GRAY, "width": 1.5, "dash": dash}
    drawn.add_shape(type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line=line)
    side = "left" if at < 0.75 else "right"
    drawn.add_annotation(
        x=at,
        y=y,
        yref="paper",
        text=text,
        showarrow=False,
        xanchor=side,
        yanchor="top",
        font={"size": 12},
        xshift=4 if side == "left" else -4,
    )


def trainings(frame: pd.DataFrame) -> Iterator[tuple[int, int, str, str, pd.DataFrame]]:
    """Yield row number, number of the training in the row, both names, and the points."""
    for k, row in enumerate(dict.fromkeys(frame["row"])):
        for j, (run, part) in enumerate(frame[frame["row"] == row].groupby("training", sort=False)):
            yield k, j, str(row), str(run), part


def thinned(frame: pd.DataFrame, at_most: int = 8) -> pd.DataFrame:
    """Return a few points of each training with both ends, for the table of a curve."""
    parts = []
    for _, _, _, _, part in trainings(frame):
        keep = np.unique(np.linspace(0, len(part) - 1, min(at_most, len(part))).round().astype(int))
        parts.append(part.iloc[keep])
    return pd.concat(parts, ignore_index=True)


def legend(rows: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each row of a figure of curves with its colour and its dashes for SVG."""
    return [(row, COLORS[k % 6], _DASH_LENGTHS[k % 6]) for k, row in enumerate(rows)]


def script() -> str:
    """Return the JavaScript of plotly from its package: 4.8 MB."""
    import plotly.offline

    return str(plotly.offline.get_plotlyjs())


def spec(drawn: go.Figure) -> dict[str, Any]:
    """Return a figure as the JSON values that plotly's JavaScript reads."""
    values: dict[str, Any] = json.loads(drawn.to_json())
    return values


def name(text: object, length: int = 26) -> str:
    """Return a name for plotly: shortened in the middle, and escaped as HTML."""
    whole = plain(str(text))
    kept = (
        whole if len(whole) <= length else f"{whole[: length * 2 // 3]}…{whole[-(length // 3) :]}"
    )
    return html.escape(kept)


def faint(color: str) -> str:
    """Return a colour with 18 % opacity."""
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
