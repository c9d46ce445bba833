"""Interactive figures of a report as plotly JSON.

The frames come from `curves`. Only trace types that plotly draws as SVG are used: the others
require `unsafe-eval`. Computes only axis ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.report import plotly_style
from casting_tune.report.plotly_style import COLORS, DASHES, GRAY, SYMBOLS

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure: `spec` is data and layout for plotly, `frame` the same numbers as a table."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    frame: pd.DataFrame


def thresholds(frame: pd.DataFrame, row: str, *, chosen: float | None) -> Figure:
    """Draw escape and overkill of one row by threshold; mark 0.5 and the chosen threshold."""
    figure = plotly_style.figure(height=360, x="threshold on P(defective)", y="per cent")
    _add_rate(figure, frame, "escape", "escape: defects passed", color=0)
    _add_rate(figure, frame, "overkill", "overkill: good parts rejected", color=1)
    marks = [0.5, *([chosen] if chosen is not None else [])]
    at_marks = [
        np.interp(at, frame["threshold"], 100 * frame[f"{name}_rate"])
        for at in marks
        for name in ("escape", "overkill")
    ]
    top = float(np.clip(3 * max(at_marks), 5, 103))
    figure.update_yaxes(range=[0, top])
    figure.update_xaxes(range=[0, 1])
    plotly_style.add_vertical(figure, 0.5, "0.5", dash="dot", y=0.93)
    if chosen is not None:
        plotly_style.add_vertical(figure, chosen, f"chosen {chosen:.4g}", dash="solid", y=1.0)
    n = int(frame["n"].iloc[0])
    band = f"; bands: range of {n} trainings" if n > 1 else ""
    cut = f" The axis ends at {top:.0f} %; double-click to show all." if top < 100 else ""
    return Figure(
        name="thresholds",
        title="Escape and overkill by threshold",
        caption=f"{row}, test images, mean over trainings{band}.{cut}",
        spec=plotly_style.spec(figure),
        frame=frame.iloc[:: max(1, len(frame) // 25)],
    )


def _add_rate(figure: go.Figure, frame: pd.DataFrame, name: str, label: str, *, color: int) -> None:
    """Draw a rate by threshold, with a band for the range of several trainings."""
    import plotly.graph_objects as go

    low, high, mean = (100 * frame[f"{name}_{part}"] for part in ("low", "high", "rate"))
    if frame["n"].iloc[0] > 1:
        figure.add_trace(
            go.Scatter(
                x=[*frame["threshold"], *frame["threshold"][::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                mode="none",
                fillcolor=plotly_style.faint(COLORS[color]),
                hoverinfo="skip",
                showlegend=False,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=list(frame["threshold"]),
            y=list(mean),
            name=label,
            mode="lines",
            line={"color": COLORS[color], "width": 2.5, "dash": DASHES[color]},
            hovertemplate="threshold %{x:.3f}: %{y:.2f} %<extra></extra>",
        )
    )


def pareto(frame: pd.DataFrame) -> Figure:
    """Draw accuracy against the seconds per image; mark the best trade-offs."""
    figure = plotly_style.figure(
        height=380,
        x="milliseconds per image, one at a time (logarithmic)",
        y="test accuracy, per cent",
    )
    _add_rows(figure, frame, front=True)
    _add_rows(figure, frame, front=False)
    if frame["front"].sum() > 1:
        _add_front(figure, frame)
    figure.update_xaxes(type="log", dtick="D2")
    how = (
        "was measured alone on the device."
        if bool(frame["alone"].all())
        else "was partly measured during other trainings and is approximate."
    )
    return Figure(
        name="pareto",
        title="Accuracy and latency",
        caption="Best trade-offs are filled (no row is both faster and more accurate). "
        f"Bars: 95 % intervals. Latency {how}",
        spec=plotly_style.spec(figure),
        frame=frame,
    )


def _add_rows(figure: go.Figure, frame: pd.DataFrame, *, front: bool) -> None:
    """Draw the rows on the Pareto front, or the others, with 95 % intervals."""
    import plotly.graph_objects as go

    part = frame[frame["front"] == front].sort_values("latency_one_s")
    if part.empty:
        return
    accuracy = 100 * part["accuracy"]
    marker = {
        "color": COLORS[0] if front else GRAY,
        "symbol": "circle" if front else "circle-open",
        "size": 10,
    }
    intervals = {
        "type": "data",
        "array": list((100 * part["high"] - accuracy).fillna(0)),
        "arrayminus": list((accuracy - 100 * part["low"]).fillna(0)),
        "thickness": 1.2,
        "width": 3,
    }
    figure.add_trace(
        go.Scatter(
            x=list(1000 * part["latency_one_s"]),
            y=list(accuracy),
            name="best trade-off" if front else "another row is better in both",
            error_y=intervals,
            mode="markers+text" if front and len(part) < 8 else "markers",
            text=[plotly_style.name(row) for row in part["row"]],
            textposition="top right",
            textfont={"size": 11},
            marker=marker,
            cliponaxis=False,
            customdata=[plotly_style.name(row, 80) for row in part["row"]],
            hovertemplate="%{customdata}<br>%{y:.2f} %, %{x:.3g} ms<extra></extra>",
        )
    )


def _add_front(figure: go.Figure, frame: pd.DataFrame) -> None:
    """Join the rows on the Pareto front by steps."""
    import plotly.graph_objects as go

    steps = frame[frame["front"]].sort_values("latency_one_s")
    figure.add_trace(
        go.Scatter(
            x=list(1000 * steps["latency_one_s"]),
            y=list(100 * steps["accuracy"]),
            mode="lines",
            showlegend=False,
            line={"color": COLORS[0], "width": 1.2, "shape": "hv", "dash": "dot"},
            hoverinfo="skip",
        )
    )


def roc(frame: pd.DataFrame) -> Figure:
    """Draw recall against overkill at low overkill, one line per training."""
    figure = plotly_style.figure(height=380, x="overkill, per cent", y="defects found, per cent")
    plotly_style.add_lines(figure, frame, "overkill_rate", "recall", shape="hv")
    figure.update_layout(showlegend=False)
    starts = frame[frame["overkill_rate"] <= 0.02].groupby(["row", "training"])["recall"].max()
    right = 10.0
    low = float(np.clip(100 * float(starts.min()) - 3, 0, 90))
    figure.update_xaxes(range=[-0.02 * right, right])
    figure.update_yaxes(range=[low, 100 + 0.02 * (100 - low)])
    return Figure(
        name="roc",
        title="ROC at low overkill",
        caption="One line per training (max. 10 per row), "
        f"up to {right:.0f} % overkill; double-click to show all.",
        spec=plotly_style.spec(figure),
        frame=plotly_style.thinned(frame),
    )


def precision_recall(frame: pd.DataFrame) -> Figure:
    """Draw precision against recall at high recall, one line per training."""
    figure = plotly_style.figure(
        height=380, x="defects found (recall), per cent", y="precision, per cent"
    )
    plotly_style.add_lines(figure, frame, "recall", "precision", shape="vh")
    figure.update_layout(showlegend=False)
    corner = frame[frame["recall"] >= 0.8]
    low = float(np.clip(100 * corner["precision"].min() - 2, 0, 95)) if len(corner) else 0.0
    figure.update_xaxes(range=[80, 100.4])
    figure.update_yaxes(range=[low, 100 + 0.02 * (100 - low)])
    return Figure(
        name="precision-recall",
        title="Precision at high recall",
        caption="One line per training (max. 10 per row), "
        "from 80 % recall; double-click to show all.",
        spec=plotly_style.spec(figure),
        frame=plotly_style.thinned(frame),
    )


def calibration(frame: pd.DataFrame, row: str) -> Figure:
    """Draw the share of defects by mean score, for ten groups of images with similar scores."""
    import plotly.graph_objects as go

    figure = plotly_style.figure(height=360, x="mean score", y="share of defective images")
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="perfect calibration",
            line={"color": GRAY, "dash": "dot", "width": 1.2},
            hoverinfo="skip",
        )
    )
    sizes = 7 + 17 * np.sqrt(frame["n"] / frame["n"].max())
    figure.add_trace(
        go.Scatter(
            x=list(frame["score"]),
            y=list(frame["defective"]),
            mode="lines+markers",
            name="this row",
            line={"color": COLORS[0], "width": 1.5},
            marker={"size": list(sizes), "color": COLORS[0]},
            customdata=list(frame["n"]),
            cliponaxis=False,
            hovertemplate="score %{x:.2f}: %{y:.0%} of %{customdata} are defective<extra></extra>",
        )
    )
    figure.update_xaxes(range=[-0.02, 1.04])
    figure.update_yaxes(range=[-0.04, 1.06])
    return Figure(
        name="calibration",
        title="Calibration of the scores",
        caption=f"{row}, test images. One dot per tenth of the scale; larger dots: more images.",
        spec=plotly_style.spec(figure),
        frame=frame,
    )


def training(frame: pd.DataFrame) -> Figure:
    """Draw training and validation loss by epoch, one line per training."""
    import plotly.graph_objects as go

    figure = plotly_style.figure(height=380, x="epoch", y="loss (cross-entropy, logarithmic)")
    for k, j, row, run, part in plotly_style.trainings(frame):
        for name, dash, width in (("train_loss", "dot", 1.2), ("validation_loss", "solid", 2)):
            label = f"{plotly_style.name(row, 80)}, {run}, {name.split('_')[0]}"
            figure.add_trace(
                go.Scatter(
                    x=list(part["epoch"]),
                    y=list(part[name]),
                    name=plotly_style.name(row),
                    legendgroup=str(k),
                    mode="lines+markers",
                    showlegend=j == 0 and name == "validation_loss",
                    line={"color": COLORS[k % 6], "dash": dash, "width": width},
                    marker={"size": 5, "symbol": SYMBOLS[k % 6]},
                    customdata=[label] * len(part),
                    hovertemplate="%{customdata}<br>epoch %{x}: %{y:.4g}<extra></extra>",
                )
            )
    figure.update_xaxes(dtick=max(1, int(frame["epoch"].max()) // 8))
    figure.update_yaxes(type="log")
    return Figure(
        name="training",
        title="Training curves",
        caption="Solid: validation loss. Dotted: training loss. "
        "One line per training; one colour and symbol per row.",
        spec=plotly_style.spec(figure),
        frame=frame,
    )
