"""Interactive figures of a report, as plotly's own JSON, and the one figure that plotly cannot draw under a strict CSP.

Comes in: frames of `curves`. Goes out: Figure and Parallel. Only traces that plotly draws as SVG:
the others need `unsafe-eval`. Names come from files, and plotly reads a little HTML in text: they
are escaped here. Colours of text and lines belong to the page, so that it can be light or dark.
Computes nothing but places.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.text import plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe & Ito (2008), told apart by colour-blind readers; dashes and symbols say the same once more."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_DASH_LENGTHS = ("", "9 6", "3 3", "9 4 3 4", "14 6", "14 4 3 4")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_GRAY = "#888888"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: `spec` is plotly's data and layout; `frame` holds the same numbers for readers without scripts."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    frame: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An upright of parallel coordinates: where it stands (0..1 from the left) and its ticks (0..1 from the top)."""

    name: str
    x: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Parallel coordinates: axes, and for each training its places on them and how good it is (0 worst, 1 best)."""

    axes: tuple[Axis, ...]
    lines: tuple[tuple[tuple[float, ...], float], ...]


def thresholds(frame: pd.DataFrame, row: str, *, chosen: float | None) -> Figure:
    """Escape and overkill of one row over the threshold, with 0.5 and the chosen threshold marked."""
    import plotly.graph_objects as go

    figure = _figure(height=360, x="threshold on P(defective)", y="per cent")
    n = int(frame["n"].iloc[0])
    for k, (name, words) in enumerate(
        (("escape", "escape: defects passed"), ("overkill", "overkill: good ones rejected"))
    ):
        low, high, mean = (100 * frame[f"{name}_{part}"] for part in ("low", "high", "rate"))
        if n > 1:
            band = {"x": [*frame["threshold"], *frame["threshold"][::-1]], "y": [*high, *low[::-1]]}
            figure.add_trace(
                go.Scatter(
                    **band,
                    fill="toself",
                    mode="none",
                    fillcolor=_faint(COLORS[k]),
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        line = {"color": COLORS[k], "width": 2.5, "dash": _DASHES[k]}
        figure.add_trace(
            go.Scatter(
                x=list(frame["threshold"]), y=list(mean), name=words, line=line, mode="lines",
                hovertemplate="threshold %{x:.3f}: %{y:.2f} %<extra></extra>",
            )
        )  # fmt: skip
    marks = [0.5, *([chosen] if chosen is not None else [])]
    near = [
        np.interp(at, frame["threshold"], 100 * frame[f"{name}_rate"])
        for at in marks
        for name in ("escape", "overkill")
    ]
    top = float(np.clip(3 * max(near), 5, 103))
    figure.update_yaxes(range=[0, top])
    figure.update_xaxes(range=[0, 1])
    _upright(figure, 0.5, "0.5", dash="dot", y=0.93)
    if chosen is not None:
        _upright(figure, chosen, f"chosen {chosen:.4g}", dash="solid", y=1.0)
    spread = f"; bands from the least to the most of {n} trainings" if n > 1 else ""
    cut = f" The axis ends at {top:.0f} %: double-click for the whole." if top < 100 else ""
    return Figure(
        name="thresholds",
        title="Escape against overkill over the threshold",
        caption=f"{row}, test images, mean over trainings{spread}.{cut}",
        spec=_spec(figure),
        frame=frame.iloc[:: max(1, len(frame) // 25)],
    )


def pareto(frame: pd.DataFrame) -> Figure:
    """Accuracy against the seconds for one image; the front is the rows that no other beats in both."""
    import plotly.graph_objects as go

    figure = _figure(
        height=380,
        x="milliseconds an image, one at a time (logarithmic)",
        y="test accuracy, per cent",
    )
    for front, name, color, symbol in (
        (True, "on the front", COLORS[0], "circle"), (False, "beaten in both", _GRAY, "circle-open"),
    ):  # fmt: skip
        part = frame[frame["front"] == front].sort_values("latency_one_s")
        if part.empty:
            continue
        accuracy = 100 * part["accuracy"]
        ends = {
            "type": "data", "array": list((100 * part["high"] - accuracy).fillna(0)), "thickness": 1.2, "width": 3,
            "arrayminus": list((accuracy - 100 * part["low"]).fillna(0)),
        }  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=list(1000 * part["latency_one_s"]), y=list(accuracy), name=name, error_y=ends,
                mode="markers+text" if front and len(part) < 8 else "markers",
                text=[_name(row) for row in part["row"]], textposition="top right", textfont={"size": 11},
                marker={"color": color, "symbol": symbol, "size": 10}, cliponaxis=False,
                customdata=[_name(row, 80) for row in part["row"]],
                hovertemplate="%{customdata}<br>%{y:.2f} %, %{x:.3g} ms<extra></extra>",
            )
        )  # fmt: skip
    if frame["front"].sum() > 1:
        steps = frame[frame["front"]].sort_values("latency_one_s")
        figure.add_trace(
            go.Scatter(
                x=list(1000 * steps["latency_one_s"]), y=list(100 * steps["accuracy"]), mode="lines", showlegend=False,
                line={"color": COLORS[0], "width": 1.2, "shape": "hv", "dash": "dot"}, hoverinfo="skip",
            )
        )  # fmt: skip
    figure.update_xaxes(type="log", dtick="D2")
    alone = bool(frame["alone"].all())
    how = (
        "was measured with the device alone."
        if alone
        else "was in part measured beside other trainings: roughly right."
    )
    return Figure(
        name="pareto",
        title="Accuracy against latency",
        caption=f"Rows that no other row beats in both stand on the front. Bars: 95 % intervals. Latency {how}",
        spec=_spec(figure),
        frame=frame,
    )


def roc(frame: pd.DataFrame) -> Figure:
    """Recall against overkill, near the corner that counts; a line a training."""
    figure = _figure(height=380, x="overkill, per cent", y="defects found, per cent")
    _lines(figure, frame, "overkill_rate", "recall", shape="hv")
    figure.update_layout(showlegend=False)
    starts = frame[frame["overkill_rate"] <= 0.02].groupby(["row", "training"])["recall"].max()
    near = float(starts.min())
    right = 10.0
    low = float(np.clip(100 * near - 3, 0, 90))
    figure.update_xaxes(range=[-0.02 * right, right])
    figure.update_yaxes(range=[low, 100 + 0.02 * (100 - low)])
    return Figure(
        name="roc",
        title="ROC near the corner",
        caption=f"A line a training, ten a row at most, up to {right:.0f} % overkill: double-click for the whole.",
        spec=_spec(figure),
        frame=_thinned(frame),
    )


def precision_recall(frame: pd.DataFrame) -> Figure:
    """Precision against recall, near the corner that counts; a line a training."""
    figure = _figure(height=380, x="defects found (recall), per cent", y="precision, per cent")
    _lines(figure, frame, "recall", "precision", shape="vh")
    figure.update_layout(showlegend=False)
    corner = frame[frame["recall"] >= 0.8]
    low = float(np.clip(100 * corner["precision"].min() - 2, 0, 95)) if len(corner) else 0.0
    figure.update_xaxes(range=[80, 100.4])
    figure.update_yaxes(range=[low, 100 + 0.02 * (100 - low)])
    return Figure(
        name="precision-recall",
        title="Precision and recall near the corner",
        caption="A line a training, ten a row at most, from 80 % recall: double-click for the whole.",
        spec=_spec(figure),
        frame=_thinned(frame),
    )


def calibration(frame: pd.DataFrame, row: str) -> Figure:
    """The share of defects among images of like scores against the mean score."""
    import plotly.graph_objects as go

    figure = _figure(height=360, x="mean score", y="share that is defective")
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="a score that means what it says",
            line={"color": _GRAY, "dash": "dot", "width": 1.2}, hoverinfo="skip",
        )
    )  # fmt: skip
    sizes = 7 + 17 * np.sqrt(frame["n"] / frame["n"].max())
    figure.add_trace(
        go.Scatter(
            x=list(frame["score"]), y=list(frame["defective"]), mode="lines+markers", name="this row",
            line={"color": COLORS[0], "width": 1.5}, marker={"size": list(sizes), "color": COLORS[0]},
            customdata=list(frame["n"]), cliponaxis=False,
            hovertemplate="score %{x:.2f}: %{y:.0%} of %{customdata} are defective<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(range=[-0.02, 1.04])
    figure.update_yaxes(range=[-0.04, 1.06])
    return Figure(
        name="calibration",
        title="Is a score a probability?",
        caption=f"{row}, test images, a dot a tenth of the scale; the larger, the more images.",
        spec=_spec(figure),
        frame=frame,
    )


def training(frame: pd.DataFrame) -> Figure:
    """Loss on the training and validation images by epoch; a line a training."""
    import plotly.graph_objects as go

    figure = _figure(height=380, x="epoch", y="loss (cross-entropy, logarithmic)")
    for k, j, row, run, part in _trainings(frame):
        for name, dash, width in (("train_loss", "dot", 1.2), ("validation_loss", "solid", 2)):
            figure.add_trace(
                go.Scatter(
                    x=list(part["epoch"]), y=list(part[name]), name=_name(row), legendgroup=str(k),
                    mode="lines+markers", showlegend=j == 0 and name == "validation_loss",
                    line={"color": COLORS[k % 6], "dash": dash, "width": width},
                    marker={"size": 5, "symbol": _SYMBOLS[k % 6]},
                    customdata=[f"{_name(row, 80)}, {run}, {name.split('_')[0]}"] * len(part),
                    hovertemplate="%{customdata}<br>epoch %{x}: %{y:.4g}<extra></extra>",
                )
            )  # fmt: skip
    figure.update_xaxes(dtick=max(1, int(frame["epoch"].max()) // 8))
    figure.update_yaxes(type="log")
    return Figure(
        name="training",
        title="Training curves",
        caption="Solid: validation loss. Dotted: training loss. A line a training, a colour and a mark a row.",
        spec=_spec(figure),
        frame=frame,
    )


def parallel(frame: pd.DataFrame, *, measured: Sequence[str]) -> Parallel:
    """Place settings and measures of every training on parallel axes; words stand in the order of their first use."""
    axes, places = [], []
    names = [str(name) for name in frame.columns]
    for k, name in enumerate(names):
        column = frame[name]
        x = k / max(1, len(names) - 1)
        if name in measured:
            values = column.astype(float).to_numpy()
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            span = (high - low) or 1.0
            places.append(1 - (values - low) / span)
            ends = ((0.0, high), (1.0, low)) if high > low else ((1.0, low),)
            axes.append(
                Axis(
                    name=name, x=x, ticks=tuple((at, f"{100 * value:.1f} %") for at, value in ends)
                )
            )
        else:
            numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(
                column
            )
            kinds = sorted(set(column)) if numbers else list(dict.fromkeys(column))
            at = {kind: 1 - (j + 0.5) / len(kinds) for j, kind in enumerate(kinds)}
            places.append(column.map(at).to_numpy(float))
            shown = kinds if len(kinds) <= 12 else [kinds[0], kinds[-1]]
            axes.append(
                Axis(name=name, x=x, ticks=tuple((at[kind], _word(kind)) for kind in shown))
            )
    good = frame["validation_accuracy"].astype(float)
    rank = (good.rank(method="average") - 1) / max(1, len(good) - 1)
    lines = [
        (tuple(float(column[i]) for column in places), float(rank.iloc[i]))
        for i in np.argsort(rank.to_numpy()).tolist()
    ]
    kept = tuple(line for line in lines if np.isfinite(line[0]).all())
    return Parallel(axes=tuple(axes), lines=kept)


def legend(rows: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each row of a figure of curves with its colour and its dashes as SVG writes them."""
    return [(row, COLORS[k % 6], _DASH_LENGTHS[k % 6]) for k, row in enumerate(rows)]


def script() -> str:
    """Return plotly's own JavaScript, as it comes with the package: 4.8 MB."""
    import plotly.offline

    return str(plotly.offline.get_plotlyjs())


def _lines(figure: go.Figure, frame: pd.DataFrame, x: str, y: str, *, shape: str) -> None:
    """Draw a line a training and a colour a row."""
    import plotly.graph_objects as go

    for k, j, row, run, part in _trainings(frame):
        figure.add_trace(
            go.Scatter(
                x=list((100 * part[x]).round(3)), y=list((100 * part[y]).round(3)), name=_name(row),
                legendgroup=str(k), mode="lines", showlegend=j == 0, opacity=0.85, meta=[f"{_name(row, 80)}, {run}"],
                line={"color": COLORS[k % 6], "dash": _DASHES[k % 6], "width": 1.8, "shape": shape},
                hovertemplate="%{meta[0]}<br>%{x:.2f} %, %{y:.2f} %<extra></extra>",
            )
        )  # fmt: skip


def _trainings(frame: pd.DataFrame) -> Iterator[tuple[int, int, str, str, pd.DataFrame]]:
    for k, row in enumerate(dict.fromkeys(frame["row"])):
        for j, (run, part) in enumerate(frame[frame["row"] == row].groupby("training", sort=False)):
            yield k, j, str(row), str(run), part


def _thinned(frame: pd.DataFrame, at_most: int = 8) -> pd.DataFrame:
    """Keep a few points of each training, the ends among them, for the table beside a curve."""
    parts = []
    for _, _, _, _, part in _trainings(frame):
        keep = np.unique(np.linspace(0, len(part) - 1, min(at_most, len(part))).round().astype(int))
        parts.append(part.iloc[keep])
    return pd.concat(parts, ignore_index=True)


def _figure(*, height: int, x: str, y: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none", height=height, autosize=True, margin={"l": 8, "r": 14, "t": 14, "b": 8}, dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    style = {
        "automargin": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "showgrid": True,
    }
    figure.update_xaxes(**style, title={"text": x, "standoff": 8})
    figure.update_yaxes(**style, title={"text": y, "standoff": 8})
    return figure


def _upright(figure: go.Figure, at: float, words: str, *, dash: str, y: float) -> None:
    figure.add_shape(
        type="line",
        x0=at,
        x1=at,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": _GRAY, "width": 1.5, "dash": dash},
    )
    side = "left" if at < 0.75 else "right"
    figure.add_annotation(
        x=at, y=y, yref="paper", text=words, showarrow=False, xanchor=side, yanchor="top", font={"size": 12},
        xshift=4 if side == "left" else -4,
    )  # fmt: skip


def _spec(figure: go.Figure) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def _name(text: object, length: int = 26) -> str:
    """Return a name for plotly, which reads HTML in text: shortened in its middle, and escaped."""
    whole = plain(str(text))
    kept = (
        whole if len(whole) <= length else f"{whole[: length * 2 // 3]}…{whole[-(length // 3) :]}"
    )
    return html.escape(kept)


def _word(value: object) -> str:
    """Return a setting as a short word; the page escapes it."""
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 18 else f"{text[:11]}…{text[-6:]}"


def _faint(color: str) -> str:
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
