"""Charts of the results of a sweep, and of the images by split and class, as PNG files.

A chart computes no metric, draws names as plain text (`$` is `$`), and gives the range of its axis.
The same input gives the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casting_tune.report import mpl_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from casting_tune.data.pack import Pack

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
"""From the palette of Okabe and Ito (2008) for colour-blind readers; markers differ as well."""

_METRICS = {
    "accuracy": ("accuracy", _BLUE, "o"),
    "recall": ("recall", _ORANGE, "s"),
    "f1": ("F1", _GREEN, "^"),
}
_MARKERS = "os^DvP*X"
_DPI = 150
_MOST_PX = 60_000  # Agg draws up to 65,536


def plot_images(pack: Pack, file: Path) -> Path:
    """Draw the number of images by split and class as bars."""
    with mpl_style.style():
        figure = _figure(7, 4.2)
        axes = figure.add_subplot()
        shift = 0.2
        for label, name, color in (
            (1, f"defective: {pack.positive}", _ORANGE),
            (0, f"ok: {pack.negative}", _BLUE),
        ):
            n = [
                int(np.sum((pack.splits == split) & (pack.labels == label)))
                for split in ("train", "test")
            ]
            bars = axes.bar(
                [0 - shift, 1 - shift], n, 0.38, color=color, label=mpl_style.name(name)
            )
            axes.bar_label(bars, [f"{count:,}" for count in n], padding=3)
            shift = -shift
        axes.set_xticks([0, 1], ["train", "test"])
        axes.set_ylabel("images")
        axes.margins(y=0.12)
        return _finish(figure, axes, file, title=f"{len(pack.labels):,} images by split and class")


def plot_metrics(frame: pd.DataFrame, file: Path, *, title: str) -> Path:
    """Draw accuracy, recall and F1 of each row as dots, the first row at the top.

    Args:
        frame: row, accuracy, recall, f1 and accuracy_sd in 0..1, n trainings; optional
            study_accuracy in per cent. Missing values are not drawn.
        file: path of the PNG.
        title: title of the chart.
    """
    ys = np.arange(len(frame), dtype=float)
    accuracy, sd = (100 * _column(frame, name) for name in ("accuracy", "accuracy_sd"))
    study = _column(frame, "study_accuracy")
    with mpl_style.style():
        figure = _figure(10, 1.9 + 0.42 * len(frame))
        axes = figure.add_subplot()
        _rows(axes, [mpl_style.name(row) for row in frame["row"]])
        for (column, (name, color, marker)), dy in zip(
            _METRICS.items(), (-0.22, 0, 0.22), strict=True
        ):
            axes.plot(100 * _column(frame, column), ys + dy, marker, color=color, ms=6, label=name)
        ends = np.stack([sd, np.minimum(sd, 100 - accuracy)])
        axes.errorbar(accuracy, ys - 0.22, xerr=ends, fmt="none", ecolor=_BLUE, lw=1.3, capsize=2.5)
        if np.isfinite(study).any():
            axes.plot(
                study,
                ys - 0.22,
                "D",
                mfc="none",
                mec="#222222",
                ms=9,
                label="accuracy in the study",
            )
        _notes(axes, ["" if number else "no result" for number in np.isfinite(accuracy)], x=0.01)
        shown = [
            accuracy - np.nan_to_num(sd),
            study,
            *(100 * _column(frame, name) for name in ("recall", "f1")),
        ]
        axes.set_xlim(*axis_range(np.concatenate(shown)))
        axes.set_xlabel(f"per cent {_range_note(axes.get_xlim())}")
        n = [int(count) for count in frame["n"]]
        same = len(set(n)) == 1
        _notes(axes, [] if same else [f"n = {count}" for count in n], x=1.01)
        plural = "s" * (n[0] != 1)
        trainings = f"n = {n[0]} training{plural} per row" if same else "n trainings per row"
        bars = "; bars: 1 sd of the accuracy, cut at 100" if np.isfinite(sd).any() else ""
        return _finish(figure, axes, file, title=title, note=f"mean of {trainings}{bars}")


def plot_times(frame: pd.DataFrame, file: Path) -> Path:
    """Draw seconds per epoch and per step by backbone and batch size, on logarithmic axes.

    Args:
        frame: backbone, batch, px, epoch_s, step_s; optional study_epoch_s, study_step_s. Missing
            values are not drawn. Of several rows of a setting the first is drawn: the one with the
            fewest parallel trials (n_at_once).
        file: path of the PNG.
    """
    frame = frame.drop_duplicates([name for name in ("backbone", "batch", "px") if name in frame])
    at_once = np.nan_to_num(_column(frame, "n_at_once")).max(initial=1)
    backbones = list(dict.fromkeys(frame["backbone"]))
    study = bool(np.isfinite(_column(frame, "study_epoch_s")).any())
    with mpl_style.style():
        figure = _figure(11, 2.2 + 0.4 * len(backbones))
        both = figure.subplots(1, 2, sharey=True)
        for axes, (name, unit) in zip(
            both, (("epoch_s", "epoch"), ("step_s", "step")), strict=True
        ):
            _draw_times(axes, frame, name, backbones, study=study)
            axes.set_xlabel(f"seconds per {unit} (logarithmic)")
        hollow = (
            "hollow: the study; its epochs used 1/2, 1/4, 1/8 of the images "
            "at batch 2, 4, 8, so compare steps"
        )
        title = "Training time by backbone and batch size"
        notes = (
            f"up to {at_once:.0f} parallel trials" if at_once > 1 else "",
            hollow if study else "",
        )
        return _finish(figure, both[0], file, title=title, note="; ".join(filter(None, notes)))


def _draw_times(
    axes: Axes, frame: pd.DataFrame, name: str, backbones: Sequence[str], *, study: bool
) -> None:
    """Draw one kind of time by backbone, with one colour and marker per batch size."""
    import matplotlib

    batches = sorted(set(frame["batch"]))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(batches)))
    _rows(axes, [mpl_style.name(backbone) for backbone in backbones])
    axes.set_xscale("log")
    measured = set(frame["backbone"][np.isfinite(_column(frame, name))])
    _notes(
        axes,
        ["" if backbone in measured else "not measured" for backbone in backbones],
        x=0.02,
    )
    for k, batch in enumerate(batches):
        part = frame[frame["batch"] == batch]
        ys = np.array([backbones.index(backbone) for backbone in part["backbone"]])
        ys = ys + 0.5 * ((k + 0.5) / len(batches) - 0.5)
        marker = _MARKERS[k % len(_MARKERS)]
        axes.plot(
            _column(part, name),
            ys,
            marker,
            color=colors[k],
            ms=6.5,
            label=f"batch size {batch}",
        )
        if study:
            axes.plot(_column(part, f"study_{name}"), ys, marker, mfc="none", mec=colors[k], ms=9)
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def plot_thresholds(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw threshold_accuracy.png, threshold_recall.png and threshold_f1.png: mean and sd.

    Args:
        frame: one row of a sweep: threshold; accuracy, recall and f1 in 0..1, each with its _sd;
            optional n trainings.
        folder: created if necessary.
    """
    frame = frame.sort_values("threshold")
    x = _column(frame, "threshold")
    n = (
        "{:.0f} trainings".format(frame["n"].iloc[0])
        if "n" in frame and len(frame)
        else "trainings"
    )
    files = []
    for column, (name, color, marker) in _METRICS.items():
        mean, sd = 100 * _column(frame, column), np.nan_to_num(100 * _column(frame, f"{column}_sd"))
        with mpl_style.style():
            figure = _figure(7.5, 4.4)
            axes = figure.add_subplot()
            axes.fill_between(
                x,
                mean - sd,
                np.minimum(mean + sd, 100),
                color=color,
                alpha=0.2,
                lw=0,
                label="1 sd, cut at 100",
            )
            axes.plot(x, mean, marker + "-", color=color, label=f"mean {name}")
            axes.set_ylim(*axis_range(mean - sd))
            axes.grid(axis="y")
            axes.set_xlabel("threshold")
            axes.set_ylabel(f"{name}, per cent\n{_range_note(axes.get_ylim())}")
            if len(frame) <= 12:
                axes.set_xticks(x)
            title = f"{name[0].upper()}{name[1:]} by threshold: mean and sd of {n}"
            files.append(_finish(figure, axes, folder / f"threshold_{column}.png", title=title))
    return files


def axis_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return an axis in per cent: from the highest round number below all values to 100."""
    least = np.min(values, initial=100, where=np.isfinite(values))
    low = max(end for end in (0, 50, 80, 90, 95) if end <= max(least, 0))
    return low, 100 + (100 - low) * 0.025


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a column as numbers, NaN for missing values; a missing column is all NaN."""
    return (
        frame[name].to_numpy(np.float64, na_value=np.nan)
        if name in frame
        else np.full(len(frame), np.nan)
    )


def _range_note(limits: tuple[float, float]) -> str:
    return (
        "(the axis starts at 0)"
        if limits[0] == 0
        else f"(the axis shows {limits[0]:g} to 100, not 0 to 100)"
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows from the top, every second one on a stripe."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", lw=0, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _notes(axes: Axes, texts: Sequence[str], *, x: float) -> None:
    """Write a text next to each row, at the position x in 0..1 of the axes."""
    for y, text in enumerate(texts):
        axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", color="#666666")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height),
        dpi=min(_DPI, int(_MOST_PX / height)),
        facecolor="white",
        layout="constrained",
    )


def _finish(figure: Figure, axes: Axes, file: Path, *, title: str, note: str = "") -> Path:
    """Add title and legend, and write the file."""
    letters = int(8.6 * figure.get_figwidth())  # per line, at 13 points
    figure.suptitle(
        textwrap.fill(mpl_style.plain(title), letters),
        x=0.012,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    axes.set_title(note, fontsize=10, color="#555555", pad=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return mpl_style.save(figure, file)
